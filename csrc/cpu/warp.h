// warp: bilinear samples at positions that a flow has moved. What it computes: sparsecodec/ops/warp.py.
#pragma once

#include "cpu/bilinear.h"
#include "cpu/image.h"

namespace sparsecodec {

// x, out: [n, c, h, w], not the same memory; flow: [n, 2, h, w] in pixels, columns, then rows. T: float or igemm::bf16.
template <class T>
void warp(const Image<const T>& x, const Planes& flow, const Image<T>& out);

}  // namespace sparsecodec
