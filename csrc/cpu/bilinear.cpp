#include "cpu/bilinear.h"

namespace sparsecodec {
namespace {

namespace scalar {
#include "cpu/bilinear_pixels.inl"
}  // namespace scalar

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2")
namespace avx2 {
#include "cpu/bilinear_pixels.inl"
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
namespace avx512 {
#include "cpu/bilinear_pixels.inl"
}  // namespace avx512
#pragma GCC pop_options
#endif

}  // namespace

template <class T>
Blend<T> blend_kernel() {
    const igemm::Isa isa = igemm::isa();
#if defined(__x86_64__)
    if (isa >= igemm::Isa::kAvx512) return avx512::blend<T>;
    if (isa >= igemm::Isa::kAvx2) return avx2::blend<T>;
#endif
    return scalar::blend<T>;
}

template Blend<float> blend_kernel();
template Blend<igemm::bf16> blend_kernel();

}  // namespace sparsecodec
