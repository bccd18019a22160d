#include "entropy/rans.h"

#include <cstring>
#include <sstream>

#include "check.h"
#include "entropy/cdf.h"

namespace sparsecodec::rans {
namespace {

#define SC_UNLIKELY(condition) __builtin_expect(!!(condition), 0)

template <class... Parts>
[[noreturn, gnu::noinline, gnu::cold]] void damaged(const Parts&... parts) {
    std::ostringstream message;
    (message << ... << parts);
    throw BitstreamError(message.str());
}

[[noreturn, gnu::noinline, gnu::cold]] void bad_index(std::int64_t index, std::size_t position, std::size_t rows) {
    refuse("indexes[", position, "] = ", index, " (the tables have rows 0 to ", rows - 1, ")");
}

// An index as a row number; negative ones become too large.
template <class Index>
std::uint32_t row_number(Index index) {
    return static_cast<std::uint32_t>(static_cast<std::int32_t>(index));
}

template <class Coder>
constexpr unsigned kUnitBits = 8 * sizeof(typename Coder::Unit);
template <class Coder>
constexpr unsigned kUpperBits = Coder::kLowerBits + kUnitBits<Coder>;

// Makes room for a step that leaves the state below 2^kUpperBits if it was below `limit`.
template <class Coder>
[[gnu::always_inline]] inline void shrink(BasicWriter<Coder>& writer, typename Coder::State limit) {
    constexpr bool kOnce = kUnitBits<Coder> >= kProbabilityBits;
    while (SC_UNLIKELY(writer.state >= limit)) {
        writer.units.push_back(static_cast<typename Coder::Unit>(writer.state));
        writer.state >>= kUnitBits<Coder>;
        if (kOnce) break;
    }
}

template <class Coder>
inline void put(BasicWriter<Coder>& writer, const Tables::Code& code) {
    using State = typename Coder::State;
    const State frequency = kProbabilityOne - code.complement;
    shrink(writer, frequency << (kUpperBits<Coder> - kProbabilityBits));
    const auto product = static_cast<unsigned __int128>(writer.state) * code.reciprocal;
    const std::uint64_t quotient = static_cast<std::uint64_t>(product >> 64) >> code.shift;
    writer.state += code.bias + static_cast<State>(quotient) * code.complement;
}

template <class Coder>
void put_digit(BasicWriter<Coder>& writer, std::uint32_t digit) {
    shrink(writer, typename Coder::State{1} << (kUpperBits<Coder> - Coder::kDigitBits));
    writer.state = (writer.state << Coder::kDigitBits) | digit;
}

template <class Coder>
constexpr std::uint32_t kDigitLimit = (1u << Coder::kDigitBits) - 1;
template <class Coder>
constexpr std::uint32_t kDigitCount = 32 / Coder::kDigitBits;  // at most

// Writes what follows the escape symbol in the stream: the number of digits, in digits that are full but for the last
// one, and the digits, the least significant one first.
template <class Coder>
void put_escape_digits(BasicWriter<Coder>& writer, std::uint32_t raw) {
    constexpr std::uint32_t kFull = kDigitLimit<Coder>;
    std::uint32_t digits = 0;
    while (digits < kDigitCount<Coder> && raw >> (digits * Coder::kDigitBits) != 0) ++digits;
    for (std::uint32_t i = digits; i-- > 0;) put_digit(writer, raw >> (i * Coder::kDigitBits) & kFull);
    put_digit(writer, digits % kFull);
    for (; digits >= kFull; digits -= kFull) put_digit(writer, kFull);
}

// `place` is the symbol's, counted from the row's first; it is not among the plain ones.
template <class Coder>
[[gnu::noinline, gnu::cold]] void put_escape(BasicWriter<Coder>& writer, std::int64_t place, const Tables& tables,
                                             std::uint32_t escape, std::size_t position, std::int64_t symbol) {
    const std::uint64_t beyond = static_cast<std::uint64_t>(place) - escape;
    const std::uint64_t raw = tables.order() == Order::kZigzag ? beyond
                              : place < 0                      ? static_cast<std::uint64_t>(-2 * place - 1)
                                                               : 2 * beyond;
    SC_CHECK(raw >> 32 == 0, "symbols[", position, "] = ", symbol, " (an escape reaches 2^31 from its row at most)");
    put_escape_digits(writer, static_cast<std::uint32_t>(raw));
}

// The place of a symbol in the order 0, 1, -1, 2, -2, .. and the symbol of a place.
inline std::int64_t zigzag(std::int64_t symbol) { return symbol > 0 ? 2 * symbol - 1 : -2 * symbol; }
inline std::int64_t unzigzag(std::int64_t place) { return (place & 1) != 0 ? (place + 1) >> 1 : -(place >> 1); }

template <Order order, class Coder, class Index>
[[gnu::always_inline]] inline void encode_one(BasicWriter<Coder>& writer, const std::int32_t* symbols, const Index* indexes,
                                              std::size_t i, const Tables& tables) {
    const std::uint32_t number = row_number(indexes[i]);
    const std::int64_t symbol = symbols[i];
    if (SC_UNLIKELY(number >= tables.rows())) bad_index(static_cast<std::int32_t>(number), i, tables.rows());
    const Row row = tables.row_data()[number];
    const std::int64_t place = order == Order::kZigzag ? zigzag(symbol) : symbol - row.offset;
    std::uint64_t plain = static_cast<std::uint64_t>(place);
    if (SC_UNLIKELY(plain >= row.escape)) {
        put_escape(writer, place, tables, row.escape, i, symbol);
        plain = row.escape;
    }
    put(writer, tables.codes()[row.first_symbol + plain]);
}

[[noreturn, gnu::noinline, gnu::cold]] void too_short(std::size_t size, std::size_t position) {
    damaged("a stream of ", size, " bytes ends before symbol ", position);
}

// Reads units until the state is large enough again, one (Rans64) or up to two (Rans32).
template <class Coder>
[[gnu::always_inline]] inline void refill(BasicReader<Coder>& reader, std::size_t position) {
    using Unit = typename Coder::Unit;
    if constexpr (sizeof(Unit) == 1) {
        // How many bytes it takes is as good as random: without branches decoding is two to three times as fast (EPYC Zen
        // 5, one and two streams, 2026-11-21).
        if (reader.end - reader.next >= 2) {
            const unsigned missing = (reader.state < kFirstState<Coder>) + (reader.state < kFirstState<Coder> >> 8);
            const std::uint32_t pair = std::uint32_t{reader.next[0]} << 8 | reader.next[1];
            reader.state = reader.state << 8 * missing | pair >> (16 - 8 * missing);
            reader.next += missing;
            return;
        }
    }
    while (SC_UNLIKELY(reader.state < kFirstState<Coder>)) {
        if (SC_UNLIKELY(reader.next == reader.end)) too_short(reader.size, position);
        Unit unit;
        std::memcpy(&unit, reader.next, sizeof(Unit));
        reader.next += sizeof(Unit);
        reader.state = (reader.state << kUnitBits<Coder>) | unit;
        if (sizeof(Unit) > 1) break;
    }
}

template <class Coder>
std::uint32_t get_digit(BasicReader<Coder>& reader, std::size_t position) {
    const std::uint32_t digit = static_cast<std::uint32_t>(reader.state) & kDigitLimit<Coder>;
    reader.state >>= Coder::kDigitBits;
    refill(reader, position);
    return digit;
}

template <class Coder>
std::uint32_t get_escape_digits(BasicReader<Coder>& reader, std::size_t position) {
    constexpr std::uint32_t kMost = kDigitCount<Coder>;
    std::uint32_t digits = 0, digit;
    do {
        digit = get_digit(reader, position);
        digits += digit;
        if (digits > kMost) damaged("symbol ", position, ": an escape of ", digits, " digits (of ", kMost, ")");
    } while (digit == kDigitLimit<Coder>);
    std::uint32_t raw = 0;
    for (std::uint32_t i = 0; i < digits; ++i) raw |= get_digit(reader, position) << (i * Coder::kDigitBits);
    return raw;
}

// The symbol of a slot in a bucket that cannot tell; reads the digits of an escape.
template <class Coder>
[[gnu::noinline]] std::int32_t decode_slow(BasicReader<Coder>& reader, const Tables& tables, const Row& row,
                                           std::size_t position) {
    const bool zigzags = tables.order() == Order::kZigzag;
    const std::uint32_t slot = static_cast<std::uint32_t>(reader.state) & (kProbabilityOne - 1);
    const Interval interval = search_row(tables.view(), row, slot);
    reader.state = interval.frequency * (reader.state >> kProbabilityBits) + slot - interval.start;
    refill(reader, position);
    if (interval.symbol != row.escape) {
        const auto place = static_cast<std::int32_t>(interval.symbol);
        return zigzags ? static_cast<std::int32_t>(unzigzag(place)) : row.offset + place;
    }
    const std::uint32_t raw = get_escape_digits(reader, position);
    const std::int64_t decoded = zigzags ? unzigzag(std::int64_t{raw} + row.escape) : escaped_symbol(raw, row);
    if (decoded != static_cast<std::int32_t>(decoded)) {
        damaged("symbol ", position, ": escaped value ", decoded, " exceeds 32 bits");
    }
    return static_cast<std::int32_t>(decoded);
}

// yes ? a : b without a branch, which would be mispredicted as often as not. GCC 12 makes a branch of it whatever it is
// told; with the conditional move, decoding is 1.1 (one stream) to 1.3 times (two) as fast (EPYC Zen 5, 2026-11-21).
[[gnu::always_inline]] inline std::uint64_t choose(bool yes, std::uint64_t a, std::uint64_t b) {
#if defined(__x86_64__)
    asm("test %1, %1\n\tcmovne %2, %0" : "+r"(b) : "q"(yes), "r"(a) : "cc");
    return b;
#else
    return b + ((a - b) & -static_cast<std::uint64_t>(yes));
#endif
}

// What the decoding loop reads of the tables, in a form that the compiler keeps in registers.
struct Lookup {
    const Row* __restrict rows;
    const Bucket* __restrict buckets;
    std::size_t row_count;

