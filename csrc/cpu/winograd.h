// 3x3 convolutions of stride 1 in bf16 with 16 products for four pixels instead of 36: the minimal filtering algorithm
// F(2x2, 3x3) of Lavin and Gray (arXiv 1509.09308). A part of conv2d_act.
//
// Arithmetic: sums of four inputs and halved sums of weights are rounded to bf16 and multiplied; products accumulate in
// float; one rounding at the end. The bits do not depend on threads, batch, or the picture around a pixel; they are
// other ones than those of igemm::Gemm, so whether a layer is computed in this way depends on the layer alone. An
// infinite input makes NaN of the tiles that read it.
#pragma once

#include <vector>

#include "cpu/igemm.h"
#include "cpu/image.h"

namespace sparsecodec {

class Winograd {
  public:
    // Whether layers of k -> n channels gain by it on this CPU: with AVX-512 and bf16, without AMX, from 32 channels on.
    // 64 -> 64, 512x256 pixels, one core of a busy Zen 4 machine, 2026-11: 46 -> 30 ms; 32 -> 32: 12 -> 9.8 ms.
    static bool pays(int k, int n);

    // weights: [n, k, 3, 3]; bias: [n] or null; both host, borrowed during construction only.
    Winograd(const float* weights, const float* bias, int n, int k, int padding, const igemm::Layout& layout);

    struct Call {
        Image<const igemm::bf16> x;              // channel 0 is the first that the weights read
        Image<igemm::bf16> out;                  // as Conv2dAct::result says
        const Image<const igemm::bf16>* residual;  // or null
        igemm::Activation activation;
        const float* scale;                      // as in igemm::Epilogue
        int shuffle;
        std::ptrdiff_t copy_from;                // channels of residual from here on are copied to out
    };
    void run(const Call& call) const;

  private:
    struct Scratch;
    void run_tiles(const Call& call, std::ptrdiff_t first, std::ptrdiff_t count, Scratch& scratch) const;

    int k_, padding_;
    std::vector<igemm::Gemm<igemm::bf16>> products_;  // [16]: row i, column j of a transformed tile at i * 4 + j
};

}  // namespace sparsecodec
