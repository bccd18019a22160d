#include "cpu/bilinear.h"

#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sparsecodec {
namespace {

namespace scalar {
#include "cpu/bilinear_pixels.inl"
}  // namespace scalar

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2")
namespace avx2 {
#include "cpu/bilinear_pixels.inl"
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
namespace avx512 {
#include "cpu/bilinear_pixels.inl"

// The groups of DCVC-DC's alignment have three channels: the ways into a loop over lanes would take longer than its work.
void blend_floats(const Samples<float>& samples, std::ptrdiff_t c, float* __restrict out) {
    if (c > 4) return blend(samples, c, out);
    const __mmask8 lanes = static_cast<__mmask8>((1u << c) - 1u);
    const auto weighed = [&](int i) {
        return _mm_mul_ps(_mm_maskz_loadu_ps(lanes, samples.at[i]), _mm_set1_ps(samples.weight[i]));
    };
    const __m128 upper = _mm_add_ps(weighed(0), weighed(1));
    _mm_mask_storeu_ps(out, lanes, _mm_add_ps(_mm_add_ps(upper, weighed(2)), weighed(3)));
}
}  // namespace avx512
#pragma GCC pop_options
#endif

}  // namespace

template <class T>
Blend<T> blend_kernel() {
    const igemm::Isa isa = igemm::isa();
#if defined(__x86_64__)
    if (isa >= igemm::Isa::kAvx512) {
        if constexpr (std::is_same_v<T, float>) return avx512::blend_floats;
        return avx512::blend<T>;
    }
    if (isa >= igemm::Isa::kAvx2) return avx2::blend<T>;
#endif
    return scalar::blend<T>;
}

template Blend<float> blend_kernel();
template Blend<igemm::bf16> blend_kernel();

}  // namespace sparsecodec