    explicit Lookup(const Tables& tables)
        : rows(tables.row_data()), buckets(tables.buckets()), row_count(tables.rows()) {}
};

// Asks for the first 512 bytes of a row's buckets: most rows have no more. A lone stream, which waits for each lookup,
// becomes 1.1 (64 rows) to 1.25 times (256 rows) as fast; two streams hide the wait (EPYC Zen 5, 2026-11-21).
constexpr std::size_t kPrefetchDistance = 6;  // symbols; 4 and 8 are slower

template <class Index>
[[gnu::always_inline]] inline void prefetch(Index index, const Lookup lookup) {
    const std::uint32_t number = row_number(index);
    if (SC_UNLIKELY(number >= lookup.row_count)) return;
    const Bucket* buckets = lookup.buckets + lookup.rows[number].bucket(0);
    for (std::size_t i = 0; i < Tables::kPrefetched; i += 8) __builtin_prefetch(buckets + i);  // 8 buckets a cache line
}

template <Order order, class Coder, class Index>
[[gnu::always_inline]] inline void decode_one(BasicReader<Coder>& reader, std::int32_t* symbols, const Index* indexes,
                                              std::size_t i, const Tables& tables, const Lookup lookup) {
    const std::uint32_t number = row_number(indexes[i]);
    if (SC_UNLIKELY(number >= lookup.row_count)) bad_index(static_cast<std::int32_t>(number), i, lookup.row_count);
    const Row* row = lookup.rows + number;
    const std::uint32_t slot = static_cast<std::uint32_t>(reader.state) & (kProbabilityOne - 1);
    const Bucket* bucket = lookup.buckets + row->bucket(slot);
    const std::uint64_t next_frequency = bucket->next_frequency;
    if (SC_UNLIKELY(next_frequency == 0)) {
        // By way of a copy: a reader whose address leaves this function would live in memory instead of registers.
        BasicReader<Coder> copy = reader;
        symbols[i] = decode_slow(copy, tables, *row, i);
        reader = copy;
        return;
    }
    // Both outcomes are computed, so that the choice is the only step that waits for the comparison.
    const std::uint64_t high = reader.state >> kProbabilityBits;
    const std::uint32_t start = bucket->start, next_start = bucket->next_start;
    const std::uint64_t first = std::uint64_t{next_start - start} * high + slot - start;
    const std::uint64_t second = next_frequency * high + slot - next_start;
    const bool is_second = slot >= next_start;
    reader.state = static_cast<typename Coder::State>(choose(is_second, second, first));
    const std::int32_t place = bucket->symbol + is_second;
    symbols[i] = order == Order::kZigzag ? static_cast<std::int32_t>(unzigzag(place)) : row->offset + place;
    refill(reader, i);
}

// The symbols [begin, begin + size) of stream k of n.
struct Share {
    std::size_t begin, size;
    Share(std::size_t count, std::size_t n, std::size_t k)
        : begin(count / n * k), size(k + 1 < n ? count / n : count - count / n * k) {}
};

template <Order order, class Coder, class Index>
void encode_all(std::vector<BasicWriter<Coder>>& writers, const std::int32_t* symbols, const Index* indexes,
                std::size_t count, const Tables& tables) {
    const std::size_t n = writers.size();
    for (std::size_t k = 0; k < n; ++k) {
        const Share share(count, n, k);
        for (std::size_t i = share.begin + share.size; i-- > share.begin;) {
            encode_one<order>(writers[k], symbols, indexes, i, tables);
        }
    }
}

template <Order order, class Coder, class Index>
void decode_all(std::vector<BasicReader<Coder>>& readers, std::int32_t* symbols, const Index* indexes,
                std::size_t count, const Tables& tables) {
    const std::size_t n = readers.size();
    const Lookup lookup(tables);
    for (std::size_t k = 0; k < n; k += 2) {
        // A stream is one chain of dependent steps; with two of them the processor always has something to do.
        const Share share(count, n, k);
        const std::size_t begin = share.begin, end = share.begin + share.size;
        BasicReader<Coder> reader = readers[k];
        if (k + 1 == n) {
            for (std::size_t i = begin; i < end; ++i) {
                if (i + kPrefetchDistance < end) prefetch(indexes[i + kPrefetchDistance], lookup);
                decode_one<order>(reader, symbols, indexes, i, tables, lookup);
            }
        } else {
            const Share other(count, n, k + 1);  // as long as `share` or longer
            BasicReader<Coder> other_reader = readers[k + 1];
            for (std::size_t i = begin; i < end; ++i) {
                decode_one<order>(reader, symbols, indexes, i, tables, lookup);
                decode_one<order>(other_reader, symbols, indexes, i + share.size, tables, lookup);
            }
            for (std::size_t i = end + share.size; i < other.begin + other.size; ++i) {
                decode_one<order>(other_reader, symbols, indexes, i, tables, lookup);
            }
            readers[k + 1] = other_reader;
        }
        readers[k] = reader;
    }
}

}  // namespace

template <class Coder>
void BasicWriter<Coder>::flush_to(unsigned char* bytes) const {
    std::memcpy(bytes, &state, sizeof(state));  // little-endian, as the units
    bytes += sizeof(state);
    for (auto unit = units.rbegin(); unit != units.rend(); ++unit, bytes += sizeof(*unit)) {
        std::memcpy(bytes, &*unit, sizeof(*unit));
    }
}

template <class Coder>
BasicReader<Coder>::BasicReader(const unsigned char* bytes, std::size_t count)
    : next(bytes), end(bytes + count), size(count) {
    constexpr std::size_t kUnit = sizeof(typename Coder::Unit);
    if (count < sizeof(state) || count % kUnit != 0) {
        damaged("a stream of ", count, " bytes (needs ", sizeof(state), " or more",
                kUnit > 1 ? ", in whole words of 4)" : ")");
    }
    std::memcpy(&state, bytes, sizeof(state));
    next += sizeof(state);
    if (state < kFirstState<Coder> || state >> kUpperBits<Coder> != 0) {
        damaged("a stream starts with the state ", state, " (needs 2^", Coder::kLowerBits, " to 2^", kUpperBits<Coder>,
                " - 1)");
    }
}

template <class Coder>
void BasicReader<Coder>::finish_state() const {
    if (state != kFirstState<Coder>) damaged("a stream does not end in the state in which its encoder began");
}

template <class Coder>
void BasicReader<Coder>::finish() const {
    if (next != end) damaged(end - next, " of ", size, " bytes of a stream are left after the last symbol");
    finish_state();
}

template <class Coder, class Index>
void encode(std::vector<BasicWriter<Coder>>& writers, const std::int32_t* symbols, const Index* indexes,
            std::size_t count, const Tables& tables) {
    const bool zigzags = tables.order() == Order::kZigzag;
    const auto all = zigzags ? encode_all<Order::kZigzag, Coder, Index> : encode_all<Order::kAscending, Coder, Index>;
    all(writers, symbols, indexes, count, tables);
}

template <class Coder, class Index>
void decode(std::vector<BasicReader<Coder>>& readers, std::int32_t* symbols, const Index* indexes, std::size_t count,
            const Tables& tables) {
    const bool zigzags = tables.order() == Order::kZigzag;
    const auto all = zigzags ? decode_all<Order::kZigzag, Coder, Index> : decode_all<Order::kAscending, Coder, Index>;
    all(readers, symbols, indexes, count, tables);
}

#define SC_INSTANTIATE(Coder, Index)                                                                                   \
    template void encode(std::vector<BasicWriter<Coder>>&, const std::int32_t*, const Index*, std::size_t,             \
                         const Tables&);                                                                               \
    template void decode(std::vector<BasicReader<Coder>>&, std::int32_t*, const Index*, std::size_t, const Tables&);
#define SC_INSTANTIATE_CODER(Coder)      \
    template struct BasicWriter<Coder>;  \
    template struct BasicReader<Coder>;  \
    SC_INSTANTIATE(Coder, std::uint8_t)  \
    SC_INSTANTIATE(Coder, std::int16_t)  \
    SC_INSTANTIATE(Coder, std::int32_t)
SC_INSTANTIATE_CODER(Rans64)
SC_INSTANTIATE_CODER(Rans32)

}  // namespace sparsecodec::rans
