#include "cpu/gdn.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/parallel.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sparsecodec {
namespace {

constexpr std::ptrdiff_t kPixels = 96;  // of a task: what the product reuses its weights for

template <class T>
struct GdnPixels {
    void (*square)(const T* x, int c, T* squares);
    void (*normalise)(const T* x, const float* norm, int c, bool inverse, T* out);
};

namespace scalar {
#include "cpu/gdn_pixels.inl"
}  // namespace scalar

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#include "cpu/gdn_pixels.inl"
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
namespace avx512 {
#include "cpu/zmm.inl"

template <class T>
void square(const T* x, int c, T* squares) {
    for (int i = 0; i < c; i += 16) {
        const __mmask16 mask = first_lanes(c - i);
        const __m512 value = load(x + i, mask);
        store(squares + i, mask, _mm512_mul_ps(value, value));
    }
}

inline __m512 divide_by_root(__m512 x, __m512 norm, const float*) {
    return _mm512_div_ps(x, _mm512_maskz_sqrt_ps(0xffff, norm));
}
// Relative error 2^-14, below half a unit of bf16.
inline __m512 divide_by_root(__m512 x, __m512 norm, const igemm::bf16*) {
    return _mm512_mul_ps(x, _mm512_maskz_rsqrt14_ps(0xffff, norm));
}

template <class T>
void normalise(const T* x, const float* norm, int c, bool inverse, T* out) {
    for (int i = 0; i < c; i += 16) {
        const __mmask16 mask = first_lanes(c - i);
        const __m512 value = load(x + i, mask), sum = load(norm + i, mask);
        store(out + i, mask,
              inverse ? _mm512_mul_ps(value, _mm512_maskz_sqrt_ps(0xffff, sum)) : divide_by_root(value, sum, x));
    }
}

template <class T>
constexpr GdnPixels<T> pixels() {
    return {square<T>, normalise<T>};
}
}  // namespace avx512
#pragma GCC pop_options
#endif

template <class T>
GdnPixels<T> pixels_for(igemm::Isa isa) {
#if defined(__x86_64__)
    if (isa >= igemm::Isa::kAvx512) return avx512::pixels<T>();
    if (isa >= igemm::Isa::kAvx2) return avx2::pixels<T>();
#endif
    return scalar::pixels<T>();
}

}  // namespace

template <class T>
Gdn<T>::Gdn(const float* beta, const float* gamma, int c, bool inverse)
    : gemm_(igemm::Weights::oihw(gamma, c, c), beta), inverse_(inverse) {}

template <class T>
void Gdn<T>::run(const Image<const T>& x, const Image<T>& out) const {
    const GdnPixels<T> pixels = pixels_for<T>(igemm::isa());
    const int c = channels();
    const std::ptrdiff_t total = x.n * x.h * x.w;
    in_parallel((total + kPixels - 1) / kPixels, [&](Tasks& tasks) {
        std::vector<T> squares(kPixels * c);
        std::vector<float> norms(kPixels * c);
        const T *from[kPixels], *rows[kPixels];
        T* to[kPixels];
        float* sums[kPixels];
        igemm::fill_rows<const T>(rows, squares.data(), c, kPixels);
        igemm::fill_rows(sums, norms.data(), c, kPixels);
        for (std::ptrdiff_t task; tasks.take(task);) {
            const int m = static_cast<int>(std::min(kPixels, total - task * kPixels));
            for (int i = 0; i < m; ++i) {
                const std::ptrdiff_t at = task * kPixels + i;
                const std::ptrdiff_t n = at / (x.h * x.w), iy = at / x.w % x.h, ix = at % x.w;
                from[i] = x.pixel(n, iy, ix);
                to[i] = out.pixel(n, iy, ix);
                pixels.square(from[i], c, squares.data() + i * c);
            }
            gemm_.run(rows, kPixels, m, igemm::Epilogue<float>{sums});
            for (int i = 0; i < m; ++i) pixels.normalise(from[i], sums[i], c, inverse_, to[i]);
        }
    });
}

template class Gdn<float>;
template class Gdn<igemm::bf16>;

}  // namespace sparsecodec
