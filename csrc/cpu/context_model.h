// The entropy path of autoregressive codecs (arXiv 1809.02736): a masked convolution over what is decoded, 1x1
// convolutions over it and the hyper-prior, scales and means, symbols. One call codes a latent.
//
// Order: position (row, column) belongs to wave column + (reach + 1) * row, reach = size / 2. All that its context sees
// lies in earlier waves, so the positions of a wave are computed together. The stream holds the waves in ascending
// order, the positions of a wave by ascending row, the channels of a position in ascending order.
//
// Arithmetic: pinned, that of igemm.h, so the tables depend neither on the instruction set nor on threads. Context:
// from its bias, taps in the order (row, column). First 1x1: the hyper-prior's channels from the bias, the context's
// from zero, one addition of the two, then the activation. The other 1x1s as they stand. At a rate: the context, then one
// addition of the shift; scales times the gain; (y - mean) times the gain; a symbol, less its offset, times 1 / gain, plus
// the mean: one operation each.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/context_symbols.h"
#include "cpu/conv2d_act.h"
#include "cpu/igemm.h"
#include "cpu/image.h"
#include "entropy/rans.h"

namespace sparsecodec {

class ContextModel {
  public:
    using Layer = ContextLayer;  // the weights are borrowed during construction only

    // context: OIHW, k = the latent's channels, kh = kw odd. Only the taps before the centre, in the order (row,
    // column), count.
    // bias: [context.n] host or null. layers: at least one; the first takes the hyper-prior's channels followed by
    // context.n; the last gives the latent's scales or its scales and means.
    // means_first: whether means stand before scales. table: scale -> row of `tables`. offsets, bound: of pinned_offsets().
    // Throws std::invalid_argument for sizes that do not fit.
    ContextModel(const ConvKernel& context, const float* bias, const std::vector<Layer>& layers, bool means_first,
                 ScaleTable table, std::shared_ptr<const rans::Tables> tables, const std::vector<Layer>& offsets = {},
                 float bound = 0);

    // y: [1, latent, h, w]; prior: [1, prior_channels, h, w]; y_hat: as for decode(). rate.shift: [context_channels()].
    rans::Writer encode(const Image<const float>& y, const Image<const float>& prior, const Image<float>& y_hat,
                        const ContextRate& rate = {}) const;

    // y_hat: [1, latent, h + reach, w + 2 reach], written: row i, column j of the latent at row i + reach, column
    // j + reach, zeros around. Throws BitstreamError unless the stream holds exactly this latent.
    void decode(rans::Reader reader, const Image<const float>& prior, const Image<float>& y_hat,
                const ContextRate& rate = {}) const;

    int context_channels() const { return products_[0].n; }
    int latent() const { return symbols_.latent; }
    int prior_channels() const { return from_prior_.k(); }
    int reach() const { return reach_; }

  private:
    // A product cut into blocks of channels that threads share.
    struct Product {
        std::vector<igemm::Gemm<float>> blocks;
        int n;
        float slope;
    };
    // What a wave consists of and what its products give.
    struct Wave {
        int positions = 0;
        std::vector<std::ptrdiff_t> rows, columns;  // [positions]
        const float* parameters = nullptr;          // [positions, n of the last product]
    };

    static Product cut(igemm::Weights weights, const float* bias, float slope);
    std::vector<float> base_of(const Image<const float>& prior) const;
    template <class Code>
    void walk(const Image<const float>& prior, const Image<float>& y_hat, const ContextRate& rate, Code code) const;

    int reach_;
    ContextSymbols symbols_;
    ContextOffsets offsets_;
    igemm::Gemm<float> from_prior_;   // the hyper-prior's part of the first 1x1
    std::vector<Product> products_;   // context, the context's part of the first 1x1, the other 1x1s
};

}  // namespace sparsecodec
