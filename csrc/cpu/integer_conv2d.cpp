#include "cpu/integer_conv2d.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "check.h"
#include "common/parallel.h"
#include "common/requantize.h"
#include "cpu/conv_rows.h"

namespace sparsecodec {
namespace {

using integer::Block;
using integer::kBlock;
using integer::kHighShift;
using integer::Narrowing;
using integer::Products;

constexpr int kTile = 12;       // pixels of the widest register tile
constexpr std::ptrdiff_t kUnplaced = 4 * kTile;  // pixels of a task whose values are placed later: they stay cached

bool has_vnni(igemm::Isa isa) {
#if defined(__x86_64__)
    return isa >= igemm::Isa::kAvx512 && __builtin_cpu_supports("avx512vnni");
#else
    return false;
#endif
}

// Products of bytes where inputs are narrowed to them, weights fit into them and an instruction takes four at once
// without saturating; else narrowed inputs travel as int16.
Products products_of(const IntegerKernel& kernel, const IntegerConvOptions& options, igemm::Isa isa) {
    if (options.groups > 1) return Products::kDepthwise;
    const std::size_t size = static_cast<std::size_t>(kernel.n) * kernel.k * kernel.kh * kernel.kw;
    const auto is_byte = [](std::int32_t w) { return w >= -128 && w <= 127; };
    const bool bytes = options.narrowing && has_vnni(isa) && std::all_of(kernel.data, kernel.data + size, is_byte);
    return bytes ? Products::kBytes : Products::kPairs;
}

void narrow(const std::int16_t* x, std::ptrdiff_t n, const Narrowing& narrowing, std::int16_t* out) {
    for (std::ptrdiff_t i = 0; i < n; ++i) {
        const std::int32_t q = shifted_residual(x[i], -narrowing.shift);
        out[i] = static_cast<std::int16_t>(std::clamp(q, narrowing.low, narrowing.low + 255));
    }
}

void narrow_bytes(const std::int16_t* x, std::ptrdiff_t n, const Narrowing& narrowing, std::uint8_t* out) {
#if defined(__x86_64__)
    integer::narrow_bytes_avx512(x, n, narrowing, out);
#endif
}

// What the taps of a task's pixels read, with room for narrowed copies; one for each thread.
struct Inputs {
    std::ptrdiff_t k, taps, tile;
    std::optional<Narrowing> narrowing;
    std::vector<const std::int16_t*> rows;  // [taps][tile]
    std::vector<std::uint8_t> bytes;        // [taps][tile][4 ceil(k / 4)], or empty
    std::vector<std::int16_t> narrowed;     // [taps][tile][k], or empty

    Inputs(std::ptrdiff_t k_, std::ptrdiff_t taps_, std::ptrdiff_t tile_, Products products,
           const std::optional<Narrowing>& narrowing_)
        : k(k_), taps(taps_), tile(tile_), narrowing(narrowing_), rows(taps * tile) {
        if (products == Products::kBytes) {
            bytes.resize(rows.size() * padded());
        } else if (narrowing) {
            narrowed.resize(rows.size() * k);
        }
    }

    std::ptrdiff_t padded() const { return (k + 3) / 4 * 4; }

