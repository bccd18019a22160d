// The kernels behind igemm.h, one per instruction set. Internal to igemm*.cpp.
#pragma once

#include "cpu/igemm.h"

namespace sparsecodec::igemm {

// Instances: <float, float>, <bf16, bf16>, <bf16, float>.
template <class In, class Out>
void block_scalar(const BlockArgs<In, Out>& args);

#if defined(__x86_64__)
// As block_scalar; needs AVX2 and FMA. The bf16 instances are plain loops that the compiler vectorises.
template <class In, class Out>
void block_avx2(const BlockArgs<In, Out>& args);

// Instance: <float, float>. Needs AVX512F.
template <class In, class Out>
void block_avx512(const BlockArgs<In, Out>& args);

// Instances: <bf16, bf16>, <bf16, float>. Needs AVX512F, AVX512BW and AVX512_BF16.
template <class In, class Out>
void block_avx512bf16(const BlockArgs<In, Out>& args);
#endif

}  // namespace sparsecodec::igemm
