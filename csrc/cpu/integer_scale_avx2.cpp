// AVX2 kernels.
#include <cstring>

#include "cpu/integer_scale.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,fma")

namespace sparsecodec::integer {
namespace {

#include "cpu/requantize_avx2.inl"

inline Vec raised(Vec x) { return _mm256_slli_epi32(x, 16); }

#include "cpu/integer_scale_vector.inl"

}  // namespace

template <class X, class Residual, class Out>
void scale_avx2(const ScaleArgs<X, Residual, Out>& args) {
    scale(args);
}

SC_INSTANTIATE_SCALE(scale_avx2);

}  // namespace sparsecodec::integer

#pragma GCC pop_options
#endif
