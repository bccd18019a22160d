#include "cpu/four_sums.h"

#include <algorithm>

#if defined(__x86_64__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12 on its own intrinsics headers (its bug 105593)
#include <immintrin.h>
#endif

namespace sparsecodec {
namespace {

constexpr int kOutputs = 16;

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2")
// kOutputs sums of k products each. weights: [k][kOutputs]; to: [kOutputs].
void sum_block(const float* x, const float* weights, int k, float* to) {
    constexpr int kHalves = kOutputs / 8;
    __m256 sums[4][kHalves];
#pragma GCC unroll 4
    for (int s = 0; s < 4; ++s) {
#pragma GCC unroll 2
        for (int v = 0; v < kHalves; ++v) sums[s][v] = _mm256_setzero_ps();
    }
    const auto add = [&](int s, int i) {
        const __m256 input = _mm256_broadcast_ss(x + i);
#pragma GCC unroll 2
        for (int v = 0; v < kHalves; ++v) {
            const __m256 weight = _mm256_load_ps(weights + i * kOutputs + v * 8);
            sums[s][v] = _mm256_add_ps(_mm256_mul_ps(weight, input), sums[s][v]);
        }
    };
    for (int i = 0; i < 4; ++i) add(0, i);
    for (int i = 4; i < k; i += 4) {
#pragma GCC unroll 4
        for (int s = 0; s < 4; ++s) add(s, i + s);
    }
#pragma GCC unroll 2
    for (int v = 0; v < kHalves; ++v) {
        const __m256 even = _mm256_add_ps(sums[0][v], sums[2][v]), odd = _mm256_add_ps(sums[1][v], sums[3][v]);
        _mm256_storeu_ps(to + v * 8, _mm256_add_ps(even, odd));
    }
}
#pragma GCC pop_options
#else
void sum_block(const float*, const float*, int, float*) {}
#endif

}  // namespace

FourSums::FourSums(const float* weights, int n, int k)
    : n_(n), k_(k), packed_(aligned_floats(static_cast<std::size_t>((n + kOutputs - 1) / kOutputs) * k * kOutputs)) {
    for (int c = 0; c < n; ++c) {
        float* const block = packed_.get() + static_cast<std::ptrdiff_t>(c / kOutputs) * k * kOutputs + c % kOutputs;
        for (int i = 0; i < k; ++i) block[i * kOutputs] = weights[static_cast<std::ptrdiff_t>(c) * k + i];
    }
}

void FourSums::run(const float* x, float* y) const {
    for (int c = 0; c < n_; c += kOutputs) {
        float sums[kOutputs];
        sum_block(x, packed_.get() + static_cast<std::ptrdiff_t>(c) * k_, k_, sums);
        for (int i = 0; i < std::min(kOutputs, n_ - c); ++i) y[c + i] += sums[i];
    }
}

}  // namespace sparsecodec
