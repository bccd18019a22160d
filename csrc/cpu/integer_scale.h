// integer_scale: factors of channels by sign, and another tensor. What it computes: sparsecodec/ops/integer_scale.py.
//
// Arithmetic: exact, the requantisation of integer_conv2d.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/igemm.h"
#include "cpu/image.h"
#include "cpu/integer_factors.h"

namespace sparsecodec {
namespace integer {

// `count` spans of n values each, and what is added to them.
template <class X, class Residual, class Out>
struct ScaleArgs {
    const X* x;
    const Residual* residual;  // or null
    Out* out;
    std::ptrdiff_t x_step, residual_step, out_step;  // from span to span
    std::ptrdiff_t count;
    int n;
    FactorRows rows;  // of x 2^raised_bits<X>
    Kind kind;
    int residual_shift;
};

// Values of 16 bits are taken times 2^16: then almost all shifts are high.
template <class X>
inline constexpr int raised_bits = 32 - 8 * static_cast<int>(sizeof(X));

// X, Residual, Out: int16_t or int32_t.
template <class X, class Residual, class Out>
void scale_scalar(const ScaleArgs<X, Residual, Out>& args);
#if defined(__x86_64__)
template <class X, class Residual, class Out>
void scale_avx2(const ScaleArgs<X, Residual, Out>& args);
template <class X, class Residual, class Out>
void scale_avx512(const ScaleArgs<X, Residual, Out>& args);
#endif

// All of them, for explicit instantiation.
#define SC_INSTANTIATE_SCALE(name)                                                       \
    template void name(const ScaleArgs<std::int16_t, std::int16_t, std::int16_t>&);     \
    template void name(const ScaleArgs<std::int16_t, std::int16_t, std::int32_t>&);     \
    template void name(const ScaleArgs<std::int16_t, std::int32_t, std::int16_t>&);     \
    template void name(const ScaleArgs<std::int16_t, std::int32_t, std::int32_t>&);     \
    template void name(const ScaleArgs<std::int32_t, std::int16_t, std::int16_t>&);     \
    template void name(const ScaleArgs<std::int32_t, std::int16_t, std::int32_t>&);     \
    template void name(const ScaleArgs<std::int32_t, std::int32_t, std::int16_t>&);     \
    template void name(const ScaleArgs<std::int32_t, std::int32_t, std::int32_t>&)

}  // namespace integer

class IntegerScale {
  public:
    // shift: of each channel. Throws std::invalid_argument for numbers out of the spec's ranges. The instruction set is
    // the one of igemm::isa() now.
    IntegerScale(std::vector<std::int32_t> shift, int residual_shift);

    int channels() const { return static_cast<int>(shift_.size()); }

    // multiplier: host, [2][channels()]; throws std::invalid_argument for one out of range. x, out and residual, where
    // given, have one size and channels() channels; x or residual may be out.
    template <class X, class Residual, class Out>
    void run(const Image<const X>& x, const std::int32_t* multiplier, const Image<const Residual>* residual,
             const Image<Out>& out) const;

  private:
    std::vector<std::int32_t> shift_;
    int residual_shift_;
    igemm::Isa isa_;
};

}  // namespace sparsecodec
