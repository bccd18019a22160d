// integer_deform_columns: bilinear samples of int16 where offsets have moved the taps of a 3x3 convolution. What it
// computes: sparsecodec/ops/integer_deform_columns.py. Exact: the same bits on every backend and instruction set.
#pragma once

#include <cstdint>

#include "cpu/bilinear.h"
#include "cpu/image.h"

namespace sparsecodec {

constexpr int kColumnTaps = 9;

// x: [n, c, h, w] with (h + 4) (w + 4) < 2^31; out: [n, 9 c, h, w], not the memory of x; groups: a divisor of c.
// offset: [n, 18 groups, h, w] in units of 2^-16 pixels; mask: [n, 9 groups, h, w] in units of 2^-14, or null.
void integer_deform_columns(const Image<const std::int16_t>& x, const Strided<std::int32_t>& offset,
                            const Strided<std::int16_t>* mask, int groups, const Image<std::int16_t>& out);

}  // namespace sparsecodec
