// Portable kernel: plain loops over csrc/common/requantize.h. The judge of the other instruction sets.
#include "common/requantize.h"
#include "cpu/integer_conv2d.h"

namespace sparsecodec::integer {
namespace {

// Sums of one pixel [kBlock], modulo 2^32.
template <bool depthwise, class Args>
void sum_pixel(const Args& args, int i, std::uint32_t* sums) {
    const Block& block = *args.block;
    const auto* const weights = static_cast<const std::int16_t*>(block.weights);
    const auto product = [](std::int16_t x, std::int16_t w) {
        return static_cast<std::uint32_t>(static_cast<std::int32_t>(x) * w);
    };
    for (int c = 0; c < block.n; ++c) sums[c] = static_cast<std::uint32_t>(block.bias[c]);
    for (int tap = 0; tap < args.taps; ++tap) {
        const std::int16_t* const x = args.rows[tap * args.tap_step + i];
        if (depthwise) {
            const int row = tap / args.kw;
            const std::int16_t* const w = weights + (row / 2 * args.kw + tap % args.kw) * kBlock * 2 + row % 2;
            for (int c = 0; c < block.n; ++c) sums[c] += product(x[block.first_channel + c], w[2 * c]);
            continue;
        }
        const std::ptrdiff_t pairs = (args.k + 1) / 2;
        const std::int16_t* const w = weights + tap * pairs * kBlock * 2;
        for (int k = 0; k < args.k; ++k) {
            for (int c = 0; c < block.n; ++c) sums[c] += product(x[k], w[(k / 2 * kBlock + c) * 2 + k % 2]);
        }
    }
}

template <bool depthwise, class Out, class Residual>
void run(const BlockArgs<Out, Residual>& args) {
    const Block& block = *args.block;
    for (int i = 0; i < args.m; ++i) {
        std::uint32_t sums[kBlock];
        sum_pixel<depthwise>(args, i, sums);
        for (const Segment& segment : block.segments) {
            const auto at = [&](const Places& p) {
                return segment.row * p.stride_h + segment.column * p.stride_w + segment.channel - segment.begin;
            };
            Out* const out = args.out[i] + at(args.out_places);
            for (int c = segment.begin; c < segment.end; ++c) {
                std::int32_t value = requantized(static_cast<std::int32_t>(sums[c]), block.positive[c],
                                                 block.negative[c], block.shift[c]);
                if (args.residual) {
                    value += shifted_residual(args.residual[i][at(args.residual_places) + c], args.residual_shift);
                }
                out[c] = narrowed<Out>(value);
            }
        }
    }
}

template <class Out, class Residual>
void place_values(const BlockArgs<Out, Residual>& args, const std::int32_t* values, std::ptrdiff_t stride, int n) {
    for (int i = 0; i < args.m; ++i, values += stride) {
        for (int c = 0; c < n; ++c) {
            const std::int32_t added =
                args.residual ? shifted_residual(args.residual[i][c], args.residual_shift) : 0;
            args.out[i][c] = narrowed<Out>(values[c] + added);
        }
    }
}

}  // namespace

template <class Out, class Residual>
Kernel<Out, Residual> kernel_scalar(bool depthwise) {
    return {depthwise ? run<true, Out, Residual> : run<false, Out, Residual>, place_values<Out, Residual>};
}

template Kernel<std::int16_t, std::int16_t> kernel_scalar(bool);
template Kernel<std::int16_t, std::int32_t> kernel_scalar(bool);
template Kernel<std::int32_t, std::int16_t> kernel_scalar(bool);
template Kernel<std::int32_t, std::int32_t> kernel_scalar(bool);

}  // namespace sparsecodec::integer
