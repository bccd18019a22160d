// Portable kernel: plain loops over csrc/common/requantize.h. The judge of the other instruction sets.
#include "common/requantize.h"
#include "cpu/integer_scale.h"

namespace sparsecodec::integer {

template <class X, class Residual, class Out>
void scale_scalar(const ScaleArgs<X, Residual, Out>& args) {
    constexpr std::int32_t raise = std::int32_t{1} << raised_bits<X>;
    for (std::ptrdiff_t i = 0; i < args.count; ++i) {
        const X* const x = args.x + i * args.x_step;
        const Residual* const residual = args.residual + i * args.residual_step;
        Out* const out = args.out + i * args.out_step;
        for (int c = 0; c < args.n; ++c) {
            std::int32_t value =
                requantized(x[c] * raise, args.rows.positive[c], args.rows.negative[c], args.rows.shift[c]);
            if (args.residual) value += shifted_residual(residual[c], args.residual_shift);
            out[c] = narrowed<Out>(value);
        }
    }
}

SC_INSTANTIATE_SCALE(scale_scalar);

}  // namespace sparsecodec::integer
