// integer_gate: a table of 2^16 values and sums of channel groups. What it computes: sparsecodec/ops/integer_gate.py.
//
// Arithmetic: exact. One code for all instruction sets: a core reads two values of a table per clock, which gathers do
// not exceed.
#pragma once

#include <cstdint>

#include "cpu/image.h"

namespace sparsecodec {

// x: [n, c * chunks, h, w], out: [n, c, h, w], not the same memory. table: host, 2^16 values, those of -2^15 first.
void integer_gate(const Image<const std::int16_t>& x, const std::int16_t* table, int chunks,
                  const Image<std::int16_t>& out);

}  // namespace sparsecodec
