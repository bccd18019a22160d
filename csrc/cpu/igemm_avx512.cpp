// AVX-512 kernels for float.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "cpu/igemm_isa.h"

#if defined(__x86_64__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12 on its own intrinsics headers (its bug 105593)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")

namespace sparsecodec::igemm {
namespace {
#include "cpu/igemm_epilogue.inl"

inline int steps(int k) { return k; }
template <class In>
constexpr bool has_tail(int) {
    return false;
}
inline __m512 broadcast(const float* x, std::ptrdiff_t s) { return _mm512_set1_ps(x[s]); }
inline __m512 broadcast_tail(const float* x, std::ptrdiff_t s) { return broadcast(x, s); }
inline __m512 multiply_add(__m512 x, __m512 w, __m512 acc) { return _mm512_fmadd_ps(x, w, acc); }

#include "cpu/igemm_zmm_finish.inl"
#include "cpu/igemm_zmm.inl"
}  // namespace

template <class In, class Out>
void block_avx512(const BlockArgs<In, Out>& args) {
    for_each_block(args, block<In, Out>);
}

template <class In, class Out>
void finish_avx512(const BlockArgs<In, Out>& args, float* sums) {
    finish(args, sums);
}

template void block_avx512(const BlockArgs<float, float>&);
template void finish_avx512(const BlockArgs<float, float>&, float*);

}  // namespace sparsecodec::igemm

#pragma GCC pop_options
#endif
