// integer_conv2d. What it computes: sparsecodec/ops/integer_conv2d.py. An engine beside igemm.h, because nothing of
// a float product's epilogue has a meaning here; pixels are cut and addressed by the same code (conv_rows.h).
//
// Arithmetic: exact. Accumulators are int32 (beyond what the caller proves they wrap, alike on every instruction set).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <vector>

#include "cpu/conv_grid.h"
#include "cpu/integer_factors.h"

namespace sparsecodec {
namespace integer {

struct Narrowing {  // q = clip(x 2^-shift, low, low + 255), halves upwards
    int shift, low;
};

}  // namespace integer

struct IntegerConvOptions {
    int residual_shift = 0, padding = 0, stride = 1, groups = 1, shuffle = 1;
    std::optional<integer::Narrowing> narrowing;  // of the input to 8 bits
};

struct IntegerKernel {
    const std::int32_t* data;  // host, OIHW contiguous, values of int16; borrowed during construction only
    int n, k, kh, kw;          // k: input channels of a group
};

namespace integer {

inline constexpr int kBlock = 32;  // output channels of a packed block

// The columns of a block that lie next to each other in the result: channel `channel` and after of the pixel `row` rows
// below and `column` columns right of the one that the out pointer names (0 without a shuffle).
struct Segment {
    int begin, end, row, column;
    std::ptrdiff_t channel;
};

// Whose products an instruction adds: pairs of int16 channels, fours of bytes, pairs of rows of one channel.
enum class Products { kPairs, kBytes, kDepthwise };

struct Block {
    int n;                          // columns used
    int first_channel;              // depthwise: of the input; else 0
    Kind kind;
    std::vector<Segment> segments;  // cover [0, n)
    std::vector<std::int32_t> bias, positive, negative, shift;  // [kBlock]; past n: 0, 0, 0, 33
    FactorRows factors() const { return {positive.data(), negative.data(), shift.data()}; }
    const void* weights;  // 64-byte aligned. kPairs: int16_t [taps][ceil(k / 2)][kBlock][2]; kDepthwise: pairs of kernel
                          // rows, [ceil(kh / 2)][kw][kBlock][2]; kBytes: int8_t [taps][ceil(k / 4)][kBlock][4]
};

struct Places {  // of the pixels in an image of the result's size
    std::ptrdiff_t stride_h, stride_w;  // elements
};

template <class Out, class Residual>
struct BlockArgs {
    const Block* block;
    const std::int16_t* const* rows;  // [taps][tap_step], each with k elements (depthwise: all channels)
    const std::uint8_t* bytes;        // kBytes, instead of rows: [taps][tap_step][4 ceil(k / 4)], each q - low
    std::ptrdiff_t tap_step;
    int m, taps, kw, k;
    int stride;                       // of the convolution: 1 where neighbours of a row read neighbours
    int column, width;                // of the grid: that of the first pixel, and how many a row has
    Out* const* out;                  // [m]
    const Residual* const* residual;  // [m] or null
    Places out_places, residual_places;
    int residual_shift;
};

template <class Out, class Residual>
struct Kernel {
    using Args = BlockArgs<Out, Residual>;
    void (*run)(const Args&);  // one block of channels of m pixels
    // All n channels of m pixels without a product: values [m][stride], plus the residual. Columns up to the next
    // multiple of kBlock are read. Of args: m, out, residual and its shift.
    void (*place)(const Args& args, const std::int32_t* values, std::ptrdiff_t stride, int n);
};

// Out, Residual: int16_t or int32_t.
template <class Out, class Residual>
Kernel<Out, Residual> kernel_scalar(bool depthwise);
#if defined(__x86_64__)
template <class Out, class Residual>
Kernel<Out, Residual> kernel_avx2(bool depthwise);
template <class Out, class Residual>
Kernel<Out, Residual> kernel_avx512vnni(Products products);

// out[i] = q - low of n values.
void narrow_bytes_avx512(const std::int16_t* x, std::ptrdiff_t n, const Narrowing& narrowing, std::uint8_t* out);
#endif

}  // namespace integer

class IntegerConv2d {
  public:
    // bias, shift: [kernel.n], multiplier: [2][kernel.n], host. Throws std::invalid_argument for values out of the
    // spec's ranges and for groups or a shuffle that do not fit. The instruction set is the one of igemm::isa() now.
    IntegerConv2d(const IntegerKernel& kernel, const std::int32_t* bias, const std::int32_t* multiplier,
                  const std::int32_t* shift, const IntegerConvOptions& options);

    int input_channels() const {
        return products_ == integer::Products::kDepthwise ? kernel_.n : kernel_.k;
    }

    // Size of the result for an input of this size, [n, c, h, w], negative where x is smaller than the kernel.
    template <class Out>
    Image<Out> result(const Image<const std::int16_t>& x) const;

    // out, and residual where given, have the size that result() says. residual may be out.
    template <class Out, class Residual>
    void run(const Image<const std::int16_t>& x, const Image<Out>& out, const Image<const Residual>* residual) const;

  private:
    struct Free {
        void operator()(std::byte* p) const { std::free(p); }
    };
    template <class Out, class Residual>
    integer::Kernel<Out, Residual> kernel() const;
    void pack(const IntegerKernel& kernel, const std::int32_t* bias, const std::int32_t* multiplier,
              const std::int32_t* shift, const std::vector<int>& order);

    IntegerConvOptions options_;
    IntegerKernel kernel_;  // data is null
    integer::Products products_;
    bool some_zero_ = false;  // whole channels are: the blocks leave them out, and only the residual makes them
    igemm::Isa isa_;
    std::vector<Grid::Tap> taps_;
    std::vector<integer::Block> blocks_;
    std::unique_ptr<std::byte[], Free> packed_;
    std::vector<std::int16_t> zeros_;
};

}  // namespace sparsecodec
