// Generalised divisive normalisation in one pass. What it computes: sparsecodec/ops/gdn.py.
//
// Arithmetic, float: norm = beta; norm = fma(x * x, gamma, norm) over the input channels in order; then one square root
// and one division or multiplication. bf16: the squares are rounded to bf16 for the product, all else is float.
#pragma once

#include "cpu/igemm.h"
#include "cpu/image.h"

namespace sparsecodec {

template <class T>
class Gdn {
  public:
    // beta: [c], gamma: [c][c], host, borrowed during construction only.
    Gdn(const float* beta, const float* gamma, int c, bool inverse);

    int channels() const { return gemm_.n(); }

    // x, out: [n, channels, h, w]; out may be x.
    void run(const Image<const T>& x, const Image<T>& out) const;

  private:
    igemm::Gemm<T> gemm_;
    bool inverse_;
};

}  // namespace sparsecodec
