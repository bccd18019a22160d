// What the entropy path computes per element, once for CPU and GPU: which channels a pass of the spatial prior codes,
// table indexes from scales, symbols from latents and back. Each step is one IEEE float32 operation (build with
// -ffp-contract=off, nvcc: -fmad=false), so every backend gives the same bits.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"

namespace sparsecodec {

// One pass. The channels are cut into `groups` equal runs; at (row, column) the pass codes exactly one of them.
struct Part {
    int groups;
    std::int8_t active[4];  // by cell 2 * (row % 2) + column % 2

    SC_HOST_DEVICE int at(std::ptrdiff_t row, std::ptrdiff_t column) const {
        return active[2 * (row & 1) + (column & 1)];
    }
};

struct NamedPart {
    const char* name;
    Part part;
};

// "even" and "odd" are the two passes of EVC and DCVC-HEM, "quarter0" .. "quarter3" the four of DCVC-DC and -FM.
inline constexpr NamedPart kParts[] = {
    {"all", {1, {0, 0, 0, 0}}},      {"even", {2, {0, 1, 1, 0}}},     {"odd", {2, {1, 0, 0, 1}}},
    {"quarter0", {4, {0, 1, 2, 3}}}, {"quarter1", {4, {3, 2, 1, 0}}}, {"quarter2", {4, {2, 3, 0, 1}}},
    {"quarter3", {4, {1, 0, 3, 2}}},
};

// Thresholds below the scale; NaN counts as above all of them. thresholds: [n], ascending.
SC_HOST_DEVICE inline int scale_index(float scale, const float* thresholds, int n) {
    int low = 0;
    while (n > 0) {
        const int half = n / 2;
        if (!(thresholds[low + half] >= scale)) {
            low += half + 1;
            n -= half + 1;
        } else {
            n = half;
        }
    }
    return low;
}

// round(y / step - mean), ties to even, within [-limit, limit]; NaN gives 0. limit <= 2^24.
SC_HOST_DEVICE inline std::int32_t quantize(float residual, float limit) {
    float rounded = nearbyintf(residual);
    rounded = rounded < -limit ? -limit : rounded;
    rounded = rounded > limit ? limit : rounded;
    return rounded == rounded ? static_cast<std::int32_t>(rounded) : 0;
}

}  // namespace sparsecodec
