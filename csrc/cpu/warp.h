// warp: bilinear samples at positions that a flow has moved. What it computes: sparsecodec/ops/warp.py. Plain float
// multiplications and additions in one order, no fma: the same bits on every backend and instruction set.
#pragma once

#include <cstddef>

#include "cpu/image.h"

namespace sparsecodec {

// A borrowed batch [n, 2, h, w] in host memory, in pixels: columns, then rows.
struct Flow {
    const float* data = nullptr;
    std::ptrdiff_t stride_n = 0, stride_c = 0, stride_h = 0, stride_w = 0;  // elements
};

// x, out: [n, c, h, w], not the same memory; flow of their size. T: float or igemm::bf16.
template <class T>
void warp(const Image<const T>& x, const Flow& flow, const Image<T>& out);

}  // namespace sparsecodec
