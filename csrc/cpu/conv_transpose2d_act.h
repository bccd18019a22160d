// conv_transpose2d_act: one stride-1 convolution per output phase. What it computes: ops/conv_transpose2d_act.py.
#pragma once

#include <vector>

#include "cpu/conv2d_act.h"

namespace sparsecodec {

template <class T>
class ConvTranspose2dAct {
  public:
    // kernel.data: [k, n, kh, kw] contiguous (torch's order for transposed convolutions); bias: [kernel.n] or null.
    ConvTranspose2dAct(const ConvKernel& kernel, const float* bias, int stride, int padding, int output_padding,
                       igemm::Activation activation);

    // Size of the result for an input of this size, [n, c, h, w].
    Image<T> result(const Image<const T>& x) const;

    void run(const Image<const T>& x, const Image<T>& out) const;

  private:
    struct Phase {
        int y, x;  // output pixels (y + i * stride, x + j * stride)
        std::vector<Grid::Tap> taps;
        igemm::Gemm<T> gemm;
    };
    ConvKernel kernel_;  // data is null
    int stride_, padding_, output_padding_;
    igemm::Activation activation_;
    Gather gather_;
    std::vector<Phase> phases_;
    std::vector<T> zeros_;
};

}  // namespace sparsecodec
