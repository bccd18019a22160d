// Factors and shifts of channels, as the kernels of csrc/cpu that requantise integers hold them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sparsecodec::integer {

inline constexpr int kHighShift = 33;  // of Kind::kHigh

// What is known of some channels' numbers. kHigh: all shifts are at least 33, so that the upper half of a product is
// enough and nothing needs a clip; kHighLinear: the two factors of each channel are equal, too.
enum class Kind { kAny, kHigh, kHighLinear };

struct FactorRows {  // host, borrowed; whole vectors are read: past the last channel stand 0, 0 and kHighShift
    const std::int32_t *positive, *negative, *shift;
};

inline Kind kind_of(const FactorRows& rows, std::ptrdiff_t n) {
    bool high = true, linear = true;
    for (std::ptrdiff_t c = 0; c < n; ++c) {
        high = high && rows.shift[c] >= kHighShift;
        linear = linear && rows.positive[c] == rows.negative[c];
    }
    return !high ? Kind::kAny : linear ? Kind::kHighLinear : Kind::kHigh;
}

}  // namespace sparsecodec::integer
