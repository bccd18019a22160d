// AVX2 + FMA kernels: 6 pixels x 16 channels in registers.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/igemm_isa.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,fma")

namespace sparsecodec::igemm {
namespace {
#include "cpu/igemm_epilogue.inl"
#include "cpu/igemm_generic.inl"

constexpr int kPixels = 6;

// Sums of pixels [first, first + P) and half a block (16 columns from `half` * 16) into sums [P][32].
template <int P>
void sum_tile(const BlockArgs<float, float>& args, int first, int half, float* sums) {
    __m256 acc[P][2];  // [P, 16]
    const float* w = args.weights + half * 16;
    for (int p = 0; p < P; ++p) {
        acc[p][0] = _mm256_loadu_ps(args.bias + half * 16);
        acc[p][1] = _mm256_loadu_ps(args.bias + half * 16 + 8);
    }
    for (int tap = 0; tap < args.taps; ++tap) {
        const float* x[P];
        for (int p = 0; p < P; ++p) x[p] = args.rows[tap * args.tap_step + first + p];
        for (std::ptrdiff_t k = 0; k < args.k; ++k, w += kBlock) {
            const __m256 w0 = _mm256_load_ps(w), w1 = _mm256_load_ps(w + 8);
#pragma GCC unroll 6
            for (int p = 0; p < P; ++p) {
                const __m256 xk = _mm256_broadcast_ss(x[p] + k);
                acc[p][0] = _mm256_fmadd_ps(xk, w0, acc[p][0]);
                acc[p][1] = _mm256_fmadd_ps(xk, w1, acc[p][1]);
            }
        }
    }
    for (int p = 0; p < P; ++p) {
        _mm256_storeu_ps(sums + p * kBlock + half * 16, acc[p][0]);
        _mm256_storeu_ps(sums + p * kBlock + half * 16 + 8, acc[p][1]);
    }
}

using SumTile = void (*)(const BlockArgs<float, float>&, int, int, float*);
constexpr SumTile kSumTile[kPixels + 1] = {nullptr,     sum_tile<1>, sum_tile<2>, sum_tile<3>,
                                           sum_tile<4>, sum_tile<5>, sum_tile<6>};

void block(const BlockArgs<float, float>& args) {
    for (int first = 0; first < args.m;) {
        const int pixels = next_tile(args.m - first, kPixels);
        alignas(32) float sums[kPixels * kBlock];
        kSumTile[pixels](args, first, 0, sums);
        if (args.place->n > 16) kSumTile[pixels](args, first, 1, sums);
        for (int p = 0; p < pixels; ++p) finish_pixel(sums + p * kBlock, first + p, args);
        first += pixels;
    }
}

template <class Out>
void block(const BlockArgs<bf16, Out>& args) {
    block_generic(args);
}

}  // namespace

template <class In, class Out>
void block_avx2(const BlockArgs<In, Out>& args) {
    for_each_block(args, [](const BlockArgs<In, Out>& one) { block(one); });
}

template <class In, class Out>
void finish_avx2(const BlockArgs<In, Out>& args, float* sums) {
    finish_pixels(args, sums);
}

template void block_avx2(const BlockArgs<float, float>&);
template void finish_avx2(const BlockArgs<float, float>&, float*);
template void block_avx2(const BlockArgs<bf16, bf16>&);
template void finish_avx2(const BlockArgs<bf16, bf16>&, float*);
template void block_avx2(const BlockArgs<bf16, float>&);
template void finish_avx2(const BlockArgs<bf16, float>&, float*);

}  // namespace sparsecodec::igemm

#pragma GCC pop_options
#endif
