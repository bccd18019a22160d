// The arithmetic of the lanes coder, once for CPU and GPU: rANS with 32-bit states, 16-bit words, 16-bit probabilities
// and 4-bit escape digits. docs/bitstream.md, section 3b, specifies it; no function here throws.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "common/table_rows.h"

namespace sparsecodec::lanes {

inline constexpr std::uint32_t kLowerBound = 1u << 16;  // between two symbols, kLowerBound <= state < 2^32
inline constexpr unsigned kWordBits = 16;
inline constexpr int kMaxLanes = 32;  // of a group
inline constexpr std::int64_t kSymbolsPerLane = 16384;

// How a picture of so many symbols is coded.
struct Layout {
    int lanes;            // of each group: a power of two
    std::int64_t groups;  // a power of two; 1 unless there are kMaxLanes lanes
};

SC_HOST_DEVICE inline Layout layout_of(std::int64_t total) {
    std::int64_t lanes = 1;
    while (2 * lanes <= total / kSymbolsPerLane) lanes *= 2;
    if (lanes <= kMaxLanes) return {static_cast<int>(lanes), 1};
    return {kMaxLanes, lanes / kMaxLanes};
}

// The symbols [begin, begin + size) of a call of `count` are those of one group.
struct Share {
    std::int64_t begin, size;
};

SC_HOST_DEVICE inline Share share_of(std::int64_t count, std::int64_t groups, std::int64_t group) {
    const std::int64_t each = count / groups;
    return {each * group, group + 1 < groups ? each : count - each * group};
}

SC_HOST_DEVICE inline std::uint32_t slot_of(std::uint32_t state) { return state & 0xffffu; }

// The state behind a symbol of the slots [start, start + frequency), among which slot_of(state) is. 1 or more: a word
// follows if it is below kLowerBound, and one is enough.
SC_HOST_DEVICE inline std::uint32_t without_symbol(std::uint32_t state, std::uint32_t start, std::uint32_t frequency) {
    return frequency * (state >> 16) + slot_of(state) - start;
}

SC_HOST_DEVICE inline bool needs_word(std::uint32_t state) { return state < kLowerBound; }

SC_HOST_DEVICE inline std::uint32_t with_word(std::uint32_t state, std::uint32_t word) {
    return state << kWordBits | word;
}

// What is wrong with a payload, a symbol or an index. Plain data, so that a kernel can hand it to the host.
struct Fault {
    enum Kind : std::int32_t {
        kNone = 0,
        kIndex,   // value: an index without a row
        kShort,   // the words end before the symbol does
        kDigits,  // value: the number of digits of an escape, above kMaxDigits
        kRange,   // value: the symbol of an escape, beyond 32 bits
    };
    std::int32_t kind = kNone;
    std::int64_t position = 0;  // of the symbol in its call
    std::int64_t value = 0;
};

// The word that a state may need. Words: `bool take(std::uint32_t& word)` gives the next word of the group, or false at
// its end; then so does this.
template <class Words>
SC_HOST_DEVICE inline bool refill(std::uint32_t& state, Words& words) {
    std::uint32_t word;
    if (!needs_word(state)) return true;
    if (!words.take(word)) return false;
    state = with_word(state, word);
    return true;
}

// What follows the interval of an escape: its digits. At most nine words are taken.
// Gives the kind of fault; then `state` and `symbol` have no meaning, and fault_value says more.
template <class Words>
SC_HOST_DEVICE inline Fault::Kind decode_escape(std::uint32_t& state, Words& words, const Row& row,
                                                std::int32_t& symbol, std::int64_t& fault_value) {
    std::uint32_t digits = 0, raw = 0;
    for (std::uint32_t i = 0; i <= digits; ++i) {  // the first one is the number of the others
        const std::uint32_t digit = state & kDigitMax;
        state >>= kDigitBits;
        if (!refill(state, words)) return Fault::kShort;
        if (i > 0) {
            raw |= digit << ((i - 1) * kDigitBits);
        } else if (digit > kMaxDigits) {
            fault_value = digit;
            return Fault::kDigits;
        } else {
            digits = digit;
        }
    }
    const std::int64_t value = escaped_symbol(raw, row);
    symbol = static_cast<std::int32_t>(value);
    if (value == symbol) return Fault::kNone;
    fault_value = value;
    return Fault::kRange;
}

// One symbol of one lane with all that belongs to it: lookup, words, escape. Faults as decode_escape's.
template <class Words>
SC_HOST_DEVICE inline Fault::Kind decode_symbol(std::uint32_t& state, Words& words, const TableRows& tables,
                                                const Row& row, std::int32_t& symbol, std::int64_t& fault_value) {
    const Interval interval = find_interval(tables, row, slot_of(state));
    state = without_symbol(state, interval.start, interval.frequency);
    if (!refill(state, words)) return Fault::kShort;
    if (interval.symbol == row.escape) return decode_escape(state, words, row, symbol, fault_value);
    symbol = row.offset + static_cast<std::int32_t>(interval.symbol);
    return Fault::kNone;
}

}  // namespace sparsecodec::lanes
