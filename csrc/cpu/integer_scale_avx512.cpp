// AVX-512 kernels.
#include <cstring>

#include "cpu/integer_scale.h"

#if defined(__x86_64__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12 on its own intrinsics headers (its bug 105593)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")

namespace sparsecodec::integer {
namespace {

#include "cpu/requantize_avx512.inl"

inline Vec raised(Vec x) { return _mm512_slli_epi32(x, 16); }

#include "cpu/integer_scale_vector.inl"

}  // namespace

template <class X, class Residual, class Out>
void scale_avx512(const ScaleArgs<X, Residual, Out>& args) {
    scale(args);
}

SC_INSTANTIATE_SCALE(scale_avx512);

}  // namespace sparsecodec::integer

#pragma GCC pop_options
#endif
