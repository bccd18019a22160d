#include "cpu/integer_conv2d.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "check.h"
#include "common/requantize.h"
#include "cpu/conv_rows.h"

namespace sparsecodec {
namespace {

using integer::Block;
using integer::kBlock;

constexpr int kTile = 12;       // pixels of the widest register tile
constexpr int kHighShift = 33;  // of integer::Kind::kHigh

void check(const IntegerKernel& kernel, const std::int32_t* multiplier, const std::int32_t* shift,
           const IntegerConvOptions& options) {
    const int r = options.shuffle;
    SC_CHECK(options.groups == 1 || (options.groups == kernel.n && kernel.k == 1), "groups=", options.groups, " with [",
             kernel.n, ", ", kernel.k, ", ...] weights (needs 1, or depthwise)");
    SC_CHECK(options.padding >= 0, "padding=", options.padding, " (needs padding >= 0)");
    SC_CHECK(r >= 1 && kernel.n % (r * r) == 0, "shuffle=", r, " with C_out=", kernel.n,
             " (needs C_out divisible by shuffle^2)");
    SC_CHECK(options.residual_shift >= -kMaxResidualShift && options.residual_shift <= kMaxResidualShift,
             "residual_shift=", options.residual_shift, " (needs -30 to 30)");
    for (int c = 0; c < 2 * kernel.n; ++c) {
        SC_CHECK(multiplier[c] >= 0 && multiplier[c] < kFixedLimit, "multiplier holds ", multiplier[c],
                 " (needs 0 to 2^30 - 1)");
    }
    for (int c = 0; c < kernel.n; ++c) {
        SC_CHECK(shift[c] >= kMinShift && shift[c] <= kMaxShift, "shift holds ", shift[c], " (needs 1 to 62)");
    }
}

// The channel in each packed column. Columns of one cell of the shuffle lie together, as they are written together;
// depthwise columns stay in the order in which the input is read.
std::vector<int> column_order(int n, int shuffle, bool depthwise) {
    const int cells = depthwise ? 1 : shuffle * shuffle;
    std::vector<int> order(n);
    for (int column = 0; column < n; ++column) order[column] = column % (n / cells) * cells + column / (n / cells);
    return order;
}

std::vector<Block> make_blocks(const std::vector<int>& order, int shuffle, bool depthwise) {
    const int n = static_cast<int>(order.size()), cells = shuffle * shuffle;
    std::vector<Block> blocks((n + kBlock - 1) / kBlock);
    for (int column = 0; column < n; ++column) {
        Block& block = blocks[column / kBlock];
        const int at = column % kBlock, channel = order[column] / cells, cell = order[column] % cells;
        if (at == 0) block.first_channel = depthwise ? column : 0;
        block.n = at + 1;
        const integer::Segment next{at, at + 1, cell / shuffle, cell % shuffle, channel};
        if (at > 0) {
            integer::Segment& last = block.segments.back();
            if (last.row == next.row && last.column == next.column && last.channel + at - last.begin == channel) {
                ++last.end;
                continue;
            }
        }
        block.segments.push_back(next);
    }
    return blocks;
}

}  // namespace

IntegerConv2d::IntegerConv2d(const IntegerKernel& kernel, const std::int32_t* bias, const std::int32_t* multiplier,
                             const std::int32_t* shift, const IntegerConvOptions& options)
    : options_(options), kernel_(kernel), depthwise_(options.groups > 1), isa_(igemm::isa()) {
    check(kernel, multiplier, shift, options);
    kernel_.data = nullptr;
    for (int ky = 0; ky < kernel.kh; ++ky) {
        for (int kx = 0; kx < kernel.kw; ++kx) taps_.push_back({ky - options.padding, kx - options.padding});
    }
    zeros_.assign(input_channels(), 0);
    const std::vector<int> order = column_order(kernel.n, options.shuffle, depthwise_);
    blocks_ = make_blocks(order, options.shuffle, depthwise_);
    const std::size_t taps = taps_.size(), k = kernel.k, kw = kernel.kw;
    const std::size_t pairs = depthwise_ ? (kernel.kh + 1) / 2 * kw : taps * ((k + 1) / 2);
    const std::size_t size = pairs * kBlock * 2;  // of a block
    const std::size_t bytes = std::max<std::size_t>(64, blocks_.size() * size * sizeof(std::int16_t));
    packed_.reset(static_cast<std::int16_t*>(std::aligned_alloc(64, bytes)));
    if (!packed_) throw std::bad_alloc();
    std::memset(packed_.get(), 0, bytes);
    for (std::size_t b = 0; b < blocks_.size(); ++b) {
        Block& block = blocks_[b];
        std::int16_t* const weights = packed_.get() + b * size;
        block.weights = weights;
        bool high = true, linear = true;
        for (auto* values : {&block.bias, &block.positive, &block.negative}) values->assign(kBlock, 0);
        block.shift.assign(kBlock, kHighShift);
        for (int column = 0; column < block.n; ++column) {
            const int channel = order[b * kBlock + column];
            block.bias[column] = bias[channel];
            block.positive[column] = multiplier[channel];
            block.negative[column] = multiplier[kernel.n + channel];
            block.shift[column] = shift[channel];
            high = high && shift[channel] >= kHighShift;
            linear = linear && block.positive[column] == block.negative[column];
            for (std::size_t tap = 0; tap < taps; ++tap) {
                for (std::size_t i = 0; i < k; ++i) {
                    const std::size_t pair = depthwise_ ? tap / kw / 2 * kw + tap % kw : tap * ((k + 1) / 2) + i / 2;
                    const std::size_t half = depthwise_ ? tap / kw % 2 : i % 2;
                    weights[(pair * kBlock + column) * 2 + half] =
                        static_cast<std::int16_t>(kernel.data[(channel * k + i) * taps + tap]);
                }
            }
        }
        block.kind = !high ? integer::Kind::kAny : linear ? integer::Kind::kHighLinear : integer::Kind::kHigh;
    }
}

template <class Out>
Image<Out> IntegerConv2d::result(const Image<const std::int16_t>& x) const {
    Image<Out> image;
    const int r = options_.shuffle;
    const auto positions = [&](std::ptrdiff_t size, int kernel) {
        const std::ptrdiff_t last = size + 2 * options_.padding - kernel;
        return last < 0 ? -1 : last + 1;
    };
    image.n = x.n;
    image.c = kernel_.n / (r * r);
    image.h = positions(x.h, kernel_.kh) * r;
    image.w = positions(x.w, kernel_.kw) * r;
    return image;
}

// AVX-512 without VNNI runs the AVX2 kernel: a third one would have to be kept correct for few machines.
template <class Out, class Residual>
integer::Kernel<Out, Residual> IntegerConv2d::kernel() const {
#if defined(__x86_64__)
    if (isa_ >= igemm::Isa::kAvx512 && __builtin_cpu_supports("avx512vnni")) {
        return integer::kernel_avx512vnni<Out, Residual>(depthwise_);
    }
    if (isa_ >= igemm::Isa::kAvx2) return integer::kernel_avx2<Out, Residual>(depthwise_);
#endif
    return integer::kernel_scalar<Out, Residual>(depthwise_);
}

template <class Out, class Residual>
void IntegerConv2d::run(const Image<const std::int16_t>& x, const Image<Out>& out,
                        const Image<const Residual>* residual) const {
    Grid grid;
    grid.h = out.h / options_.shuffle;
    grid.w = out.w / options_.shuffle;
    grid.taps = taps_;
    grid.out_step = options_.shuffle;
    const std::ptrdiff_t pixels = out.n * grid.h * grid.w;
    if (pixels == 0) return;
    const int threads = omp_get_max_threads(), taps = static_cast<int>(taps_.size());
    const std::ptrdiff_t tile = task_pixels(pixels, zeros_.size() * sizeof(std::int16_t), threads, kTile);
    const std::ptrdiff_t tasks = (pixels + tile - 1) / tile;
    const integer::Kernel<Out, Residual> run_block = kernel<Out, Residual>();
#pragma omp parallel num_threads(std::min<std::ptrdiff_t>(threads, tasks)) if (tasks > 1)
    {
        std::vector<const std::int16_t*> rows(taps * tile);
        std::vector<Out*> to(tile);
        std::vector<const Residual*> from(residual ? tile : 0);
#pragma omp for schedule(dynamic)
        for (std::ptrdiff_t task = 0; task < tasks; ++task) {
            const std::ptrdiff_t first = task * tile, m = std::min(tile, pixels - first);
            point_rows(grid, x, zeros_.data(), 0, first, m, rows.data(), tile);
            point_out<Out>(grid, out, first, m, to.data());
            if (residual) point_out<const Residual>(grid, *residual, first, m, from.data());
            integer::BlockArgs<Out, Residual> args{nullptr, rows.data(), tile, static_cast<int>(m), taps, kernel_.kw,
                                                   kernel_.k, static_cast<int>(first % grid.w),
                                                   static_cast<int>(grid.w), to.data(),
                                                   residual ? from.data() : nullptr, {out.stride_h, out.stride_w}, {},
                                                   options_.residual_shift};
            if (residual) args.residual_places = {residual->stride_h, residual->stride_w};
            for (const Block& block : blocks_) {
                args.block = &block;
                run_block(args);
            }
        }
    }
}

using std::int16_t;
using std::int32_t;
template Image<int16_t> IntegerConv2d::result(const Image<const int16_t>&) const;
template Image<int32_t> IntegerConv2d::result(const Image<const int16_t>&) const;
template void IntegerConv2d::run(const Image<const int16_t>&, const Image<int16_t>&, const Image<const int16_t>*) const;
template void IntegerConv2d::run(const Image<const int16_t>&, const Image<int16_t>&, const Image<const int32_t>*) const;
template void IntegerConv2d::run(const Image<const int16_t>&, const Image<int32_t>&, const Image<const int16_t>*) const;
template void IntegerConv2d::run(const Image<const int16_t>&, const Image<int32_t>&, const Image<const int32_t>*) const;

}  // namespace sparsecodec
