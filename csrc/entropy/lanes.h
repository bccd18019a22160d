// The lanes coder: the payload of portable streams, docs/bitstream.md section 3b. Symbols take turns on up to 32 states
// that share one sequence of words, so that vector instructions decode many at a time, and groups of lanes on threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "check.h"
#include "common/lanes.h"
#include "entropy/rans.h"

namespace sparsecodec::lanes {

constexpr std::int64_t kMaxTotal = std::int64_t{1} << 40;  // symbols of one payload

// Throws std::invalid_argument unless the rows are in ascending order: lanes know no other.
inline void check_order(const rans::Tables& tables) {
    SC_CHECK(tables.order() == rans::Order::kAscending, "tables: zigzag rows (lanes need ascending ones)");
}

// The calls' symbols, kept until finish(): rANS writes in reverse.
class Encoder {
public:
    // Throws std::invalid_argument unless 0 <= total <= kMaxTotal. Allocates nothing.
    explicit Encoder(std::int64_t total);

    // Adds a coding call.
    // symbols, indexes: host, `count` values each, borrowed for the call. Index: std::uint8_t, std::int16_t,
    // std::int32_t.
    // Throws std::invalid_argument, and adds nothing: an index without a row, a symbol too far from its row, more
    // symbols than the total.
    template <class Index>
    void push(const std::int32_t* symbols, const Index* indexes, std::int64_t count,
              std::shared_ptr<const rans::Tables> tables);

    // The payload; the encoder is then empty. Throws std::invalid_argument unless `total` symbols were pushed.
    std::vector<unsigned char> finish();

private:
    struct Call {
        std::vector<std::int32_t> symbols, indexes;
        std::shared_ptr<const rans::Tables> tables;
    };
    struct Written;  // a group
    Written write(std::int64_t group) const;

    std::int64_t total_, pushed_ = 0;
    Layout layout_;
    std::vector<Call> calls_;
};

// One group while it is read. Borrows the bytes; reads none past `end`.
struct Group {
    std::uint32_t states[kMaxLanes];  // between two symbols, kLowerBound <= state
    const unsigned char* next;
    const unsigned char* end;  // next + an even number of bytes

    bool take(std::uint32_t& word) {
        if (next == end) return false;
        word = static_cast<std::uint32_t>(next[0] | next[1] << 8);
        next += 2;
        return true;
    }
};

// Which decode_* below to use. All give the same symbols, faults and groups.
enum class Isa { kScalar, kAvx2, kAvx512 };

// The best one of this CPU, or what SPARSECODEC_CPU_ISA says (igemm.h; beyond avx512 they have none of their own here).
Isa isa();

class Decoder {
public:
    // payload: host, `size` bytes, any alignment, borrowed while the decoder lives.
    // Throws BitstreamError: not the payload of `total` symbols. std::invalid_argument unless 0 <= total <= kMaxTotal.
    // Allocates by the total, and only after the payload has been found long enough for that many lanes.
    Decoder(const unsigned char* payload, std::size_t size, std::int64_t total);

    // The next coding call.
    // symbols: host, `count` values, written; may be the memory of indexes if those are int32.
    // indexes: host, `count` values, borrowed.
    // Throws BitstreamError that names the group; std::invalid_argument: an index without a row, more symbols than are
    // left of the total. Of several faults, that of the first group counts. After an error the decoder is useless and
    // says so.
    template <class Index>
    void decode(std::int32_t* symbols, const Index* indexes, std::int64_t count, const rans::Tables& tables);

    // Throws BitstreamError unless each group's words are used up and its states are back at their start,
    // std::invalid_argument unless `total` symbols were decoded.
    void finish() const;

private:
    void check_usable() const;
    [[noreturn]] void raise(const Fault& fault, std::size_t group, std::size_t rows) const;

    std::int64_t total_, decoded_ = 0;
    Layout layout_;
    Isa isa_;
    bool failed_ = false;
    std::vector<Group> groups_;
};

// A group's share of a call: `count` symbols, the first one of lane 0. Fault::position counts from there; after a fault
// the group has no defined state. Buffers as for Decoder::decode. scalar: any `lanes`. avx2: 8, 16 or 32 lanes; needs
// AVX2. avx512: 16 or 32 lanes; needs AVX512F, BW, DQ and VL.
template <class Index>
Fault decode_scalar(Group& group, int lanes, const TableRows& tables, std::int32_t* symbols, const Index* indexes,
                    std::int64_t count);
#if defined(__x86_64__)
template <class Index>
Fault decode_avx2(Group& group, int lanes, const TableRows& tables, std::int32_t* symbols, const Index* indexes,
                  std::int64_t count);
template <class Index>
Fault decode_avx512(Group& group, int lanes, const TableRows& tables, std::int32_t* symbols, const Index* indexes,
                    std::int64_t count);
#endif

}  // namespace sparsecodec::lanes
