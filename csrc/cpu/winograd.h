// 3x3 convolutions of stride 1 with 16 products for four pixels instead of 36: the minimal filtering algorithm
// F(2x2, 3x3) of Lavin and Gray (arXiv 1509.09308). A part of conv2d_act, and of conv_transpose2d_act, where a 5x5 kernel
// of stride 2 is four such convolutions of one input: 49 products for 16 pixels instead of 100.
//
// Arithmetic: sums of four inputs and halved sums of weights are rounded to T and multiplied; products accumulate in
// float; one rounding at the end. The bits do not depend on threads, batch, or the picture around a pixel, those of float
// not on the instruction set either; they are other ones than those of igemm::Gemm, so whether a layer is computed in
// this way depends on the layer alone. An infinite input makes NaN of the tiles that read it.
#pragma once

#include <vector>

#include "cpu/igemm.h"
#include "cpu/image.h"

namespace sparsecodec {

template <class T>
class Winograd {  // T, the type of the pictures: float or bf16
  public:
    // Whether layers of k -> n channels gain by it, from 32 channels on: in float on any CPU, in bf16 with AVX-512 and
    // without AMX.
    // 64 -> 64, 512x256 pixels, one core of a busy Zen 4 machine, 2026-11: 46 -> 30 ms; 32 -> 32: 12 -> 9.8 ms.
    static bool pays(int k, int n);

    // One convolution. Its pixel (i, j) starts at (i * step + y, j * step + x) of the result.
    struct Part {
        const float* weights;  // [n, k, 3, 3], host, borrowed during construction only
        int y = 0, x = 0;
        bool above = true, left = true;  // whether the first row, the first column of the kernels is not all zeros
    };

    // bias: [n] of each part, or null; host, borrowed during construction only.
    Winograd(const std::vector<Part>& parts, const float* bias, int n, int k, int padding, int step,
             const igemm::Layout& layout);

    struct Call {
        Image<const T> x;              // channel 0 is the first that the weights read
        Image<T> out;                  // as result() of the layer says
        const Image<const T>* residual;  // or null
        igemm::Activation activation;
        const float* scale;                      // as in igemm::Epilogue
        std::ptrdiff_t copy_from;                // channels of residual from here on are copied to out
    };
    void run(const Call& call) const;

  private:
    struct Scratch;
    struct Products {
        int y, x;
        bool above, left;
        std::vector<int> cells;  // row i, column j of a transformed tile: i * 4 + j; those without products left out
        std::vector<igemm::Gemm<T>> gemms;  // of each cell
    };
    void run_tiles(const Call& call, std::ptrdiff_t first, std::ptrdiff_t count, Scratch& scratch) const;
    void run_part(const Products& part, const Call& call, std::ptrdiff_t first, std::ptrdiff_t count,
                  Scratch& scratch) const;

    igemm::Isa isa_;
    int k_, padding_, step_;
    std::vector<Products> parts_;
};

}  // namespace sparsecodec
