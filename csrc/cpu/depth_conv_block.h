// A depthwise block and the feed-forward block behind it in one pass over the picture. What it computes:
// sparsecodec/ops/depth_conv_block.py.
//
// The picture is cut into columns narrow enough that a few rows of every intermediate stay in the second-level cache. In
// a column, rows move through a ring: each row of the first product is computed once, for the pixels of the column and
// one more on either side; the hidden layer of the feed-forward block exists for one group of pixels at a time.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "cpu/conv_grid.h"
#include "cpu/depthwise.h"

namespace sparsecodec {

// Matrices [n, k] row by row, borrowed during construction only; a null bias stands for zeros.
struct Matrix {
    const float* weight;
    const float* bias;
    int n, k;
};

struct DepthConvBlockParts {
    Matrix first;                  // [C1, k1]
    const float* depthwise;        // [C1, 3, 3]
    const float* depthwise_bias;   // [C1] or null
    Matrix second;                 // [C2, C1]
    std::optional<Matrix> adaptor; // [Co, C]; without it Co = C
    Matrix hidden;                 // [H, k3]
    Matrix last;                   // [C4, H]
    std::vector<std::int32_t> in1_index, in3_index;  // [k1], [k3] or empty: all channels
    std::optional<std::vector<std::int32_t>> out2_index, out4_index;  // [C2], [C4] channels of Co
    float slopes[5];               // after first, depthwise, second, hidden, last: 1 = identity, 0 = ReLU
    std::optional<float> rest_slope;  // after the chunks of hidden behind the first one
    bool gated = false;            // the activation after first and hidden is x * sigmoid(4 x) instead
    int chunks = 1;                // of the hidden layer, as in igemm::Layout; then last is [C4, H / chunks]
    bool interleaved = false;
    bool shortcut = false;         // the input, after the adaptor if there is one, is added to the result as well
    int c = 0, co = 0;             // channels of the input and of the result
};

template <class T>
class DepthConvBlock {
  public:
    // Throws std::invalid_argument for shapes or indices that do not fit.
    explicit DepthConvBlock(const DepthConvBlockParts& parts);

    int channels_in() const { return c_; }
    int channels_out() const { return co_; }

    // x: [n, channels_in, h, w]; out: [n, channels_out, h, w], no memory in common with x; scale: [channels_out] or
    // null, factors of the result. The bits of a float result do not depend on the number of threads, nor on the rest of
    // the batch.
    void run(const Image<const T>& x, const Image<T>& out, const float* scale = nullptr) const;

  private:
    struct Scratch;
    struct Column;
    void run_column(const Image<const T>& x, const Image<T>& out, const Column& column, Scratch& scratch) const;
    void first_rows(const Image<const T>& x, const Column& column, std::ptrdiff_t from, std::ptrdiff_t to,
                    Scratch& scratch) const;
    void middle(const Image<const T>& x, const Column& column, std::ptrdiff_t y, std::ptrdiff_t rows,
                Scratch& scratch) const;
    void feed_forward(const Image<const T>& x, const Image<T>& out, const Column& column, std::ptrdiff_t y,
                      std::ptrdiff_t rows, Scratch& scratch) const;

    int c_, c1_, co_;
    bool shortcut_;
    Gather gather1_, gather3_;
    igemm::Gemm<T> first_, second_, hidden_, last_;
    std::optional<igemm::Gemm<T>> adaptor_;
    igemm::Activation activations_[5];
    std::ptrdiff_t lanes_;                 // c1 rounded up to kLanes
    std::vector<float> depthwise_;         // [10][lanes] and room to align it: nine taps, bias
    DepthwiseRow<T> depthwise_row_;
};

}  // namespace sparsecodec
