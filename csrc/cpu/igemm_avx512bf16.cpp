// AVX-512 kernels for bf16: vdpbf16ps adds the products of two consecutive channels to a float sum.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "cpu/igemm_isa.h"

#if defined(__x86_64__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12 on its own intrinsics headers (its bug 105593)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,prefer-vector-width=512")

namespace sparsecodec::igemm {
namespace {
#include "cpu/igemm_epilogue.inl"

inline int steps(int k) { return k / 2; }
template <class In>
bool has_tail(int k) {
    return k % 2 != 0;
}
inline __m512 broadcast(const bf16* x, std::ptrdiff_t s) {
    std::uint32_t pair;
    std::memcpy(&pair, x + 2 * s, sizeof pair);
    return _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(pair)));
}
inline __m512 broadcast_tail(const bf16* x, std::ptrdiff_t s) {
    return _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(x[2 * s])));
}
inline __m512 multiply_add(__m512 x, __m512 w, __m512 acc) {
    return _mm512_dpbf16_ps(acc, (__m512bh)x, (__m512bh)w);
}
inline void store_values(bf16* p, __mmask16 mask, __m512 v) {
    _mm256_mask_storeu_epi16(p, mask, (__m256i)_mm512_cvtneps_pbh(v));
}
inline void store_values(bf16* p, __m512 v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(v));
}

#include "cpu/igemm_zmm_finish.inl"
#include "cpu/igemm_zmm.inl"
}  // namespace

template <class In, class Out>
void block_avx512bf16(const BlockArgs<In, Out>& args) {
    for_each_block(args, block<In, Out>);
}

template <class In, class Out>
void finish_avx512bf16(const BlockArgs<In, Out>& args, float* sums) {
    finish(args, sums);
}

template void block_avx512bf16(const BlockArgs<bf16, bf16>&);
template void finish_avx512bf16(const BlockArgs<bf16, bf16>&, float*);
template void block_avx512bf16(const BlockArgs<bf16, float>&);
template void finish_avx512bf16(const BlockArgs<bf16, float>&, float*);

}  // namespace sparsecodec::igemm

#pragma GCC pop_options
#endif
