// prior_context: values of the symbols of one pass, and the int16 tensor that the next network reads. What it computes:
// sparsecodec/ops/prior_context.py.
//
// Arithmetic: exact. One code for all instruction sets of a processor: what x86-64 always has is as fast as its memory.
#pragma once

#include <cstdint>

#include "common/spatial_prior.h"
#include "cpu/image.h"

namespace sparsecodec {

inline constexpr int kFractionBits = 16;  // of fixed-point values

// symbols: host, [n, c / part.groups, h, w] contiguous, any values. means, scales, step: [n, c, h, w], values in
// [-2^30, 2^30). exponent: -45 to 14. first: [n, c, h, w], context: [n, 4 c, h, w], not the memory of another argument.
void prior_context(const Part& part, int exponent, const std::int32_t* symbols, const Image<const std::int32_t>& means,
                   const Image<const std::int32_t>& scales, const Image<const std::int32_t>& step,
                   const Image<std::int16_t>& context, const Image<std::int32_t>& first);

}  // namespace sparsecodec
