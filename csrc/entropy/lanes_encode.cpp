#include <algorithm>
#include <cstring>
#include <utility>

#include "check.h"
#include "common/parallel.h"
#include "entropy/lanes.h"

namespace sparsecodec::lanes {

namespace {

constexpr std::size_t kMostWords = 16;  // above what one symbol emits
constexpr std::uint32_t kNear = 1u << 29;  // rows begin within 2^30: symbols within kNear are within 2^31 of any row

inline void put(std::uint32_t& state, std::uint16_t*& words, const rans::Tables::Code& code) {
    // The word is written in any case and counts only if it is one: whether is as random as the symbols.
    const bool emits = state >> 16 >= (1u << 16) - code.complement;
    *words = static_cast<std::uint16_t>(state);
    words += emits;
    state >>= emits ? kWordBits : 0;
    // The reciprocals of rans_tables.cpp are exact for every state below 2^63.
    const auto product = static_cast<unsigned __int128>(state) * code.reciprocal;
    const auto quotient = static_cast<std::uint32_t>(static_cast<std::uint64_t>(product >> 64) >> code.shift);
    state += code.bias + quotient * code.complement;
}

inline void put_digit(std::uint32_t& state, std::uint16_t*& words, std::uint32_t digit) {
    if (state >> (32 - kDigitBits) != 0) {
        *words++ = static_cast<std::uint16_t>(state);
        state >>= kWordBits;
    }
    state = state << kDigitBits | digit;
}

// The number that an escape's digits spell. `value` is the symbol minus the row's offset.
inline std::uint64_t escape_number(std::int64_t value, std::uint32_t escape) {
    return value < 0 ? static_cast<std::uint64_t>(-2 * value - 1) : 2 * (static_cast<std::uint64_t>(value) - escape);
}

[[gnu::noinline, gnu::cold]] void put_escape(std::uint32_t& state, std::uint16_t*& words, std::uint64_t raw) {
    std::uint32_t digits = 0;
    while (raw >> (digits * kDigitBits) != 0) ++digits;
    for (std::uint32_t i = digits; i-- > 0;) {
        put_digit(state, words, static_cast<std::uint32_t>(raw >> (i * kDigitBits)) & kDigitMax);
    }
    put_digit(state, words, digits);
}

void put_size(std::vector<unsigned char>& bytes, std::uint64_t size) {
    for (; size > 0x7f; size >>= 7) bytes.push_back(static_cast<unsigned char>(size | 0x80));
    bytes.push_back(static_cast<unsigned char>(size));
}

}  // namespace

struct Encoder::Written {
    std::uint32_t states[kMaxLanes];
    std::vector<std::uint16_t> words;  // in the order written
};

Encoder::Encoder(std::int64_t total) : total_(total), layout_(layout_of(total)) {
    SC_CHECK(total >= 0 && total <= kMaxTotal, "total=", total, " (needs 0 to 2^40 symbols)");
}

template <class Index>
void Encoder::push(const std::int32_t* symbols, const Index* indexes, std::int64_t count,
                   std::shared_ptr<const rans::Tables> tables) {
    SC_CHECK(count <= total_ - pushed_, count, " symbols behind ", pushed_, " (total=", total_, ")");
    check_order(*tables);
    // Copies first: the checks must hold for the very values that are used.
    Call call{{symbols, symbols + count}, {indexes, indexes + count}, std::move(tables)};
    const TableRows rows = call.tables->view();
    // Nearly always every index has a row and no symbol is even near the reach of an escape, wherever its row begins.
    std::uint32_t doubtful = 0;
    for (std::int64_t i = 0; i < count; ++i) {
        const auto number = static_cast<std::uint32_t>(call.indexes[i]);
        doubtful |= number >= rows.row_count ? 1 : 0;
        doubtful |= (static_cast<std::uint32_t>(call.symbols[i]) + kNear) & ~(2 * kNear - 1);
    }
    for (std::int64_t i = 0; doubtful != 0 && i < count; ++i) {
        const auto number = static_cast<std::uint32_t>(call.indexes[i]);
        SC_CHECK(number < rows.row_count, "indexes[", i, "] = ", call.indexes[i], " (the tables have rows 0 to ",
                 rows.row_count - 1, ")");
        const Row& row = rows.rows[number];
        const std::int64_t value = std::int64_t{call.symbols[i]} - row.offset;
        SC_CHECK(static_cast<std::uint64_t>(value) < row.escape || escape_number(value, row.escape) >> 32 == 0,
                 "symbols[", i, "] = ", call.symbols[i], " (an escape reaches 2^31 from its row at most)");
    }
    pushed_ += count;
    calls_.push_back(std::move(call));
}

Encoder::Written Encoder::write(std::int64_t group) const {
    Written written;
    std::fill_n(written.states, kMaxLanes, kLowerBound);
    std::vector<std::uint16_t>& pool = written.words;
    std::size_t used = 0;
    for (auto call = calls_.rbegin(); call != calls_.rend(); ++call) {
        const Share share = share_of(static_cast<std::int64_t>(call->symbols.size()), layout_.groups, group);
        const std::int32_t *symbols = call->symbols.data() + share.begin, *indexes = call->indexes.data() + share.begin;
        const TableRows rows = call->tables->view();
        const rans::Tables::Code* codes = call->tables->codes();
        const auto lane_mask = static_cast<std::int64_t>(layout_.lanes) - 1;
        for (std::int64_t end = share.size; end > 0;) {
            const std::int64_t begin = std::max<std::int64_t>(0, end - 1024);
            const std::size_t needed = used + static_cast<std::size_t>(end - begin) * kMostWords;
            if (pool.size() < needed) pool.resize(std::max(needed, 2 * pool.size()));
            std::uint16_t* words = pool.data() + used;
            for (std::int64_t j = end; j-- > begin;) {
                std::uint32_t& state = written.states[j & lane_mask];
                const Row row = rows.rows[indexes[j]];
                const std::int64_t value = std::int64_t{symbols[j]} - row.offset;
                auto plain = static_cast<std::uint64_t>(value);
                if (__builtin_expect(plain >= row.escape, 0)) {
                    put_escape(state, words, escape_number(value, row.escape));
                    plain = row.escape;
                }
                put(state, words, codes[row.first_symbol + plain]);
            }
            used = static_cast<std::size_t>(words - pool.data());
            end = begin;
        }
    }
    pool.resize(used);
    return written;
}

std::vector<unsigned char> Encoder::finish() {
    SC_CHECK(pushed_ == total_, pushed_, " symbols were pushed (total=", total_, ")");
    const std::int64_t groups = layout_.groups;
    std::vector<Written> written(static_cast<std::size_t>(groups));
    in_parallel(groups, [&](Tasks& tasks) {
        for (std::ptrdiff_t g; tasks.take(g);) written[g] = write(g);
    });
    calls_.clear();
    pushed_ = 0;

    std::vector<unsigned char> payload;
    std::size_t words = 0;
    for (const Written& group : written) words += 2 * static_cast<std::size_t>(layout_.lanes) + group.words.size();
    payload.reserve(2 * words + 5 * written.size());
    for (std::size_t g = 0; g + 1 < written.size(); ++g) {
        put_size(payload, 2 * static_cast<std::size_t>(layout_.lanes) + written[g].words.size());
    }
    for (const Written& group : written) {
        for (int lane = 0; lane < layout_.lanes; ++lane) {
            for (int byte = 0; byte < 4; ++byte) payload.push_back(group.states[lane] >> (8 * byte) & 0xff);
        }
        const std::size_t place = payload.size();
        payload.resize(place + 2 * group.words.size());
        unsigned char* bytes = payload.data() + place;
        for (auto word = group.words.rbegin(); word != group.words.rend(); ++word, bytes += 2) {
            bytes[0] = static_cast<unsigned char>(*word);
            bytes[1] = static_cast<unsigned char>(*word >> 8);
        }
    }
    return payload;
}

#define SC_INSTANTIATE(Index)                                                                                   \
    template void Encoder::push(const std::int32_t*, const Index*, std::int64_t, std::shared_ptr<const rans::Tables>);
SC_INSTANTIATE(std::uint8_t)
SC_INSTANTIATE(std::int16_t)
SC_INSTANTIATE(std::int32_t)

}  // namespace sparsecodec::lanes
