// compact_symbols and expand_symbols on the CPU. What they compute: sparsecodec/ops/ under these names. All pointers are
// host memory; outputs must not overlap inputs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sparsecodec {

// indexes: [n]; symbols: [n] or null; packed: [n]; packed_symbols: [n], null with symbols. Returns how many are kept.
std::ptrdiff_t compact_symbols(const std::int16_t* indexes, const std::int32_t* symbols, std::ptrdiff_t n,
                               std::int16_t* packed, std::int32_t* packed_symbols);

// symbols: [available]; indexes, expanded: [n]. Kept positions beyond the last symbol get 0.
void expand_symbols(const std::int32_t* symbols, std::ptrdiff_t available, const std::int16_t* indexes,
                    std::ptrdiff_t n, std::int32_t* expanded);

}  // namespace sparsecodec
