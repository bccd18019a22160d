// AVX2 kernels: vpmaddwd adds two products of int16; 6 pixels x 16 channels in registers.
#include <algorithm>
#include <cstring>
#include <utility>

#include "cpu/integer_conv2d.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,fma")

namespace sparsecodec::integer {
namespace {

#include "cpu/requantize_avx2.inl"

constexpr int kPixels = 6;

inline Vec load_weights(const void* p) { return _mm256_load_si256(reinterpret_cast<const Vec*>(p)); }
inline Vec splat(std::uint32_t pair) { return _mm256_set1_epi32(static_cast<int>(pair)); }
template <bool bytes>
inline Vec multiply_add(Vec sum, Vec x, Vec w) {
    static_assert(!bytes);  // vpmaddubsw saturates
    return _mm256_add_epi32(sum, _mm256_madd_epi16(x, w));
}

inline Vec load_pairs(const std::int16_t* a, const std::int16_t* b, int n) {
    const __m128i low = load_values(a, n), high = load_values(b, n);
    return _mm256_set_m128i(_mm_unpackhi_epi16(low, high), _mm_unpacklo_epi16(low, high));
}

#include "cpu/integer_conv2d_vector.inl"

}  // namespace

template <class Out, class Residual>
Kernel<Out, Residual> kernel_avx2(bool depthwise) {
    constexpr auto of_depthwise = run<Products::kDepthwise, Out, Residual>, of_pairs = run<Products::kPairs, Out, Residual>;
    return {depthwise ? of_depthwise : of_pairs, place_values<Out, Residual>};
}

template Kernel<std::int16_t, std::int16_t> kernel_avx2(bool);
template Kernel<std::int16_t, std::int32_t> kernel_avx2(bool);
template Kernel<std::int32_t, std::int16_t> kernel_avx2(bool);
template Kernel<std::int32_t, std::int32_t> kernel_avx2(bool);

}  // namespace sparsecodec::integer

#pragma GCC pop_options
#endif
