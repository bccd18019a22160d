// Rows of a depthwise 3x3 convolution, the middle of depth_conv_block.
//
// Arithmetic, in float for every T: acc = bias; acc = fma(x, w, acc) over the taps in the order (row, column); then the
// activation. The bits of a float result depend neither on the instruction set nor on how a row is cut.
#pragma once

#include <cstddef>
#include <vector>

#include "cpu/igemm.h"

namespace sparsecodec {

inline constexpr int kLanes = 16;  // channels are padded to a multiple of this

struct DepthwiseArgs {
    const float* rows[3];    // above, here, below: [m + 2][stride], `stride` elements apart, 64-byte aligned
    std::ptrdiff_t stride;   // multiple of kLanes, at least `channels` rounded up to kLanes
    int m, channels;
    const float* weights;    // [9][stride], 64-byte aligned
    const float* bias;       // [stride], 64-byte aligned
    float slope;             // factor of negative results: 1 = identity, 0 = ReLU
};

// out: [m][out_stride] of T; `channels` rounded up to kLanes are written per pixel. T: float or bf16.
template <class T>
using DepthwiseRow = void (*)(const DepthwiseArgs& args, T* out, std::ptrdiff_t out_stride);

template <class T>
DepthwiseRow<T> depthwise_row(igemm::Isa isa);

}  // namespace sparsecodec
