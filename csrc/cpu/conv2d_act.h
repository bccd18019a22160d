// conv2d_act and, with a 1x1 kernel, pointwise. What they compute: sparsecodec/ops/conv2d_act.py, pointwise.py.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/conv_grid.h"
#include "cpu/winograd.h"

namespace sparsecodec {

struct ConvOptions {
    int stride = 1, padding = 0;
    std::vector<std::int32_t> in_index;   // [k] or empty
    std::vector<std::int32_t> out_index;  // [n] or empty
    bool scatter = false;                 // out_index was given, be it empty
    int shuffle = 1;
    igemm::Activation activation;
    bool pinned = true;        // float: the one order of products, not fewer of them
    int chunks = 1;            // as in igemm::Layout
    bool interleaved = false;
};

struct ConvKernel {
    const float* data;  // host, OIHW contiguous, borrowed during construction only
    int n, k, kh, kw;
};

template <class T>
class Conv2dAct {
  public:
    // bias: [kernel.n] host or null. Throws std::invalid_argument for indices or a shuffle that do not fit.
    Conv2dAct(const ConvKernel& kernel, const float* bias, const ConvOptions& options);

    // Size of the result for an input of this size, [n, c, h, w], negative where x is smaller than the kernel; `width`:
    // channels of the residual (scatter only).
    Image<T> result(const Image<const T>& x, std::ptrdiff_t width) const;

    // out, and residual where given, have the size that result() says. residual may be out. scale: [out.c] or null.
    void run(const Image<const T>& x, const Image<T>& out, const Image<const T>* residual,
             const float* scale = nullptr) const;

  private:
    ConvOptions options_;
    ConvKernel kernel_;  // data is null
    Gather gather_;
    std::vector<Grid::Tap> taps_;
    igemm::Gemm<T> gemm_;
    std::unique_ptr<Winograd<T>> winograd_;  // where it is wanted and pays; then gemm_ does not run
    std::ptrdiff_t copy_from_;
    std::vector<T> zeros_;
};

}  // namespace sparsecodec
