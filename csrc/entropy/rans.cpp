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

inline void put(Writer& writer, const Tables::Code& code) {
    const std::uint64_t frequency = kProbabilityOne - code.complement;
    if (SC_UNLIKELY(writer.state >= frequency << 47)) {
        writer.words.push_back(static_cast<std::uint32_t>(writer.state));
        writer.state >>= 32;
    }
    const auto product = static_cast<unsigned __int128>(writer.state) * code.reciprocal;
    const std::uint64_t quotient = static_cast<std::uint64_t>(product >> 64) >> code.shift;
    writer.state += code.bias + quotient * code.complement;
}

inline void put_digit(Writer& writer, std::uint32_t digit) {
    if (writer.state >= std::uint64_t{1} << (63 - kDigitBits)) {
        writer.words.push_back(static_cast<std::uint32_t>(writer.state));
        writer.state >>= 32;
    }
    writer.state = (writer.state << kDigitBits) | digit;
}

// Writes what follows the escape symbol in the stream. `value` is the symbol minus the row's offset.
[[gnu::noinline, gnu::cold]] void put_escape(Writer& writer, std::int64_t value, std::uint32_t escape,
                                             std::size_t position, std::int64_t symbol) {
    const std::uint64_t raw = value < 0 ? static_cast<std::uint64_t>(-2 * value - 1)
                                        : 2 * (static_cast<std::uint64_t>(value) - escape);
    SC_CHECK(raw >> 32 == 0, "symbols[", position, "] = ", symbol, " (an escape reaches 2^31 from its row at most)");
    std::uint32_t digits = 0;
    while (digits < kMaxDigits && raw >> (digits * kDigitBits) != 0) ++digits;
    for (std::uint32_t i = digits; i-- > 0;) {
        put_digit(writer, static_cast<std::uint32_t>(raw >> (i * kDigitBits)) & kDigitMax);
    }
    put_digit(writer, digits);  // at most 8 digits, so that one base-15 unary digit holds their number
}

template <class Index>
[[gnu::always_inline]] inline void encode_one(Writer& writer, const std::int32_t* symbols, const Index* indexes,
                                              std::size_t i, const Tables& tables) {
    const std::uint32_t number = row_number(indexes[i]);
    const std::int64_t symbol = symbols[i];
    if (SC_UNLIKELY(number >= tables.rows())) bad_index(static_cast<std::int32_t>(number), i, tables.rows());
    const Row row = tables.row_data()[number];
    const std::int64_t value = symbol - row.offset;
    std::uint64_t plain = static_cast<std::uint64_t>(value);
    if (SC_UNLIKELY(plain >= row.escape)) {
        put_escape(writer, value, row.escape, i, symbol);
        plain = row.escape;
    }
    put(writer, tables.codes()[row.first_symbol + plain]);
}

[[noreturn, gnu::noinline, gnu::cold]] void too_short(std::size_t size, std::size_t position) {
    damaged("a stream of ", size, " bytes ends before symbol ", position);
}

inline void refill(Reader& reader, std::size_t position) {
    if (SC_UNLIKELY(reader.next == reader.end)) too_short(reader.size, position);
    std::uint32_t word;
    std::memcpy(&word, reader.next, 4);
    reader.next += 4;
    reader.state = (reader.state << 32) | word;
}

std::uint32_t get_digit(Reader& reader, std::size_t position) {
    const std::uint32_t digit = static_cast<std::uint32_t>(reader.state) & kDigitMax;
    reader.state >>= kDigitBits;
    if (reader.state < kLowerBound) refill(reader, position);
    return digit;
}

