// deform_conv2d: a convolution whose taps read where offsets have moved them. What it computes:
// sparsecodec/ops/deform_conv2d.py. Samples are those of bilinear.h, the sum that of igemm.h: pinned.
#pragma once

#include "cpu/bilinear.h"
#include "cpu/conv2d_act.h"
#include "cpu/igemm.h"
#include "cpu/image.h"

namespace sparsecodec {

template <class T>  // float or igemm::bf16
class DeformConv2d {
  public:
    // kernel: kh and kw odd. bias: [kernel.n] host or null. border: whether positions are clamped to the picture.
    DeformConv2d(const ConvKernel& kernel, const float* bias, bool border);

    // x: [n, k, h, w]; offset: [n, 2 groups taps, h, w]; mask: [n, groups taps, h, w] or null; out: [n, channels, h, w],
    // not the memory of x. groups: a divisor of k.
    void run(const Image<const T>& x, const Planes& offset, const Planes* mask, int groups, const Image<T>& out) const;

    int inputs() const { return gemm_.k(); }
    int channels() const { return gemm_.n(); }
    int taps() const { return gemm_.taps(); }

  private:
    void sample(const Image<const T>& x, const Planes& offset, const Planes* mask, int groups, std::ptrdiff_t pixel,
                Blend<T> blend, T* to, std::ptrdiff_t tap_step) const;

    struct Tap {
        int row, column;  // beside the pixel
    };

    int kh_, kw_;
    std::vector<Tap> taps_;
    int outside_;  // how far beyond the first and the last pixel a position may lie
    igemm::Gemm<T> gemm_;
    std::vector<T> zeros_;
};

}  // namespace sparsecodec
