#include "cpu/integer_warp.h"

#include <algorithm>

#if defined(__x86_64__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12 on its own intrinsics headers (its bug 105593)
#include <immintrin.h>
#endif

namespace sparsecodec {
namespace {

constexpr int kPositionBits = 16, kWeightBits = 14;
constexpr std::int32_t kOne = 1 << kWeightBits, kHalf = kOne / 2;

// The two samples around a position and the second one's weight, 0 to kOne.
struct Neighbours {
    std::ptrdiff_t low, high;
    std::int32_t weight;

    Neighbours(std::ptrdiff_t at, std::int32_t moved, std::ptrdiff_t size) {
        const std::int64_t one = std::int64_t{1} << kPositionBits;
        const std::int64_t position = std::clamp<std::int64_t>(at * one + moved, 0, (size - 1) * one);
        low = position >> kPositionBits;
        high = std::min(low + 1, size - 1);
        weight = static_cast<std::int32_t>(((position & (one - 1)) + 2) >> (kPositionBits - kWeightBits));
    }
};

// Upper left, upper right, lower left, lower right, and the weights of right and lower.
struct Corners {
    const std::int16_t* at[4];
    std::int32_t right, lower;
};

inline std::int32_t between(std::int32_t first, std::int32_t second, std::int32_t weight) {
    return (first * (kOne - weight) + second * weight + kHalf) >> kWeightBits;
}

// out[i] = the corners' channel i, blended, i < c.
void blend_scalar(const Corners& corners, std::ptrdiff_t c, std::int16_t* out) {
    for (std::ptrdiff_t i = 0; i < c; ++i) {
        const std::int32_t upper = between(corners.at[0][i], corners.at[1][i], corners.right);
        const std::int32_t lower = between(corners.at[2][i], corners.at[3][i], corners.right);
        out[i] = static_cast<std::int16_t>(between(upper, lower, corners.lower));
    }
}

namespace scalar {
constexpr auto blend = blend_scalar;
#include "cpu/integer_warp_rows.inl"
}  // namespace scalar

#if defined(__x86_64__)
// Of two samples vpmaddwd takes pairs; packing undoes in each 128 bits what unpacking did.
#pragma GCC push_options
#pragma GCC target("avx2")
namespace avx2 {

using Vec = __m256i;
constexpr std::ptrdiff_t kLanes = 16;

inline Vec load(const std::int16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const Vec*>(p)); }
inline Vec weights(std::int32_t second) { return _mm256_set1_epi32(second << 16 | (kOne - second)); }
inline Vec between(Vec first, Vec second, Vec weights) {
    const auto sums = [&](Vec pairs) {
        const Vec sum = _mm256_add_epi32(_mm256_madd_epi16(pairs, weights), _mm256_set1_epi32(kHalf));
        return _mm256_srai_epi32(sum, kWeightBits);
    };
    return _mm256_packs_epi32(sums(_mm256_unpacklo_epi16(first, second)), sums(_mm256_unpackhi_epi16(first, second)));
}

inline void blend(const Corners& corners, std::ptrdiff_t c, std::int16_t* out) {
    if (c < kLanes) return blend_scalar(corners, c, out);
    const Vec right = weights(corners.right), lower = weights(corners.lower);
    for (std::ptrdiff_t next = 0; next < c; next += kLanes) {
        const std::ptrdiff_t i = std::min(next, c - kLanes);  // the last channels, some of them for the second time
        const Vec above = between(load(corners.at[0] + i), load(corners.at[1] + i), right);
        const Vec below = between(load(corners.at[2] + i), load(corners.at[3] + i), right);
        _mm256_storeu_si256(reinterpret_cast<Vec*>(out + i), between(above, below, lower));
    }
}
#include "cpu/integer_warp_rows.inl"
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
namespace avx512 {

using Vec = __m512i;
constexpr std::ptrdiff_t kLanes = 32;

inline Vec weights(std::int32_t second) { return _mm512_set1_epi32(second << 16 | (kOne - second)); }
inline Vec between(Vec first, Vec second, Vec weights) {
    const auto sums = [&](Vec pairs) {
        const Vec sum = _mm512_add_epi32(_mm512_madd_epi16(pairs, weights), _mm512_set1_epi32(kHalf));
        return _mm512_srai_epi32(sum, kWeightBits);
    };
    return _mm512_packs_epi32(sums(_mm512_unpacklo_epi16(first, second)), sums(_mm512_unpackhi_epi16(first, second)));
}

inline void blend(const Corners& corners, std::ptrdiff_t c, std::int16_t* out) {
    const Vec right = weights(corners.right), lower = weights(corners.lower);
    const auto blended = [&](auto load) {
        const Vec above = between(load(corners.at[0]), load(corners.at[1]), right);
        return between(above, between(load(corners.at[2]), load(corners.at[3]), right), lower);
    };
    std::ptrdiff_t i = 0;
    for (; i + kLanes <= c; i += kLanes) {  // apart: masked stores of 16-bit values are slow
        _mm512_storeu_si512(out + i, blended([&](const std::int16_t* p) { return _mm512_loadu_si512(p + i); }));
    }
    if (i == c) return;
    const __mmask32 rest = (1u << (c - i)) - 1u;
    const Vec last = blended([&](const std::int16_t* p) { return _mm512_maskz_loadu_epi16(rest, p + i); });
    _mm512_mask_storeu_epi16(out + i, rest, last);
}
#include "cpu/integer_warp_rows.inl"
}  // namespace avx512
#pragma GCC pop_options
#endif

auto row_kernel() {
    const igemm::Isa isa = igemm::isa();
#if defined(__x86_64__)
    if (isa >= igemm::Isa::kAvx512) return avx512::warp_row;
    if (isa >= igemm::Isa::kAvx2) return avx2::warp_row;
#endif
    return scalar::warp_row;
}

}  // namespace

void integer_warp(const Image<const std::int16_t>& x, const Strided<std::int32_t>& flow,
                  const Image<std::int16_t>& out) {
    const auto warp_row = row_kernel();
    const std::ptrdiff_t rows = x.n * x.h;
#pragma omp parallel for if (rows * x.w * x.c > 4096)
    for (std::ptrdiff_t row = 0; row < rows; ++row) warp_row(x, flow, row / x.h, row % x.h, out);
}

}  // namespace sparsecodec
