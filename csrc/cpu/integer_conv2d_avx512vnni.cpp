// AVX-512 kernels: vpdpwssd adds the products of two int16 pairs to an int32, vpdpbusd those of four bytes; 12 pixels x
// 32 channels in registers.
#include <algorithm>
#include <cstring>
#include <utility>

#include "cpu/integer_conv2d.h"

#if defined(__x86_64__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12 on its own intrinsics headers (its bug 105593)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,prefer-vector-width=512")

namespace sparsecodec::integer {
namespace {

#include "cpu/requantize_avx512.inl"

constexpr int kPixels = 12;

inline Vec load_weights(const void* p) { return _mm512_load_si512(p); }
inline Vec splat(std::uint32_t pair) { return _mm512_set1_epi32(static_cast<int>(pair)); }
template <bool bytes>
inline Vec multiply_add(Vec sum, Vec x, Vec w) {
    return bytes ? _mm512_dpbusd_epi32(sum, x, w) : _mm512_dpwssd_epi32(sum, x, w);
}

inline Vec load_pairs(const std::int16_t* a, const std::int16_t* b, int n) {
    const Vec interleaved = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,  //
                                             39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const Vec low = _mm512_castsi256_si512(load_values(a, n)), high = _mm512_castsi256_si512(load_values(b, n));
    return _mm512_permutex2var_epi16(low, interleaved, high);
}

#include "cpu/integer_conv2d_vector.inl"

}  // namespace

template <class Out, class Residual>
Kernel<Out, Residual> kernel_avx512vnni(Products products) {
    const auto place = place_values<Out, Residual>;
    switch (products) {
        case Products::kPairs: return {run<Products::kPairs, Out, Residual>, place};
        case Products::kBytes: return {run<Products::kBytes, Out, Residual>, place};
        case Products::kDepthwise: return {run<Products::kDepthwise, Out, Residual>, place};
    }
    __builtin_unreachable();
}

void narrow_bytes_avx512(const std::int16_t* x, std::ptrdiff_t n, const Narrowing& narrowing, std::uint8_t* out) {
    constexpr std::ptrdiff_t kValues = 32;
    const int right = narrowing.shift, left = std::clamp(-right, 0, 8);
    const __m128i count = _mm_cvtsi32_si128(right > 0 ? right - 1 : left);
    const Vec one = _mm512_set1_epi16(1), low = _mm512_set1_epi16(static_cast<short>(narrowing.low));
    const Vec most = _mm512_set1_epi16(static_cast<short>(256 >> left));
    const Vec least = _mm512_set1_epi16(static_cast<short>(-(256 >> left)));
    const auto narrowed = [&](Vec v) {
        if (right > 0) {  // floor(v 2^(1 - right)), plus 1, halved: no carry is lost but that of what is clipped anyway
            v = _mm512_srai_epi16(_mm512_adds_epi16(_mm512_sra_epi16(v, count), one), 1);
        } else {  // what is clipped anyway goes to +-256, so that nothing leaves 16 bits
            v = _mm512_sll_epi16(_mm512_max_epi16(_mm512_min_epi16(v, most), least), count);
        }
        return _mm512_cvtusepi16_epi8(_mm512_max_epi16(_mm512_subs_epi16(v, low), _mm512_setzero_si512()));
    };
    std::ptrdiff_t i = 0;
    for (; i + kValues <= n; i += kValues) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), narrowed(_mm512_loadu_si512(x + i)));
    }
    if (i < n) {
        const __mmask32 rest = (1u << (n - i)) - 1u;
        _mm256_mask_storeu_epi8(out + i, rest, narrowed(_mm512_maskz_loadu_epi16(rest, x + i)));
    }
}

template Kernel<std::int16_t, std::int16_t> kernel_avx512vnni(Products);
template Kernel<std::int16_t, std::int32_t> kernel_avx512vnni(Products);
template Kernel<std::int32_t, std::int16_t> kernel_avx512vnni(Products);
template Kernel<std::int32_t, std::int32_t> kernel_avx512vnni(Products);

}  // namespace sparsecodec::integer

#pragma GCC pop_options
#endif
