#include "cpu/deform_conv2d.h"

#include <algorithm>

#include "check.h"
#include "common/parallel.h"

namespace sparsecodec {
namespace {

constexpr std::ptrdiff_t kPixels = 48;  // of a task: a multiple of what fills the registers of a product

// The sample before a position, which is clamped, and the weight of the next one, which is NaN where the position is.
struct Below {
    std::ptrdiff_t low;
    float weight;

    Below(float position, float first, float last) {
        position = position < first ? first : position;
        position = position > last ? last : position;
        const int whole = position == position ? static_cast<int>(position) : 0;
        low = whole - (static_cast<float>(whole) > position);  // rounded down, without the library's floor
        weight = position - static_cast<float>(low);
    }
};

}  // namespace

template <class T>
DeformConv2d<T>::DeformConv2d(const ConvKernel& kernel, const float* bias, bool border)
    : kh_(kernel.kh),
      kw_(kernel.kw),
      outside_(border ? 0 : 1),
      gemm_(igemm::Weights::oihw(kernel.data, kernel.n, kernel.k, kernel.kh, kernel.kw), bias),
      zeros_(kernel.k) {
    SC_CHECK(kh_ % 2 == 1 && kw_ % 2 == 1, "weight of ", kh_, " x ", kw_, " (needs odd sides)");
    for (int t = 0; t < kh_ * kw_; ++t) taps_.push_back({t / kw_ - kh_ / 2, t % kw_ - kw_ / 2});
}

// All taps of a pixel: tap t at to + t * tap_step.
template <class T>
void DeformConv2d<T>::sample(const Image<const T>& x, const Planes& offset, const Planes* mask, int groups,
                             std::ptrdiff_t pixel, Blend<T> blend, T* to, std::ptrdiff_t tap_step) const {
    const std::ptrdiff_t n = pixel / (x.h * x.w), row = pixel / x.w % x.h, column = pixel % x.w;
    const std::ptrdiff_t each = x.c / groups;
    const int taps = this->taps();
    const T* const image = x.pixel(n, 0, 0);
    const float* const moved = offset.data + n * offset.stride_n + row * offset.stride_h + column * offset.stride_w;
    const float* const factors =
        mask ? mask->data + n * mask->stride_n + row * mask->stride_h + column * mask->stride_w : nullptr;
    const float first = static_cast<float>(-outside_);
    const float last_row = static_cast<float>(x.h - 1 + outside_), last_column = static_cast<float>(x.w - 1 + outside_);
    for (int g = 0; g < groups; ++g) {
        for (int t = 0; t < taps; ++t) {
            const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(g) * taps + t;
            const float* const by = moved + 2 * at * offset.stride_c;
            const Below down(static_cast<float>(row + taps_[t].row) + by[0], first, last_row);
            const Below across(static_cast<float>(column + taps_[t].column) + by[offset.stride_c], first, last_column);
            const float factor = factors ? factors[at * mask->stride_c] : 1.0f;
            const float right = across.weight, left = 1 - right, lower = down.weight, upper = 1 - lower;
            const auto pixel_at = [&](std::ptrdiff_t y, std::ptrdiff_t z) {
                const bool inside = y >= 0 && y < x.h && z >= 0 && z < x.w;
                return (inside ? image + y * x.stride_h + z * x.stride_w : zeros_.data()) + g * each;
            };
            const Samples<T> samples{{pixel_at(down.low, across.low), pixel_at(down.low, across.low + 1),
                                      pixel_at(down.low + 1, across.low), pixel_at(down.low + 1, across.low + 1)},
                                     {left * upper * factor, right * upper * factor, left * lower * factor,
                                      right * lower * factor}};
            blend(samples, each, to + t * tap_step + g * each);
        }
    }
}

template <class T>
void DeformConv2d<T>::run(const Image<const T>& x, const Planes& offset, const Planes* mask, int groups,
                          const Image<T>& out) const {
    const Blend<T> blend = blend_kernel<T>();
    const std::ptrdiff_t pixels = x.n * x.h * x.w;
    const std::ptrdiff_t k = inputs(), taps = this->taps(), step = kPixels * k;
    in_parallel((pixels + kPixels - 1) / kPixels, [&](Tasks& tasks) {
        std::vector<T> columns(taps * step);
        std::vector<const T*> rows(taps * kPixels);
        igemm::fill_rows<const T>(rows.data(), columns.data(), k, static_cast<int>(taps * kPixels));
        std::vector<T*> to(kPixels);
        for (std::ptrdiff_t task; tasks.take(task);) {
            const std::ptrdiff_t first = task * kPixels, m = std::min(kPixels, pixels - first);
            for (std::ptrdiff_t i = 0; i < m; ++i) {
                const std::ptrdiff_t pixel = first + i;
                sample(x, offset, mask, groups, pixel, blend, columns.data() + i * k, step);
                to[i] = out.pixel(pixel / (x.h * x.w), pixel / x.w % x.h, pixel % x.w);
            }
            gemm_.run(rows.data(), kPixels, static_cast<int>(m), igemm::Epilogue<T>{to.data()});
        }
    });
}

template class DeformConv2d<float>;
template class DeformConv2d<igemm::bf16>;

}  // namespace sparsecodec
