#include <algorithm>
#include <string>

#include "check.h"
#include "entropy/cdf.h"
#include "entropy/rans.h"

namespace sparsecodec::rans {
namespace {

// Keep every position in the pools within 32 bits, and every symbol with room for escapes on both sides.
constexpr std::size_t kMaxRows = std::size_t{1} << 16;
constexpr std::size_t kMaxValues = std::size_t{1} << 28;
constexpr std::int32_t kMaxOffset = 1 << 30;

constexpr int kMinBucketBits = 2;
constexpr int kMaxBucketBits = 10;

// A row gets more buckets until no more of its slots than this need the slow lookup (escapes aside). More slow slots
// cost mispredicted branches, more buckets cost cache: scales up to 8 decode, in Msym/s with one and with two streams,
// at 1/12: 169, 232; 1/20: 190, 274; 1/40: 190, 291; 1/80: 165, 273; 1/160: 144, 184 (EPYC Zen 5, 2026-11-21).
constexpr std::uint32_t kMaxSlowSlots = kProbabilityOne / 40;

// The symbol that owns `slot`. cdf: `count` + 1 values.
std::uint32_t owner(const std::uint32_t* cdf, std::uint32_t count, std::uint32_t slot) {
    return static_cast<std::uint32_t>(std::upper_bound(cdf, cdf + count, slot) - cdf) - 1;
}

}  // namespace

Tables::Tables(const std::int32_t* cdf, std::size_t rows, std::size_t columns, const std::int32_t* lengths,
               const std::int32_t* offsets, Order order)
    : order_(order) {
    SC_CHECK(rows >= 1 && rows <= kMaxRows, "cdf: ", rows, " rows (needs 1 to ", kMaxRows, ")");
    const std::size_t longest = std::min<std::size_t>(columns, kProbabilityOne + 1);
    for (std::size_t r = 0; r < rows; ++r) {
        const std::int32_t* values = cdf + r * columns;
        const std::int32_t length = lengths[r];
        SC_CHECK(length >= 2 && static_cast<std::size_t>(length) <= longest, "lengths[", r, "] = ", length,
                 " (needs 2 to ", longest, ")");
        SC_CHECK(offsets[r] >= -kMaxOffset && offsets[r] <= kMaxOffset, "offsets[", r, "] = ", offsets[r], " (needs -",
                 kMaxOffset, " to ", kMaxOffset, ")");
        SC_CHECK(order == Order::kAscending || offsets[r] == 0, "offsets[", r, "] = ", offsets[r],
                 " (zigzag rows begin with the symbol 0)");
        SC_CHECK(values[0] == 0, "cdf[", r, "][0] = ", values[0], " (needs 0)");
        for (std::int32_t i = 1; i < length; ++i) {
            SC_CHECK(values[i] > values[i - 1], "cdf[", r, "][", i, "] = ", values[i], " after ", values[i - 1],
                     " (needs strictly increasing values)");
        }
        SC_CHECK(values[length - 1] == static_cast<std::int32_t>(kProbabilityOne), "cdf[", r, "][", length - 1,
                 "] = ", values[length - 1], " (needs ", kProbabilityOne, " at the end of a row)");

        SC_CHECK(cdf_.size() + longest <= kMaxValues, "cdf: ", rows, " rows have more than ", kMaxValues, " values");
        Row row{};
        row.first_symbol = static_cast<std::uint32_t>(cdf_.size());
        row.offset = offsets[r];
        row.escape = static_cast<std::uint32_t>(length) - 2;
        cdf_.insert(cdf_.end(), values, values + length);
        add_buckets(row);
        add_codes(row);
        rows_.push_back(row);
    }
    buckets_.resize(buckets_.size() + kPrefetched);
}

std::size_t Tables::bytes() const {
    return rows_.size() * sizeof(Row) + buckets_.size() * sizeof(Bucket) + cdf_.size() * sizeof(std::uint32_t) +
           codes_.size() * sizeof(Code);
}

void Tables::add_buckets(Row& row) {
    const std::uint32_t* cdf = cdf_.data() + row.first_symbol;
    const std::uint32_t count = row.escape + 1;
    // A bucket is slow if the escape or a third symbol is in it.
    const auto is_slow = [&](std::uint32_t first_slot, std::uint32_t slots, std::uint32_t symbol) {
        const std::uint32_t last_symbol = owner(cdf, count, first_slot + slots - 1);
        return last_symbol == row.escape || last_symbol > symbol + 1;
    };
    const std::uint32_t escape_slots = kProbabilityOne - cdf[row.escape];
    int bits = kMinBucketBits;
    for (; bits < kMaxBucketBits; ++bits) {
        const std::uint32_t slots = kProbabilityOne >> bits;
        std::uint32_t slow_slots = 0;
        for (std::uint32_t slot = 0; slot < kProbabilityOne; slot += slots) {
            if (is_slow(slot, slots, owner(cdf, count, slot))) slow_slots += slots;
        }
        if (slow_slots <= kMaxSlowSlots + escape_slots) break;
    }
    row.place = static_cast<std::uint32_t>(buckets_.size()) << Row::kShiftBits | (kProbabilityBits - bits);

    const std::uint32_t slots = kProbabilityOne >> bits;
    for (std::uint32_t slot = 0; slot < kProbabilityOne; slot += slots) {
        const std::uint32_t symbol = owner(cdf, count, slot);
        Bucket bucket{};
        if (!is_slow(slot, slots, symbol)) {
            // All fit into 16 bits: slot 65535 is the escape's.
            bucket.start = static_cast<std::uint16_t>(cdf[symbol]);
            bucket.next_start = static_cast<std::uint16_t>(cdf[symbol + 1]);
            bucket.next_frequency = static_cast<std::uint16_t>(cdf[symbol + 2] - cdf[symbol + 1]);
        }
        bucket.symbol = static_cast<std::uint16_t>(symbol);
        buckets_.push_back(bucket);
    }
}

void Tables::add_codes(const Row& row) {
    const std::uint32_t* cdf = cdf_.data() + row.first_symbol;
    for (std::uint32_t symbol = 0; symbol <= row.escape; ++symbol) {
        const std::uint32_t start = cdf[symbol], frequency = cdf[symbol + 1] - start;
        Code code{};
        code.complement = static_cast<std::uint16_t>(kProbabilityOne - frequency);
        if (frequency == 1) {
            // mulhi(x, 2^64 - 1) = x - 1; the bias makes up for the quotient that is one too small.
            code.reciprocal = ~std::uint64_t{0};
            code.bias = start + kProbabilityOne - 1;
        } else {
            // With 2^(l-1) < f <= 2^l and r = ceil(2^(63+l) / f): x div f = x r >> (63 + l) for every x < 2^63, and
            // r < 2^64. The division is done in two steps, base 2^32.
            unsigned l = 1;
            while ((1u << l) < frequency) ++l;
            const std::uint64_t high = std::uint64_t{1} << (31 + l);
            const std::uint64_t low = (high % frequency) << 32;
            code.reciprocal = ((high / frequency) << 32) + low / frequency + (low % frequency != 0);
            code.shift = static_cast<std::uint16_t>(l - 1);
            code.bias = start;
        }
        codes_.push_back(code);
    }
    codes_.push_back(Code{});  // keeps the numbering of codes() that of cdf()
}

}  // namespace sparsecodec::rans
