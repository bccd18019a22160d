// Rows of cumulative frequencies as the coders search them: one layout for the streams of 64-bit states, for lanes, for
// vector instructions and for GPUs.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace sparsecodec {

inline constexpr unsigned kDigitBits = 4;  // of an escape
inline constexpr std::uint32_t kDigitMax = (1u << kDigitBits) - 1;
inline constexpr std::uint32_t kMaxDigits = 32 / kDigitBits;

// A run of slots in which at most two symbols meet: `symbol` from `start` on, the next one from `next_start` on. With
// next_frequency = 0, more of them or the escape are in it: those are looked up in the row itself, from `symbol` on.
struct Bucket {
    std::uint16_t start, next_start;  // first slots of the two symbols; the first one has next_start - start
    std::uint16_t next_frequency;     // slots of the second one
    std::uint16_t symbol;             // counted from the row's first
};

struct Row {
    std::uint32_t place;         // first bucket << kShiftBits | shift; slot >> shift counts buckets from there
    std::int32_t offset;         // the row's first symbol; beside `place`, so that one 64-bit load reads both
    std::uint32_t first_symbol;  // into cdf
    std::uint32_t escape;        // number of plain symbols; the symbol of this number escapes

    static constexpr unsigned kShiftBits = 5;  // what a shift of 32 bits looks at anyway
    SC_HOST_DEVICE std::uint32_t shift() const { return place & ((1u << kShiftBits) - 1); }
    SC_HOST_DEVICE std::uint32_t bucket(std::uint32_t slot) const { return (place >> kShiftBits) + (slot >> shift()); }
};

// The arrays of rans::Tables, in host or in device memory.
struct TableRows {
    const Row* rows;           // [row_count]
    const Bucket* buckets;     // where the rows say
    const std::uint32_t* cdf;  // of row r: escape + 2 values from first_symbol on
    std::uint32_t row_count;
};

struct Interval {
    std::uint32_t symbol;  // counted from the row's first; row.escape: the escape
    std::uint32_t start, frequency;
};

// The interval that owns `slot` (below 65536), searched in the row; at most 16 steps.
SC_HOST_DEVICE inline Interval search_row(const TableRows& tables, const Row& row, std::uint32_t slot) {
    const std::uint32_t* cdf = tables.cdf + row.first_symbol;
    const std::uint32_t bucket = row.bucket(slot);
    const bool is_last = (slot | ((1u << row.shift()) - 1)) == 0xffff;
    // The symbol in which the next bucket begins is the last one that can be in this one.
    std::uint32_t symbol = tables.buckets[bucket].symbol;
    std::uint32_t above = (is_last ? row.escape : tables.buckets[bucket + 1].symbol) + 1;
    while (above - symbol > 1) {
        const std::uint32_t middle = symbol + (above - symbol) / 2;
        if (cdf[middle] <= slot) {
            symbol = middle;
        } else {
            above = middle;
        }
    }
    return {symbol, cdf[symbol], cdf[symbol + 1] - cdf[symbol]};
}

// The same by way of the bucket.
SC_HOST_DEVICE inline Interval find_interval(const TableRows& tables, const Row& row, std::uint32_t slot) {
    const Bucket bucket = tables.buckets[row.bucket(slot)];
    if (bucket.next_frequency == 0) return search_row(tables, row, slot);
    const bool second = slot >= bucket.next_start;
    return {bucket.symbol + std::uint32_t{second}, second ? bucket.next_start : bucket.start,
            second ? bucket.next_frequency : std::uint32_t{bucket.next_start} - bucket.start};
}

// The symbol of an escape with the digits `raw`; it may exceed 32 bits, which is damage.
SC_HOST_DEVICE inline std::int64_t escaped_symbol(std::uint32_t raw, const Row& row) {
    const std::int64_t half = raw >> 1;
    return row.offset + ((raw & 1) != 0 ? -half - 1 : half + static_cast<std::int64_t>(row.escape));
}

}  // namespace sparsecodec
