// Variable rate in a context model (arXiv 2402.18930): one gain for a picture, and what follows from it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

namespace sparsecodec {

// A 1x1 convolution and the activation behind it.
struct ContextLayer {
    const float* weight;  // [n, k], host
    const float* bias;    // [n] or null
    int n, k;
    float slope;          // factor of negative values: 1 = none, 0 = ReLU
};

// Of one picture. The default leaves everything as it is.
struct ContextRate {
    float gain = 1;            // factor of the scales, > 0
    bool scaled = false;       // whether of the latent less its means, too; without it the rest is off
    std::vector<float> shift;  // [context channels], added to the context; or empty
};

// How far towards zero from its symbol a value is taken to be, given (deviation, gain).
struct ContextOffsets {
    std::function<void(const float* pairs, std::ptrdiff_t count, float* to)> network;  // [count][2] -> [count]; or empty
    float bound = 0;                                                                   // least deviation
};

// BLAS's sgemm. Its integers may have 32 or 64 bits: a little-endian machine reads either from 64.
using BlasGemm = void (*)(const char* transa, const char* transb, const std::int64_t* m, const std::int64_t* n,
                          const std::int64_t* k, const float* alpha, const float* a, const std::int64_t* lda,
                          const float* b, const std::int64_t* ldb, const float* beta, float* c, const std::int64_t* ldc);

struct FreeFloats {
    void operator()(float* p) const { std::free(p); }
};
using AlignedFloats = std::unique_ptr<float[], FreeFloats>;

// Zeros, aligned as torch aligns: the bits of a BLAS may depend on it. Throws std::bad_alloc.
AlignedFloats aligned_floats(std::size_t count);

// layers: none for no network; else from 2 channels to 1, throws std::invalid_argument otherwise. Pinned, that of igemm.h.
ContextOffsets pinned_offsets(const std::vector<ContextLayer>& layers, float bound);

// As torch's linear layers compute it: onto the bias by its BLAS. layers: borrowed for the life of the result.
ContextOffsets blas_offsets(const std::vector<ContextLayer>& layers, float bound, BlasGemm gemm);

}  // namespace sparsecodec
