#include "cpu/integer_scale.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "check.h"
#include "common/parallel.h"
#include "common/requantize.h"

namespace sparsecodec {
namespace {

using integer::FactorRows;
using integer::kHighShift;
using integer::ScaleArgs;

constexpr std::ptrdiff_t kSpan = 256;    // values that narrow images are cut into, so that few vectors have idle lanes
constexpr std::ptrdiff_t kTask = 16384;  // values of a task
constexpr int kPadding = 16;             // lanes of the widest vector

// What the kernels multiply with, of `repeat` pixels one behind the other.
struct Rows {
    std::vector<std::int32_t> positive, negative, shift;

    Rows(const std::int32_t* multiplier, const std::vector<std::int32_t>& shifts, std::ptrdiff_t repeat, int raised)
        : positive(repeat * shifts.size() + kPadding), negative(positive.size()), shift(positive.size(), kHighShift) {
        const std::size_t channels = shifts.size();
        for (std::size_t c = 0; c < channels; ++c) set(c, multiplier[c], multiplier[channels + c], shifts[c], raised);
        for (auto* row : {&positive, &negative, &shift}) {
            for (std::size_t i = channels; i + kPadding < row->size(); ++i) (*row)[i] = (*row)[i - channels];
        }
    }

    FactorRows view() const { return {positive.data(), negative.data(), shift.data()}; }

  private:
    // Numbers that give the same results, with a high shift if there are some.
    void set(std::size_t c, std::int32_t above, std::int32_t below, int by, int raised) {
        // A product of 16 bits and a factor stays below 2^45, and from a shift of 46 on it is rounded to 0.
        by = raised ? std::min(by, kMaxShift - raised) + raised : by;
        const int up = std::max(0, kHighShift - by);
        if (std::max(std::abs(above), std::abs(below)) <= std::int64_t{kFixedLimit - 1} >> up) {
            const std::int64_t factor = std::int64_t{1} << up;
            above = static_cast<std::int32_t>(above * factor);
            below = static_cast<std::int32_t>(below * factor);
            by += up;
        }
        positive[c] = above;
        negative[c] = below;
        shift[c] = by;
    }
};

template <class X, class Residual, class Out>
auto kernel(igemm::Isa isa) {
#if defined(__x86_64__)
    if (isa >= igemm::Isa::kAvx512) return integer::scale_avx512<X, Residual, Out>;
    if (isa >= igemm::Isa::kAvx2) return integer::scale_avx2<X, Residual, Out>;
#endif
    return integer::scale_scalar<X, Residual, Out>;
}

template <class T>
bool dense_row(const Image<T>& image) {
    return image.stride_w == image.c;
}

}  // namespace

IntegerScale::IntegerScale(std::vector<std::int32_t> shift, int residual_shift)
    : shift_(std::move(shift)), residual_shift_(residual_shift), isa_(igemm::isa()) {
    SC_CHECK(residual_shift >= -kMaxResidualShift && residual_shift <= kMaxResidualShift,
             "residual_shift=", residual_shift, " (needs -30 to 30)");
    for (const std::int32_t s : shift_) {
        SC_CHECK(s >= kMinShift && s <= kMaxShift, "shift holds ", s, " (needs 1 to 62)");
    }
}

template <class X, class Residual, class Out>
void IntegerScale::run(const Image<const X>& x, const std::int32_t* multiplier, const Image<const Residual>* residual,
                       const Image<Out>& out) const {
    for (std::ptrdiff_t c = 0; c < 2 * x.c; ++c) {
        SC_CHECK(multiplier[c] > -kFixedLimit && multiplier[c] < kFixedLimit, "multiplier holds ", multiplier[c],
                 " (needs -(2^30 - 1) to 2^30 - 1)");
    }
    const std::ptrdiff_t pixels = x.n * x.h * x.w;
    if (pixels * x.c == 0) return;
    // Spans of one pixel, or of several where they touch each other in all images.
    const bool dense = dense_row(x) && dense_row(out) && (!residual || dense_row(*residual));
    const std::ptrdiff_t repeat = dense ? std::min(x.w, (kSpan + x.c - 1) / x.c) : 1;
    const Rows rows(multiplier, shift_, repeat, integer::raised_bits<X>);
    const integer::Kind kind = integer::kind_of(rows.view(), repeat * x.c);
    const auto scale = kernel<X, Residual, Out>(isa_);
    const std::ptrdiff_t tile = std::max<std::ptrdiff_t>(1, kTask / (repeat * x.c)) * repeat;
    in_parallel((pixels + tile - 1) / tile, [&](Tasks& tasks) {
        for (std::ptrdiff_t task; tasks.take(task);) {
            const std::ptrdiff_t last = std::min(pixels, (task + 1) * tile);
            for (std::ptrdiff_t pixel = task * tile; pixel < last;) {
                const std::ptrdiff_t column = pixel % x.w, y = pixel / x.w % x.h, n = pixel / x.w / x.h;
                const std::ptrdiff_t run = std::min(last - pixel, x.w - column), spans = run / repeat;
                const auto part = [&](std::ptrdiff_t at, std::ptrdiff_t count, std::ptrdiff_t wide) {
                    ScaleArgs<X, Residual, Out> args{};
                    args.x = x.pixel(n, y, at);
                    args.out = out.pixel(n, y, at);
                    args.x_step = repeat * x.stride_w;
                    args.out_step = repeat * out.stride_w;
                    if (residual) {
                        args.residual = residual->pixel(n, y, at);
                        args.residual_step = repeat * residual->stride_w;
                    }
                    args.count = count;
                    args.n = static_cast<int>(wide * x.c);
                    args.rows = rows.view();
                    args.kind = kind;
                    args.residual_shift = residual_shift_;
                    scale(args);
                };
                if (spans > 0) part(column, spans, repeat);
                if (run % repeat > 0) part(column + spans * repeat, 1, run % repeat);
                pixel += run;
            }
        }
    });
}

using std::int16_t;
using std::int32_t;
#define SC_INSTANTIATE_RUN(X, Residual, Out)                                                                    \
    template void IntegerScale::run(const Image<const X>&, const int32_t*, const Image<const Residual>*, \
                                    const Image<Out>&) const
SC_INSTANTIATE_RUN(int16_t, int16_t, int16_t);
SC_INSTANTIATE_RUN(int16_t, int16_t, int32_t);
SC_INSTANTIATE_RUN(int16_t, int32_t, int16_t);
SC_INSTANTIATE_RUN(int16_t, int32_t, int32_t);
SC_INSTANTIATE_RUN(int32_t, int16_t, int16_t);
SC_INSTANTIATE_RUN(int32_t, int16_t, int32_t);
SC_INSTANTIATE_RUN(int32_t, int32_t, int16_t);
SC_INSTANTIATE_RUN(int32_t, int32_t, int32_t);

}  // namespace sparsecodec
