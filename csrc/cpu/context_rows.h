// A context model position by position, row by row, in the arithmetic with which torch runs the same layers: what
// CompressAI's own strings need, as one different bit of a scale loses the stream.
//
// torch gives the masked convolution to oneDNN's direct kernel: blocks of `block` input channels; for each one the sum
// over (tap, channel) from zero, with fma; the first plus the bias, then each plus what came before. Taps that the mask
// hides add nothing. The 1x1s are matrix-vector products by its BLAS, onto the bias: that very function is called, or
// FourSums, which knows one order in which it adds. None of this is promised by torch: the caller compares `parameters` with torch before it relies on them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "cpu/context_model.h"
#include "cpu/four_sums.h"

namespace sparsecodec {

class ContextRows {
  public:
    // BLAS's sgemv. Its integers may have 32 or 64 bits: a little-endian machine reads either from 64.
    using Gemv = void (*)(const char* trans, const std::int64_t* m, const std::int64_t* n, const float* alpha,
                          const float* a, const std::int64_t* lda, const float* x, const std::int64_t* incx,
                          const float* beta, float* y, const std::int64_t* incy);

    // As for ContextModel, but the layers' weights are borrowed for the life of this object and used where they lie,
    // because the bits depend on their alignment. Throws std::invalid_argument without AVX2 and FMA.
    ContextRows(const ConvKernel& context, const float* bias, const std::vector<ContextModel::Layer>& layers,
                bool means_first, ScaleTable table, std::shared_ptr<const rans::Tables> tables, int block, Gemv gemv,
                bool four_sums, ContextOffsets offsets = {});

    // The entropy parameters at the first position: y_hat: [1, latent, >= size, >= size]; prior: [1, P, >= 1, >= 1];
    // to: [entropy_parameters()].
    void parameters(const Image<const float>& y_hat, const Image<const float>& prior, float* to) const;

    const ContextOffsets& offsets() const { return offsets_; }

    // As in ContextModel, in another order and arithmetic.
    rans::Writer encode(const Image<const float>& y, const Image<const float>& prior, const Image<float>& y_hat,
                        const ContextRate& rate = {}) const;
    void decode(rans::Reader reader, const Image<const float>& prior, const Image<float>& y_hat,
                const ContextRate& rate = {}) const;

    int context_channels() const { return channels_; }

    int latent() const { return symbols_.latent; }
    int prior_channels() const { return layers_[0].k - channels_; }
    int entropy_parameters() const { return layers_.back().n; }
    int reach() const { return reach_; }

  private:
    struct Scratch {
        std::vector<float> above;     // [block of input channels][column][padded_]
        std::vector<const float*> from;
        std::vector<float*> to;
        std::vector<AlignedFloats> values;   // the inputs of each layer, and the result of the last
    };
    Scratch scratch(std::ptrdiff_t columns) const;
    void start_row(const Image<const float>& y_hat, std::ptrdiff_t row, std::ptrdiff_t columns, Scratch& scratch) const;
    const float* at(const Image<const float>& y_hat, const float* prior, std::ptrdiff_t row, std::ptrdiff_t column,
                    std::ptrdiff_t columns, const ContextRate& rate, Scratch& scratch) const;
    template <class Code>
    void walk(const Image<const float>& prior, const Image<float>& y_hat, const ContextRate& rate, Code code) const;

    int size_, reach_, channels_, padded_, block_;   // channels_: of the context; padded_: multiple of igemm::kBlock
    ContextSymbols symbols_;
    ContextOffsets offsets_;
    std::vector<ContextModel::Layer> layers_;
    Gemv gemv_;
    std::vector<std::optional<FourSums>> sums_;  // of each layer, instead of gemv_
    std::vector<igemm::Gemm<float>> above_;  // per block of input channels: the taps of the rows above
    AlignedFloats beside_;                          // taps of the same row: [channels / 32][input channel blocks][tap][block][32]
    AlignedFloats bias_;                            // [padded_]
};

}  // namespace sparsecodec
