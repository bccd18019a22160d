#include "cpu/depthwise.h"

#include <cmath>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sparsecodec {
namespace scalar {
namespace {
#include "cpu/depthwise_generic.inl"
}  // namespace
}  // namespace scalar

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
namespace {
#include "cpu/depthwise_generic.inl"
}  // namespace
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
namespace avx512 {
namespace {

#include "cpu/zmm.inl"

// P neighbouring pixels, 16 channels from c: each input is loaded once per row for all of them.
template <int P, class T>
inline void tile(const DepthwiseArgs& args, const __m512 (&w)[9], __m512 bias, __m512 slope, __m512i keep_product,
                 int first, int c, T* out, std::ptrdiff_t out_stride) {
    __m512 acc[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) acc[p] = bias;
#pragma GCC unroll 3
    for (int r = 0; r < 3; ++r) {
        const float* const x = args.rows[r] + first * args.stride + c;
        __m512 column[P + 2];
#pragma GCC unroll 8
        for (int i = 0; i < P + 2; ++i) column[i] = _mm512_load_ps(x + i * args.stride);
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 3
            for (int k = 0; k < 3; ++k) acc[p] = _mm512_fmadd_ps(column[p + k], w[r * 3 + k], acc[p]);
        }
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
        const __mmask16 negative = _mm512_cmp_ps_mask(acc[p], _mm512_setzero_ps(), _CMP_LT_OQ);
        const __m512i product = _mm512_and_epi32(_mm512_castps_si512(_mm512_mul_ps(acc[p], slope)), keep_product);
        store(out + (first + p) * out_stride + c, 0xffff,
              _mm512_mask_mov_ps(acc[p], negative, _mm512_castsi512_ps(product)));
    }
}

template <class T>
void row(const DepthwiseArgs& args, T* out, std::ptrdiff_t out_stride) {
    const __m512 slope = _mm512_set1_ps(args.slope);
    const __m512i keep_product = _mm512_set1_epi32(args.slope == 0.0f ? 0 : -1);
    for (int c = 0; c < args.channels; c += kLanes) {
        __m512 w[9];
#pragma GCC unroll 9
        for (int tap = 0; tap < 9; ++tap) w[tap] = _mm512_load_ps(args.weights + tap * args.stride + c);
        const __m512 bias = _mm512_load_ps(args.bias + c);
        int p = 0;
        for (; p + 4 <= args.m; p += 4) tile<4>(args, w, bias, slope, keep_product, p, c, out, out_stride);
        for (; p < args.m; ++p) tile<1>(args, w, bias, slope, keep_product, p, c, out, out_stride);
    }
}

}  // namespace
}  // namespace avx512
#pragma GCC pop_options
#endif

template <class T>
DepthwiseRow<T> depthwise_row(igemm::Isa isa) {
#if defined(__x86_64__)
    if (isa >= igemm::Isa::kAvx512) return avx512::row<T>;
    if (isa >= igemm::Isa::kAvx2) return avx2::row<T>;
#endif
    return scalar::row<T>;
}

template DepthwiseRow<float> depthwise_row<float>(igemm::Isa);
template DepthwiseRow<igemm::bf16> depthwise_row<igemm::bf16>(igemm::Isa);

}  // namespace sparsecodec
