#include "cpu/warp.h"

#include <algorithm>

#include "cpu/igemm.h"

namespace sparsecodec {
namespace {

// Upper left, upper right, lower left, lower right.
template <class T>
struct Samples {
    const T* at[4];
    float weight[4];
};

inline void put(float* to, float value) { *to = value; }
inline void put(igemm::bf16* to, float value) { *to = igemm::to_bf16(value); }

namespace scalar {
#include "cpu/warp_pixels.inl"
}  // namespace scalar

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2")
namespace avx2 {
#include "cpu/warp_pixels.inl"
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
namespace avx512 {
#include "cpu/warp_pixels.inl"
}  // namespace avx512
#pragma GCC pop_options
#endif

template <class T>
auto blend_for(igemm::Isa isa) {
#if defined(__x86_64__)
    if (isa >= igemm::Isa::kAvx512) return avx512::blend<T>;
    if (isa >= igemm::Isa::kAvx2) return avx2::blend<T>;
#endif
    return scalar::blend<T>;
}

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
void warp(const Image<const T>& x, const Flow& flow, const Image<T>& out) {
    const auto blend = blend_for<T>(igemm::isa());
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

template void warp(const Image<const float>&, const Flow&, const Image<float>&);
template void warp(const Image<const igemm::bf16>&, const Flow&, const Image<igemm::bf16>&);

}  // namespace sparsecodec
