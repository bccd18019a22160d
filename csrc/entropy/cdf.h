// From probabilities to the integer cumulative frequencies that rANS codes with.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sparsecodec {

constexpr int kProbabilityBits = 16;
constexpr std::uint32_t kProbabilityOne = 1u << kProbabilityBits;

// Quantises a distribution to frequencies that sum to 65536, each at least 1; a zero is raised by taking 1 from the
// smallest frequency above 1. Integer for integer what CompressAI and the DCVC family compute.
//
// pmf: host, `count` values, borrowed: the symbols' probabilities, the escape symbol's last. Need not sum to 1.
// cdf: host, `count` + 1 values, written: 0 .. 65536, strictly increasing.
//
// Throws std::invalid_argument: no symbols, more than 65536 of them, a probability that is negative, above 2 or not
// finite, or all of them so small that they quantise to nothing.
void pmf_to_quantized_cdf(const float* pmf, std::size_t count, std::int32_t* cdf);

}  // namespace sparsecodec