    // The rows of m pixels, which have been pointed at.
    void narrow_rows(std::ptrdiff_t m) {
        if (!narrowing) return;
        for (std::ptrdiff_t tap = 0; tap < taps; ++tap) {
            for (std::ptrdiff_t row = tap * tile; row < tap * tile + m; ++row) {
                if (!bytes.empty()) {
                    narrow_bytes(rows[row], k, *narrowing, &bytes[row * padded()]);
                } else {
                    narrow(rows[row], k, *narrowing, &narrowed[row * k]);
                    rows[row] = &narrowed[row * k];
                }
            }
        }
    }
};

void check(const IntegerKernel& kernel, const std::int32_t* multiplier, const std::int32_t* shift,
           const IntegerConvOptions& options) {
    const int r = options.shuffle;
    SC_CHECK(options.groups == 1 || (options.groups == kernel.n && kernel.k == 1), "groups=", options.groups, " with [",
             kernel.n, ", ", kernel.k, ", ...] weights (needs 1, or depthwise)");
    SC_CHECK(options.padding >= 0, "padding=", options.padding, " (needs padding >= 0)");
    SC_CHECK(options.stride >= 1, "stride=", options.stride, " (needs stride >= 1)");
    SC_CHECK(r >= 1 && kernel.n % (r * r) == 0, "shuffle=", r, " with C_out=", kernel.n,
             " (needs C_out divisible by shuffle^2)");
    SC_CHECK(options.residual_shift >= -kMaxResidualShift && options.residual_shift <= kMaxResidualShift,
             "residual_shift=", options.residual_shift, " (needs -30 to 30)");
    if (const auto& narrowing = options.narrowing) {
        SC_CHECK(narrowing->low >= -255 && narrowing->low <= 0, "input_low=", narrowing->low, " (needs -255 to 0)");
        SC_CHECK(std::abs(narrowing->shift) <= kMaxInputShift, "input_shift=", narrowing->shift, " (needs -15 to 15)");
    }
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

// The channels that are not zero whatever the input: those with a weight or a bias. Layers that were narrowed alone have
// few of them.
std::vector<int> living(const IntegerKernel& kernel, const std::int32_t* bias) {
    const std::ptrdiff_t each = static_cast<std::ptrdiff_t>(kernel.k) * kernel.kh * kernel.kw;
    std::vector<int> channels;
    for (int c = 0; c < kernel.n; ++c) {
        const std::int32_t* const w = kernel.data + c * each;
        if (bias[c] || std::any_of(w, w + each, [](std::int32_t value) { return value != 0; })) channels.push_back(c);
    }
    return channels;
}

int blocks_of(std::size_t columns) { return static_cast<int>((columns + kBlock - 1) / kBlock); }

std::vector<Block> make_blocks(const std::vector<int>& order, int shuffle, bool depthwise) {
    const int n = static_cast<int>(order.size()), cells = shuffle * shuffle;
    std::vector<Block> blocks(blocks_of(order.size()));
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
    : options_(options), kernel_(kernel), isa_(igemm::isa()) {
    check(kernel, multiplier, shift, options);
    products_ = products_of(kernel, options, isa_);
    const bool depthwise = products_ == Products::kDepthwise;
    kernel_.data = nullptr;
    for (int ky = 0; ky < kernel.kh; ++ky) {
        for (int kx = 0; kx < kernel.kw; ++kx) taps_.push_back({ky - options.padding, kx - options.padding});
    }
    zeros_.assign(input_channels(), 0);
    std::vector<int> order = column_order(kernel.n, options.shuffle, depthwise);
    if (!depthwise && options.shuffle == 1) {
        const std::vector<int> kept = living(kernel, bias);
        some_zero_ = blocks_of(kept.size()) < blocks_of(order.size());
        if (some_zero_) order = kept;
    }
    blocks_ = make_blocks(order, options.shuffle, depthwise);
    pack(kernel, bias, multiplier, shift, order);
}

void IntegerConv2d::pack(const IntegerKernel& kernel, const std::int32_t* bias, const std::int32_t* multiplier,
                         const std::int32_t* shift, const std::vector<int>& order) {
    const bool depthwise = products_ == Products::kDepthwise, bytes = products_ == Products::kBytes;
    const std::size_t taps = taps_.size(), k = kernel.k, kw = kernel.kw;
    const std::size_t each = bytes ? 4 : 2;  // values of a column that lie together, in four bytes
    const std::size_t words = depthwise ? (kernel.kh + 1) / 2 * kw : taps * ((k + each - 1) / each);
    const std::size_t size = words * kBlock * 4;  // bytes of a block
    const std::size_t total = std::max<std::size_t>(64, blocks_.size() * size);
    packed_.reset(static_cast<std::byte*>(std::aligned_alloc(64, total)));
    if (!packed_) throw std::bad_alloc();
    std::memset(packed_.get(), 0, total);
    for (std::size_t b = 0; b < blocks_.size(); ++b) {
        Block& block = blocks_[b];
        std::byte* const weights = packed_.get() + b * size;
        block.weights = weights;
        for (auto* values : {&block.bias, &block.positive, &block.negative}) values->assign(kBlock, 0);
        block.shift.assign(kBlock, kHighShift);
        for (int column = 0; column < block.n; ++column) {
            const int channel = order[b * kBlock + column];
            block.bias[column] = bias[channel];
            block.positive[column] = multiplier[channel];
            block.negative[column] = multiplier[kernel.n + channel];
            block.shift[column] = shift[channel];
            std::uint32_t weight_sum = 0;
            for (std::size_t tap = 0; tap < taps; ++tap) {
                for (std::size_t i = 0; i < k; ++i) {
                    const std::int32_t weight = kernel.data[(channel * k + i) * taps + tap];
                    const std::size_t word =
                        depthwise ? tap / kw / 2 * kw + tap % kw : tap * ((k + each - 1) / each) + i / each;
                    const std::size_t part = depthwise ? tap / kw % 2 : i % each;
                    std::byte* const to = weights + (word * kBlock + column) * 4 + part * (4 / each);
                    if (bytes) {
                        *to = static_cast<std::byte>(weight);
                    } else {
                        const auto narrow_weight = static_cast<std::int16_t>(weight);
                        std::memcpy(to, &narrow_weight, sizeof narrow_weight);
                    }
                    weight_sum += static_cast<std::uint32_t>(weight);
                }
            }
            // Bytes stand for q - low, zeros of the padding too. Modulo 2^32, as the sums.
            if (bytes) {
                block.bias[column] = static_cast<std::int32_t>(
                    static_cast<std::uint32_t>(bias[channel]) +
                    weight_sum * static_cast<std::uint32_t>(options_.narrowing->low));
            }
        }
        block.kind = integer::kind_of(block.factors(), block.n);
    }
}

template <class Out>
Image<Out> IntegerConv2d::result(const Image<const std::int16_t>& x) const {
    Image<Out> image;
    const int r = options_.shuffle;
    const auto positions = [&](std::ptrdiff_t size, int kernel) {
        const std::ptrdiff_t last = size + 2 * options_.padding - kernel;
        return last < 0 ? -1 : last / options_.stride + 1;
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
    if (has_vnni(isa_)) return integer::kernel_avx512vnni<Out, Residual>(products_);
    if (isa_ >= igemm::Isa::kAvx2) return integer::kernel_avx2<Out, Residual>(products_ == Products::kDepthwise);
#endif
    return integer::kernel_scalar<Out, Residual>(products_ == Products::kDepthwise);
}

template <class Out, class Residual>
void IntegerConv2d::run(const Image<const std::int16_t>& x, const Image<Out>& out,
                        const Image<const Residual>* residual) const {
    Grid grid;
    grid.h = out.h / options_.shuffle;
    grid.w = out.w / options_.shuffle;
    grid.taps = taps_;
    grid.stride = options_.stride;
    grid.out_step = options_.shuffle;
    const std::ptrdiff_t pixels = out.n * grid.h * grid.w;
    if (pixels == 0) return;
    const int taps = static_cast<int>(taps_.size());
    const std::ptrdiff_t cached = task_pixels(pixels, zeros_.size() * sizeof(std::int16_t), max_threads(), kTile);
    const std::ptrdiff_t tile = some_zero_ ? std::min(cached, kUnplaced) : cached;
    const integer::Kernel<Out, Residual> placed = kernel<Out, Residual>();
    const integer::Kernel<std::int32_t, std::int32_t> unplaced = kernel<std::int32_t, std::int32_t>();
    const std::ptrdiff_t stride = blocks_of(kernel_.n) * kBlock;  // of values that are not placed yet
    in_parallel((pixels + tile - 1) / tile, [&](Tasks& tasks) {
        Inputs inputs(input_channels(), taps, tile, products_, options_.narrowing);
        std::vector<Out*> to(tile);
        std::vector<const Residual*> from(residual ? tile : 0);
        std::vector<std::int32_t> values(some_zero_ ? tile * stride : 0);  // what no block makes stays zero
        std::vector<std::int32_t*> to_values(some_zero_ ? tile : 0);
        step_rows(to_values.data(), values.data(), stride, to_values.size());
        for (std::ptrdiff_t task; tasks.take(task);) {
            const std::ptrdiff_t first = task * tile, m = std::min(tile, pixels - first);
            point_rows(grid, x, zeros_.data(), 0, first, m, inputs.rows.data(), tile);
            point_out<Out>(grid, out, first, m, to.data());
            if (residual) point_out<const Residual>(grid, *residual, first, m, from.data());
            inputs.narrow_rows(m);
            const auto run_blocks = [&](const auto& kernel_of_block, auto args) {
                args.rows = inputs.rows.data();
                args.bytes = inputs.bytes.data();
                args.tap_step = tile;
                args.taps = taps;
                args.kw = kernel_.kw;
                args.k = kernel_.k;
                args.stride = options_.stride;
                args.column = static_cast<int>(first % grid.w);
                args.width = static_cast<int>(grid.w);
                for (const Block& block : blocks_) {
                    args.block = &block;
                    kernel_of_block.run(args);
                }
            };
            integer::BlockArgs<Out, Residual> args{};
            args.m = static_cast<int>(m);
            args.out = to.data();
            args.out_places = {out.stride_h, out.stride_w};
            args.residual_shift = options_.residual_shift;
            if (residual) {
                args.residual = from.data();
                args.residual_places = {residual->stride_h, residual->stride_w};
            }
            if (!some_zero_) {
                run_blocks(placed, args);
                continue;
            }
            integer::BlockArgs<std::int32_t, std::int32_t> apart{};
            apart.m = args.m;
            apart.out = to_values.data();
            run_blocks(unplaced, apart);
            placed.place(args, values.data(), stride, kernel_.n);
        }
    });
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
