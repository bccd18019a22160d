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

using Vec = __m512i;
constexpr int kLanes = 16, kPixels = 12;

inline __mmask16 first_lanes(int n) { return n >= kLanes ? 0xffff : static_cast<__mmask16>((1u << n) - 1u); }

inline Vec load(const std::int32_t* p) { return _mm512_loadu_si512(p); }
inline void store(std::int32_t* p, Vec v) { _mm512_storeu_si512(p, v); }
inline Vec load_weights(const void* p) { return _mm512_load_si512(p); }
inline Vec splat(std::uint32_t pair) { return _mm512_set1_epi32(static_cast<int>(pair)); }
template <bool bytes>
inline Vec multiply_add(Vec sum, Vec x, Vec w) {
    return bytes ? _mm512_dpbusd_epi32(sum, x, w) : _mm512_dpwssd_epi32(sum, x, w);
}
inline Vec add(Vec a, Vec b) { return _mm512_add_epi32(a, b); }

inline __m256i load_values(const std::int16_t* p, int n) {
    if (n >= kLanes) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm256_maskz_loadu_epi16(first_lanes(n), p);
}

inline Vec load_pairs(const std::int16_t* a, const std::int16_t* b, int n) {
    const Vec interleaved = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,  //
                                             39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const Vec low = _mm512_castsi256_si512(load_values(a, n)), high = _mm512_castsi256_si512(load_values(b, n));
    return _mm512_permutex2var_epi16(low, interleaved, high);
}

struct Factors {  // even lanes and odd lanes apart, because products have 64 bits
    Vec positive, negative, odd_positive, even_shift, odd_shift, even_round, odd_round, high_shift, high_round;

    Factors(const Block& block, int column)
        : positive(load(block.positive.data() + column)),
          negative(load(block.negative.data() + column)),
          odd_positive(_mm512_srli_epi64(positive, 32)) {
        const Vec shift = load(block.shift.data() + column), one = _mm512_set1_epi64(1);
        even_shift = _mm512_and_si512(shift, _mm512_set1_epi64(0xffffffff));
        odd_shift = _mm512_srli_epi64(shift, 32);
        even_round = _mm512_sllv_epi64(one, _mm512_sub_epi64(even_shift, one));
        odd_round = _mm512_sllv_epi64(one, _mm512_sub_epi64(odd_shift, one));
        high_shift = _mm512_sub_epi32(shift, _mm512_set1_epi32(32));
        high_round = _mm512_sllv_epi32(_mm512_set1_epi32(1), _mm512_sub_epi32(shift, _mm512_set1_epi32(33)));
    }
};

template <Kind kind>
inline Vec requantize(Vec sum, const Factors& f) {
    constexpr __mmask16 odd_lanes = 0xaaaa;
    Vec factor = f.positive, odd_factor = f.odd_positive;
    if constexpr (kind != Kind::kHighLinear) {
        factor = _mm512_mask_blend_epi32(_mm512_movepi32_mask(sum), f.positive, f.negative);
        odd_factor = _mm512_srli_epi64(factor, 32);
    }
    Vec even = _mm512_mul_epi32(sum, factor), odd = _mm512_mul_epi32(_mm512_srli_epi64(sum, 32), odd_factor);
    if constexpr (kind != Kind::kAny) {  // the rounding constant is a multiple of 2^32
        const Vec upper = _mm512_mask_blend_epi32(odd_lanes, _mm512_srli_epi64(even, 32), odd);
        return _mm512_srav_epi32(_mm512_add_epi32(upper, f.high_round), f.high_shift);
    }
    even = _mm512_add_epi64(even, f.even_round);
    odd = _mm512_add_epi64(odd, f.odd_round);
    const Vec bottom = _mm512_set1_epi64(-(1 << 30)), top = _mm512_set1_epi64((1 << 30) - 1);
    const auto clip = [&](Vec v) { return _mm512_max_epi64(_mm512_min_epi64(v, top), bottom); };
    even = clip(_mm512_srav_epi64(even, f.even_shift));
    odd = clip(_mm512_srav_epi64(odd, f.odd_shift));
    return _mm512_mask_blend_epi32(odd_lanes, even, _mm512_slli_epi64(odd, 32));
}

inline Vec load_residual(const std::int32_t* p, int n) { return _mm512_maskz_loadu_epi32(first_lanes(n), p); }
inline Vec load_residual(const std::int16_t* p, int n) {
    return _mm512_cvtepi16_epi32(load_values(p, n));
}

struct ResidualShift {
    bool right;
    __m128i count;
    Vec least, most;  // of what is shifted to the left

    explicit ResidualShift(int left)
        : right(left < 0),
          count(_mm_cvtsi32_si128(right ? -left - 1 : left)),
          least(_mm512_set1_epi32(right ? -(1 << 30) : -((1 << 30) >> left))),
          most(_mm512_set1_epi32(right ? 1 << 30 : (1 << 30) >> left)) {}

    Vec operator()(Vec x) const {
        if (right) {  // (q + 1) >> 1 without the overflow of q + 1
            const Vec q = _mm512_sra_epi32(x, count);
            x = _mm512_add_epi32(_mm512_srai_epi32(q, 1), _mm512_and_si512(q, _mm512_set1_epi32(1)));
        } else {
            x = _mm512_sll_epi32(_mm512_max_epi32(_mm512_min_epi32(x, most), least), count);
        }
        return _mm512_min_epi32(x, _mm512_set1_epi32((1 << 30) - 1));
    }
};

inline void store_out(std::int32_t* p, Vec v, int n) {
    n >= kLanes ? _mm512_storeu_si512(p, v) : _mm512_mask_storeu_epi32(p, first_lanes(n), v);
}
inline void store_out(std::int16_t* p, Vec v, int n) {
    const __m256i narrow = _mm512_cvtsepi32_epi16(v);
    if (n >= kLanes) {  // apart: masked stores of 16-bit values are slow
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow);
    } else {
        _mm256_mask_storeu_epi16(p, first_lanes(n), narrow);
    }
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
