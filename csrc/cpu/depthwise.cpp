#include "cpu/depthwise.h"

#include <cmath>

#if defined(__x86_64__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12 on its own intrinsics headers (its bug 105593)
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

template <class T>
void put(T* p, __m512 v) {
    store(p, 0xffff, v);
}

#include "cpu/depthwise_zmm.inl"

}  // namespace
}  // namespace avx512
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,prefer-vector-width=512")
namespace avx512bf16 {
namespace {

inline void put(float* p, __m512 v) { _mm512_storeu_ps(p, v); }
inline void put(igemm::bf16* p, __m512 v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(v));
}

#include "cpu/depthwise_zmm.inl"

}  // namespace
}  // namespace avx512bf16
#pragma GCC pop_options
#endif

template <class T>
DepthwiseRow<T> depthwise_row(igemm::Isa isa) {
#if defined(__x86_64__)
    if (isa == igemm::Isa::kAvx512Bf16 || isa == igemm::Isa::kAmx) return avx512bf16::row<T>;
    if (isa >= igemm::Isa::kAvx512) return avx512::row<T>;
    if (isa >= igemm::Isa::kAvx2) return avx2::row<T>;
#endif
    return scalar::row<T>;
}

template DepthwiseRow<float> depthwise_row<float>(igemm::Isa);
template DepthwiseRow<igemm::bf16> depthwise_row<igemm::bf16>(igemm::Isa);

}  // namespace sparsecodec
