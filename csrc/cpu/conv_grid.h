// One pass of an indirect GEMM over a grid of output pixels: what pointwise, conv2d_act and conv_transpose2d_act share.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/igemm.h"
#include "cpu/image.h"

namespace sparsecodec {

struct Grid {
    struct Tap {
        int dy, dx;
    };
    std::ptrdiff_t h = 0, w = 0;  // pixels of the grid
    std::vector<Tap> taps;        // tap t of grid pixel (y, x) reads input (y * stride + dy, x * stride + dx), or zeros
    int stride = 1;
    int out_step = 1, out_y = 0, out_x = 0;  // grid pixel (y, x) writes output (y * out_step + out_y, ...)
};

// Which channels of the input the weights' input channels are.
struct Gather {
    enum class Kind { kRange, kIndex } kind = Kind::kRange;
    int first = 0;                    // kRange: channels [first, first + k)
    std::vector<std::int32_t> index;  // kIndex
    int width = 0;                    // the input needs at least this many channels

    // index: [k] or empty for the first k channels.
    Gather(const std::vector<std::int32_t>& index, int k);
};

// out, residual: pixel (y, x) of the result; `copy_from`: channels of residual from here on are copied to out (scatter).
// zeros: [k] elements of value 0. Splits the grid among OpenMP threads; the result does not depend on how.
template <class T>
struct GridCall {
    const igemm::Gemm<T>& gemm;
    const Grid& grid;
    const Gather& gather;
    const T* zeros;
    Image<const T> x;
    Image<T> out;
    const Image<const T>* residual;
    std::ptrdiff_t copy_from;
    igemm::Activation activation;
    const float* scale = nullptr;  // [out.c] or null, as in igemm::Epilogue
};

template <class T>
void run_grid(const GridCall<T>& call);

}  // namespace sparsecodec
