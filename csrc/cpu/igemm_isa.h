// The kernels behind igemm.h, one per instruction set. Internal to igemm*.cpp.
#pragma once

#include "cpu/igemm.h"

namespace sparsecodec::igemm {

inline constexpr int kAmxPadding = 32;  // input channels in a row of a tile

// Instances of each pair: <float, float>, <bf16, bf16>, <bf16, float>.
template <class In, class Out>
void block_scalar(const BlockArgs<In, Out>& args);
template <class In, class Out>
void finish_scalar(const BlockArgs<In, Out>& args, float* sums);

#if defined(__x86_64__)
// Need AVX2 and FMA. The bf16 instances are plain loops that the compiler vectorises.
template <class In, class Out>
void block_avx2(const BlockArgs<In, Out>& args);
template <class In, class Out>
void finish_avx2(const BlockArgs<In, Out>& args, float* sums);

// <float, float> only. Need AVX512F.
template <class In, class Out>
void block_avx512(const BlockArgs<In, Out>& args);
template <class In, class Out>
void finish_avx512(const BlockArgs<In, Out>& args, float* sums);

// The bf16 instances only. Need AVX512F, AVX512BW and AVX512_BF16.
template <class In, class Out>
void block_avx512bf16(const BlockArgs<In, Out>& args);
template <class In, class Out>
void finish_avx512bf16(const BlockArgs<In, Out>& args, float* sums);

// The bf16 instances only, with the weights of each tap filled up to kAmxPadding input channels. block_amx and
// finish_amx need AVX512_BF16 too, block_amx also AMX_TILE, AMX_BF16 and the system's leave; the others AVX512F and
// AVX512BW.
template <class In, class Out>
void block_amx(const BlockArgs<In, Out>& args);
template <class In, class Out>
void finish_amx(const BlockArgs<In, Out>& args, float* sums);
template <class In, class Out>
void block_amx_emulated(const BlockArgs<In, Out>& args);
template <class In, class Out>
void finish_amx_emulated(const BlockArgs<In, Out>& args, float* sums);
#endif

}  // namespace sparsecodec::igemm
