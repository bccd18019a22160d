// integer_warp: bilinear samples of int16 at positions that a flow has moved. What it computes:
// sparsecodec/ops/integer_warp.py. Exact: the same bits on every backend and instruction set.
#pragma once

#include <cstdint>

#include "cpu/bilinear.h"
#include "cpu/image.h"

namespace sparsecodec {

// x, out: [n, c, h, w], not the same memory; flow: [n, 2, h, w] in units of 2^-16 pixels, columns, then rows.
void integer_warp(const Image<const std::int16_t>& x, const Strided<std::int32_t>& flow,
                  const Image<std::int16_t>& out);

}  // namespace sparsecodec
