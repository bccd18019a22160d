// Weighted sums of four pixels: what warp and deform_conv2d are made of. Plain float multiplications and additions in one
// order, no fma: the same bits on every backend and instruction set.
#pragma once

#include <cstddef>

#include "cpu/igemm.h"

namespace sparsecodec {

// A borrowed batch [n, c, h, w] of numbers in host memory, in any layout; strides in elements.
template <class T>
struct Strided {
    const T* data = nullptr;
    std::ptrdiff_t stride_n = 0, stride_c = 0, stride_h = 0, stride_w = 0;
};
using Planes = Strided<float>;

// Upper left, upper right, lower left, lower right.
template <class T>
struct Samples {
    const T* at[4];
    float weight[4];
};

// out[i] = the weighted sum of four samples, i < c, rounded once; T: float or igemm::bf16.
template <class T>
using Blend = void (*)(const Samples<T>& samples, std::ptrdiff_t c, T* out);

// The kernel of igemm::isa().
template <class T>
Blend<T> blend_kernel();

}  // namespace sparsecodec