// The symbol of a slot in a bucket that cannot tell; reads the digits of an escape.
[[gnu::noinline]] std::int32_t decode_slow(Reader& reader, const Tables& tables, const Row& row, std::size_t position) {
    const std::uint32_t slot = static_cast<std::uint32_t>(reader.state) & (kProbabilityOne - 1);
    const Interval interval = search_row(tables.view(), row, slot);
    reader.state = std::uint64_t{interval.frequency} * (reader.state >> kProbabilityBits) + slot - interval.start;
    if (reader.state < kLowerBound) refill(reader, position);
    if (interval.symbol != row.escape) return row.offset + static_cast<std::int32_t>(interval.symbol);

    const std::uint32_t digits = get_digit(reader, position);
    if (digits > kMaxDigits) damaged("symbol ", position, ": an escape of ", digits, " digits (of ", kMaxDigits, ")");
    std::uint32_t raw = 0;
    for (std::uint32_t i = 0; i < digits; ++i) raw |= get_digit(reader, position) << (i * kDigitBits);
    const std::int64_t decoded = escaped_symbol(raw, row);
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

template <class Index>
[[gnu::always_inline]] inline void decode_one(Reader& reader, std::int32_t* symbols, const Index* indexes,
                                              std::size_t i, const Tables& tables, const Lookup lookup) {
    const std::uint32_t number = row_number(indexes[i]);
    if (SC_UNLIKELY(number >= lookup.row_count)) bad_index(static_cast<std::int32_t>(number), i, lookup.row_count);
    const Row* row = lookup.rows + number;
    const std::uint32_t slot = static_cast<std::uint32_t>(reader.state) & (kProbabilityOne - 1);
    const Bucket* bucket = lookup.buckets + row->bucket(slot);
    const std::uint64_t next_frequency = bucket->next_frequency;
    if (SC_UNLIKELY(next_frequency == 0)) {
        // By way of a copy: a reader whose address leaves this function would live in memory instead of registers.
        Reader copy = reader;
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
    reader.state = choose(is_second, second, first);
    symbols[i] = row->offset + bucket->symbol + is_second;
    if (SC_UNLIKELY(reader.state < kLowerBound)) refill(reader, i);
}

// The symbols [begin, begin + size) of stream k of n.
struct Share {
    std::size_t begin, size;
    Share(std::size_t count, std::size_t n, std::size_t k)
        : begin(count / n * k), size(k + 1 < n ? count / n : count - count / n * k) {}
};

}  // namespace

void Writer::flush_to(unsigned char* bytes) const {
    const std::uint32_t ends[2] = {static_cast<std::uint32_t>(state), static_cast<std::uint32_t>(state >> 32)};
    std::memcpy(bytes, ends, 8);
    for (auto word = words.rbegin(); word != words.rend(); ++word) {
        bytes += 4;
        std::memcpy(bytes + 4, &*word, 4);
    }
}

Reader::Reader(const unsigned char* bytes, std::size_t count) : next(bytes), end(bytes + count), size(count) {
    if (count < 8 || count % 4 != 0) damaged("a stream of ", count, " bytes (needs 8 or more, in whole words of 4)");
    std::memcpy(&state, bytes, 8);
    next += 8;
    if (state < kLowerBound || state >> 63 != 0) {
        damaged("a stream starts with the state ", state, " (needs 2^31 to 2^63 - 1)");
    }
}

void Reader::finish() const {
    if (next != end) damaged(end - next, " of ", size, " bytes of a stream are left after the last symbol");
    if (state != kLowerBound) damaged("a stream does not end in the state in which its encoder began");
}

template <class Index>
void encode(std::vector<Writer>& writers, const std::int32_t* symbols, const Index* indexes, std::size_t count,
            const Tables& tables) {
    const std::size_t n = writers.size();
    for (std::size_t k = 0; k < n; ++k) {
        const Share share(count, n, k);
        for (std::size_t i = share.begin + share.size; i-- > share.begin;) {
            encode_one(writers[k], symbols, indexes, i, tables);
        }
    }
}

template <class Index>
void decode(std::vector<Reader>& readers, std::int32_t* symbols, const Index* indexes, std::size_t count,
            const Tables& tables) {
    const std::size_t n = readers.size();
    const Lookup lookup(tables);
    for (std::size_t k = 0; k < n; k += 2) {
        // A stream is one chain of dependent steps; with two of them the processor always has something to do.
        const Share share(count, n, k);
        const std::size_t begin = share.begin, end = share.begin + share.size;
        Reader reader = readers[k];
        if (k + 1 == n) {
            for (std::size_t i = begin; i < end; ++i) {
                if (i + kPrefetchDistance < end) prefetch(indexes[i + kPrefetchDistance], lookup);
                decode_one(reader, symbols, indexes, i, tables, lookup);
            }
        } else {
            const Share other(count, n, k + 1);  // as long as `share` or longer
            Reader other_reader = readers[k + 1];
            for (std::size_t i = begin; i < end; ++i) {
                decode_one(reader, symbols, indexes, i, tables, lookup);
                decode_one(other_reader, symbols, indexes, i + share.size, tables, lookup);
            }
            for (std::size_t i = end + share.size; i < other.begin + other.size; ++i) {
                decode_one(other_reader, symbols, indexes, i, tables, lookup);
            }
            readers[k + 1] = other_reader;
        }
        readers[k] = reader;
    }
}

#define SC_INSTANTIATE(Index)                                                                                          \
    template void encode(std::vector<Writer>&, const std::int32_t*, const Index*, std::size_t, const Tables&);         \
    template void decode(std::vector<Reader>&, std::int32_t*, const Index*, std::size_t, const Tables&);
SC_INSTANTIATE(std::uint8_t)
SC_INSTANTIATE(std::int16_t)
SC_INSTANTIATE(std::int32_t)

}  // namespace sparsecodec::rans
