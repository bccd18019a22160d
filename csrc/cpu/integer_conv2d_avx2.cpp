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

using Vec = __m256i;
constexpr int kLanes = 8, kPixels = 6;

inline Vec load(const std::int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const Vec*>(p)); }
inline void store(std::int32_t* p, Vec v) { _mm256_storeu_si256(reinterpret_cast<Vec*>(p), v); }
inline Vec load_weights(const void* p) { return _mm256_load_si256(reinterpret_cast<const Vec*>(p)); }
inline Vec splat(std::uint32_t pair) { return _mm256_set1_epi32(static_cast<int>(pair)); }
template <bool bytes>
inline Vec multiply_add(Vec sum, Vec x, Vec w) {
    static_assert(!bytes);  // vpmaddubsw saturates
    return _mm256_add_epi32(sum, _mm256_madd_epi16(x, w));
}
inline Vec add(Vec a, Vec b) { return _mm256_add_epi32(a, b); }

// n of kLanes values, zeros behind them.
inline __m128i load_values(const std::int16_t* p, int n) {
    if (n >= kLanes) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    std::int16_t values[kLanes] = {};
    std::memcpy(values, p, n * sizeof *p);
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
}

inline Vec load_pairs(const std::int16_t* a, const std::int16_t* b, int n) {
    const __m128i low = load_values(a, n), high = load_values(b, n);
    return _mm256_set_m128i(_mm_unpackhi_epi16(low, high), _mm_unpacklo_epi16(low, high));
}

struct Factors {  // even lanes and odd lanes apart, because products have 64 bits
    Vec positive, negative, odd_positive, even_shift, odd_shift, even_round, odd_round, high_shift, high_round;

    Factors(const Block& block, int column)
        : positive(load(block.positive.data() + column)),
          negative(load(block.negative.data() + column)),
          odd_positive(_mm256_srli_epi64(positive, 32)) {
        const Vec shift = load(block.shift.data() + column), one = _mm256_set1_epi64x(1);
        even_shift = _mm256_and_si256(shift, _mm256_set1_epi64x(0xffffffff));
        odd_shift = _mm256_srli_epi64(shift, 32);
        even_round = _mm256_sllv_epi64(one, _mm256_sub_epi64(even_shift, one));
        odd_round = _mm256_sllv_epi64(one, _mm256_sub_epi64(odd_shift, one));
        high_shift = _mm256_sub_epi32(shift, _mm256_set1_epi32(32));
        high_round = _mm256_sllv_epi32(_mm256_set1_epi32(1), _mm256_sub_epi32(shift, _mm256_set1_epi32(33)));
    }
};

// v >> shift of |v| < 2^62, clipped. AVX2 shifts 64 bits by lanes only logically, hence the offset, which becomes
// 2^(62 - shift).
inline Vec shift_and_clip(Vec v, Vec shift) {
    const Vec offset = _mm256_set1_epi64x(std::int64_t{1} << 62);
    v = _mm256_sub_epi64(_mm256_srlv_epi64(_mm256_add_epi64(v, offset), shift), _mm256_srlv_epi64(offset, shift));
    const Vec bottom = _mm256_set1_epi64x(-(1 << 30)), top = _mm256_set1_epi64x((1 << 30) - 1);
    v = _mm256_blendv_epi8(v, top, _mm256_cmpgt_epi64(v, top));
    return _mm256_blendv_epi8(v, bottom, _mm256_cmpgt_epi64(bottom, v));
}

template <Kind kind>
inline Vec requantize(Vec sum, const Factors& f) {
    constexpr int odd_lanes = 0xaa;
    Vec factor = f.positive, odd_factor = f.odd_positive;
    if constexpr (kind != Kind::kHighLinear) {
        factor = _mm256_blendv_epi8(f.positive, f.negative, _mm256_srai_epi32(sum, 31));
        odd_factor = _mm256_srli_epi64(factor, 32);
    }
    Vec even = _mm256_mul_epi32(sum, factor), odd = _mm256_mul_epi32(_mm256_srli_epi64(sum, 32), odd_factor);
    if constexpr (kind != Kind::kAny) {  // the rounding constant is a multiple of 2^32
        const Vec upper = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, odd_lanes);
        return _mm256_srav_epi32(_mm256_add_epi32(upper, f.high_round), f.high_shift);
    }
    even = _mm256_add_epi64(even, f.even_round);
    odd = _mm256_add_epi64(odd, f.odd_round);
    even = shift_and_clip(even, f.even_shift);
    odd = shift_and_clip(odd, f.odd_shift);
    return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), odd_lanes);
}

inline Vec load_residual(const std::int16_t* p, int n) { return _mm256_cvtepi16_epi32(load_values(p, n)); }
inline Vec load_residual(const std::int32_t* p, int n) {
    if (n >= kLanes) return load(p);
    std::int32_t values[kLanes] = {};
    std::memcpy(values, p, n * sizeof *p);
    return load(values);
}

struct ResidualShift {
    bool right;
    __m128i count;
    Vec least, most;  // of what is shifted to the left

    explicit ResidualShift(int left)
        : right(left < 0),
          count(_mm_cvtsi32_si128(right ? -left - 1 : left)),
          least(_mm256_set1_epi32(right ? -(1 << 30) : -((1 << 30) >> left))),
          most(_mm256_set1_epi32(right ? 1 << 30 : (1 << 30) >> left)) {}

    Vec operator()(Vec x) const {
        if (right) {  // (q + 1) >> 1 without the overflow of q + 1
            const Vec q = _mm256_sra_epi32(x, count);
            x = _mm256_add_epi32(_mm256_srai_epi32(q, 1), _mm256_and_si256(q, _mm256_set1_epi32(1)));
        } else {
            x = _mm256_sll_epi32(_mm256_max_epi32(_mm256_min_epi32(x, most), least), count);
        }
        return _mm256_min_epi32(x, _mm256_set1_epi32((1 << 30) - 1));
    }
};

inline void store_out(std::int32_t* p, Vec v, int n) {
    if (n >= kLanes) return store(p, v);
    std::int32_t values[kLanes];
    store(values, v);
    std::memcpy(p, values, n * sizeof *p);
}
inline void store_out(std::int16_t* p, Vec v, int n) {
    const __m128i narrow = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    std::int16_t values[kLanes];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(n >= kLanes ? p : values), narrow);
    if (n < kLanes) std::memcpy(p, values, n * sizeof *p);
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
