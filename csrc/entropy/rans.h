// rANS with 16-bit probabilities, byte for byte the two coders of the published codecs; docs/bitstream.md
// specifies them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "common/table_rows.h"

namespace sparsecodec {

// Bytes that no encoder wrote. Reaches Python as sparsecodec.errors.BitstreamError.
class BitstreamError : public std::runtime_error {
    using std::runtime_error::runtime_error;
};

namespace rans {

// CompressAI, EVC, DCVC, DCVC-HEM and DCVC-DC.
struct Rans64 {
    using State = std::uint64_t;
    using Unit = std::uint32_t;                  // of what is written and read at a time
    static constexpr unsigned kLowerBits = 31;   // between two symbols, 2^31 <= state < 2^(31 + bits of a unit)
    static constexpr unsigned kDigitBits = 4;    // of an escape
};

// DCVC-FM, DCVC-RT and DCVC-UF.
struct Rans32 {
    using State = std::uint32_t;
    using Unit = std::uint8_t;
    static constexpr unsigned kLowerBits = 23;
    static constexpr unsigned kDigitBits = 2;
};

// The state in which an encoder begins.
template <class Coder>
constexpr typename Coder::State kFirstState = typename Coder::State{1} << Coder::kLowerBits;

// How the places of a row number its symbols.
enum class Order {
    kAscending,  // offset, offset + 1, ..
    kZigzag,     // 0, 1, -1, 2, -2, .. (DCVC-UF); an escape continues the count
};

// The cumulative frequencies of `rows` distributions, checked once and laid out for coding. Immutable, so that any
// number of coders and threads share one.
class Tables {
public:
    // cdf: host, `rows` x `columns` values, row-major, borrowed for the call. Row r holds 0 = c_0 < .. < c_{n-1} =
    //      65536 in its first n = lengths[r] places. Its symbols are offsets[r] .. offsets[r] + n - 3; the last
    //      interval is the escape.
    // lengths, offsets: host, `rows` values each, borrowed for the call.
    // order: kZigzag needs offsets of 0.
    // Throws std::invalid_argument that names the row and the value.
    Tables(const std::int32_t* cdf, std::size_t rows, std::size_t columns, const std::int32_t* lengths,
           const std::int32_t* offsets, Order order = Order::kAscending);

    std::size_t rows() const { return rows_.size(); }
    Order order() const { return order_; }
    std::size_t bytes() const;

    static constexpr std::size_t kPrefetched = 64;  // there are this many buckets behind the first one of each row
    // What an encoder does for a symbol, without dividing: state div f = mulhi(state, reciprocal) >> shift.
    struct Code {
        std::uint64_t reciprocal;
        std::uint32_t bias;
        std::uint16_t complement;  // 65536 - f
        std::uint16_t shift;
    };

    const Row* row_data() const { return rows_.data(); }
    const Bucket* buckets() const { return buckets_.data(); }
    std::size_t bucket_count() const { return buckets_.size(); }
    const std::uint32_t* cdf() const { return cdf_.data(); }
    std::size_t cdf_count() const { return cdf_.size(); }
    TableRows view() const {
        return {rows_.data(), buckets_.data(), cdf_.data(), static_cast<std::uint32_t>(rows_.size())};
    }
    const Code* codes() const { return codes_.data(); }

private:
    void add_buckets(Row& row);
    void add_codes(const Row& row);

    Order order_;
    std::vector<Row> rows_;
    std::vector<Bucket> buckets_;
    std::vector<std::uint32_t> cdf_;
    std::vector<Code> codes_;
};

// One stream while it is written: the encoder visits the symbols last to first.
template <class Coder>
struct BasicWriter {
    typename Coder::State state = kFirstState<Coder>;
    std::vector<typename Coder::Unit> units;  // in the order written; the stream has them in reverse, behind the state

    std::size_t size() const { return sizeof(state) + units.size() * sizeof(typename Coder::Unit); }
    void flush_to(unsigned char* bytes) const;  // host, size() bytes, written
};

// One stream while it is read. Borrows the bytes; reads none past `end`.
template <class Coder>
struct BasicReader {
    typename Coder::State state = 0;
    const unsigned char* next = nullptr;
    const unsigned char* end = nullptr;
    std::size_t size = 0;

    // Throws BitstreamError unless `bytes` can begin with a stream: a state within its bounds, then whole units.
    BasicReader(const unsigned char* bytes, std::size_t count);

    std::size_t consumed() const { return size - static_cast<std::size_t>(end - next); }

    // Throws BitstreamError unless the state is back at its start: true of every stream whose symbols were all decoded
    // with the tables they were coded with.
    void finish_state() const;

    // The same, and everything was read.
    void finish() const;
};

using Writer = BasicWriter<Rans64>;
using Reader = BasicReader<Rans64>;

// Codes symbols[0 .. count) with the rows indexes[0 .. count) of `tables` in front of what the writers hold. With n
// writers, each of the first n - 1 takes count / n symbols, the last one the rest; two are worked on at a time.
//
// symbols, indexes: host, `count` values each, borrowed. Index: std::uint8_t, std::int16_t, std::int32_t.
// Throws std::invalid_argument: an index without a row, a symbol too far from its row (the writers are then useless).
template <class Coder, class Index>
void encode(std::vector<BasicWriter<Coder>>& writers, const std::int32_t* symbols, const Index* indexes,
            std::size_t count, const Tables& tables);

// Decodes symbols[0 .. count), split over the readers as encode() splits them.
//
// symbols: host, `count` values, written; may be the memory of indexes.
// indexes: host, `count` values, borrowed.
// Throws BitstreamError: a stream ends too early or holds an impossible escape. Throws std::invalid_argument: an index
// without a row. In both cases the readers are then useless.
template <class Coder, class Index>
void decode(std::vector<BasicReader<Coder>>& readers, std::int32_t* symbols, const Index* indexes, std::size_t count,
            const Tables& tables);

}  // namespace rans
}  // namespace sparsecodec
