#include "cpu/warp.h"

#include <algorithm>


namespace sparsecodec {
namespace {

// The two samples around a position and the second one's weight, which is NaN where the position is.
struct Neighbours {
    std::ptrdiff_t low, high;
    float weight;

    Neighbours(float position, std::ptrdiff_t size) {
        const float last = static_cast<float>(size - 1);
        position = position < 0.0f ? 0.0f : position;
        position = position > last ? last : position;
        low = position == position ? static_cast<std::ptrdiff_t>(position) : 0;
        high = std::min(low + 1, size - 1);
        weight = position - static_cast<float>(low);
    }
};

}  // namespace

template <class T>
void warp(const Image<const T>& x, const Planes& flow, const Image<T>& out) {
    const Blend<T> blend = blend_kernel<T>();
    const std::ptrdiff_t rows = x.n * x.h;
#pragma omp parallel for if (rows * x.w * x.c > 4096)
    for (std::ptrdiff_t row = 0; row < rows; ++row) {
        const std::ptrdiff_t n = row / x.h, y = row % x.h;
        const float* const moved = flow.data + n * flow.stride_n + y * flow.stride_h;
        for (std::ptrdiff_t column = 0; column < x.w; ++column) {
            const float* const by = moved + column * flow.stride_w;
            const Neighbours across(static_cast<float>(column) + by[0], x.w);
            const Neighbours down(static_cast<float>(y) + by[flow.stride_c], x.h);
            const float left = 1 - across.weight, right = across.weight, upper = 1 - down.weight, lower = down.weight;
            const Samples<T> samples{{x.pixel(n, down.low, across.low), x.pixel(n, down.low, across.high),
                                      x.pixel(n, down.high, across.low), x.pixel(n, down.high, across.high)},
                                     {left * upper, right * upper, left * lower, right * lower}};
            blend(samples, x.c, out.pixel(n, y, column));
        }
    }
}

template void warp(const Image<const float>&, const Planes&, const Image<float>&);
template void warp(const Image<const igemm::bf16>&, const Planes&, const Image<igemm::bf16>&);

}  // namespace sparsecodec
