// Divisive normalisation on integers. What it computes: sparsecodec/ops/integer_gdn.py.
//
// Arithmetic: exact. All numbers are integers below 2^53 in double, so sums have no order, and a floor of a root or of
// a quotient is the right integer.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/igemm.h"
#include "cpu/image.h"

namespace sparsecodec {
namespace integer {

inline constexpr int kGdnPixels = 8;    // of a register tile
inline constexpr int kGdnColumns = 16;  // channels of one

// The constants of kGdnColumns channels, or of those that are left and zeros.
struct GdnBlock {
    const double* gamma;  // [c][kGdnColumns]
    const double* beta;   // [kGdnColumns]
    const double* scale;  // [kGdnColumns]: 2^-shift with `inverse`, else 2^(shift + 1)
};

// norms: [kGdnPixels][kGdnColumns], of kGdnPixels rows of `c` squares.
using GdnSums = void (*)(const double* squares, int c, const GdnBlock& block, double* norms);
// out: [n] from x and norms.
template <class Out>
using GdnFinish = void (*)(const std::int16_t* x, const double* norms, const double* scale, int n, bool inverse,
                           Out* out);

}  // namespace integer

class IntegerGdn {
  public:
    // beta, shift: [c], gamma: [c][c]; not kept. Throws std::invalid_argument for numbers out of the spec's ranges. The
    // instruction set is the one of igemm::isa() now.
    IntegerGdn(const std::vector<std::int64_t>& beta, const std::vector<std::int32_t>& gamma,
               const std::vector<std::int32_t>& shift, bool inverse);

    int channels() const { return channels_; }

    // x, out: [n, channels, h, w], not the same memory. Out: int16_t or int32_t.
    template <class Out>
    void run(const Image<const std::int16_t>& x, const Image<Out>& out) const;

  private:
    int channels_;
    bool inverse_;
    std::vector<double> gamma_, beta_, scale_;  // [blocks][c][kGdnColumns], [blocks][kGdnColumns] twice
    igemm::Isa isa_;
};

}  // namespace sparsecodec
