// The integer arithmetic after a product of integer_conv2d, once for every backend: what portable streams rest on.
// The formulas stand in sparsecodec/ops/integer_conv2d.py; no operation here can overflow for the ranges given.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace sparsecodec {

inline constexpr std::int32_t kFixedLimit = 1 << 30;  // the terms of a sum lie in [-kFixedLimit, kFixedLimit)
inline constexpr int kMinShift = 1, kMaxShift = 62;   // of an accumulator times its factor
inline constexpr int kMaxResidualShift = 30;          // to either side
inline constexpr int kMaxInputShift = 15;             // to either side

SC_HOST_DEVICE inline std::int32_t clip_fixed(std::int64_t v) {
    if (v < -kFixedLimit) return -kFixedLimit;
    return static_cast<std::int32_t>(v < kFixedLimit ? v : kFixedLimit - 1);
}

// clip((acc * factor + 2^(shift - 1)) >> shift); factor: 0 to 2^30 - 1, by the sign of acc.
SC_HOST_DEVICE inline std::int32_t requantized(std::int32_t acc, std::int32_t positive, std::int32_t negative,
                                               int shift) {
    const std::int64_t product = static_cast<std::int64_t>(acc) * (acc < 0 ? negative : positive);
    return clip_fixed((product + (std::int64_t{1} << (shift - 1))) >> shift);
}

// clip(x * 2^left), halves upwards.
SC_HOST_DEVICE inline std::int32_t shifted_residual(std::int32_t x, int left) {
    const std::int64_t wide = x;
    if (left >= 0) return clip_fixed(wide * (std::int64_t{1} << left));
    return clip_fixed((wide + (std::int64_t{1} << (-left - 1))) >> -left);
}

// A sum of two terms, clipped to the result's type.
template <class Out>
SC_HOST_DEVICE inline Out narrowed(std::int32_t v) {
    constexpr std::int32_t top = static_cast<std::int32_t>((std::uint32_t{1} << (8 * sizeof(Out) - 1)) - 1);
    return static_cast<Out>(v < -top - 1 ? -top - 1 : v > top ? top : v);
}

}  // namespace sparsecodec
