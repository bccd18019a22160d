// conv_transpose2d_act: one stride-1 convolution per output phase; or one for all of them, whose channels are the phases'
// and are shuffled, where that fills the columns of the product better. What it computes: ops/conv_transpose2d_act.py.
#pragma once

#include <memory>
#include <vector>

#include "cpu/conv2d_act.h"
#include "cpu/winograd.h"

namespace sparsecodec {

template <class T>
class ConvTranspose2dAct {
  public:
    // kernel.data: [k, n, kh, kw] contiguous (torch's order for transposed convolutions); bias: [kernel.n] or null.
    // pinned: as in ConvOptions.
    ConvTranspose2dAct(const ConvKernel& kernel, const float* bias, int stride, int padding, int output_padding,
                       igemm::Activation activation, bool pinned = true);

    // Size of the result for an input of this size, [n, c, h, w].
    Image<T> result(const Image<const T>& x) const;

    void run(const Image<const T>& x, const Image<T>& out) const;

  private:
    struct Phase {
        int y, x;  // output pixels (y + i * stride, x + j * stride)
        std::vector<Grid::Tap> taps;
        igemm::Gemm<T> gemm;
    };
    struct Step {
        int at, offset;  // position in the kernel, and that of the input it reads
    };
    std::vector<Step> steps(int phase, int size) const;
    bool together() const;
    void add_phases(const float* data, const float* bias);
    void add_together(const float* data, const float* bias);
    void add_winograd(const float* data, const float* bias);
    ConvKernel kernel_;  // data is null
    int stride_, padding_, output_padding_;
    igemm::Activation activation_;
    Gather gather_;
    std::vector<Phase> phases_;              // several, or the one of all
    std::unique_ptr<Winograd<T>> winograd_;  // where it is wanted and pays; then phases_ is empty
    std::vector<T> zeros_;
};

}  // namespace sparsecodec
