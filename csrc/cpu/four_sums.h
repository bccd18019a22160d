// y += A x, bit by bit as MKL computes it on processors other than Intel's: per output four sums, each over every fourth
// input, products rounded before they are added; the first sum begins with inputs 0 to 3, one after another; then
// (sum 0 + sum 2) + (sum 1 + sum 3), onto y. Found by probing torch 2.13 on a Zen 4 with numbers that cancel
// (arXiv 2411.00442); MKL promises nothing, so its results are compared before this is used.
//
// MKL holds four floats in a register there and waits for sums; here sixteen outputs go side by side.
#pragma once

#include "cpu/context_rate.h"

namespace sparsecodec {

class FourSums {
  public:
    // Whether the order is known for this size: MKL does what is left over in other ways.
    static bool fits(int n, int k) { return n % 4 == 0 && k % 4 == 0 && k > 0; }

    // weights: [n, k], borrowed during construction only. Needs AVX2.
    FourSums(const float* weights, int n, int k);

    // x: [k]; y: [n].
    void run(const float* x, float* y) const;

  private:
    int n_, k_;
    AlignedFloats packed_;  // [blocks of 16 outputs][k][16]
};

}  // namespace sparsecodec
