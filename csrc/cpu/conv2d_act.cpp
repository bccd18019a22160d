#include "cpu/conv2d_act.h"

#include <algorithm>
#include <type_traits>

namespace sparsecodec {
namespace {

igemm::Layout layout_of(const ConvOptions& options) {
    igemm::Layout layout;
    if (options.scatter) {
        layout.kind = igemm::Layout::Kind::kScatter;
        layout.index = options.out_index;
    } else if (options.shuffle != 1) {
        layout.kind = igemm::Layout::Kind::kShuffle;
        layout.shuffle = options.shuffle;
    }
    layout.chunks = options.chunks;
    layout.interleaved = options.interleaved;
    return layout;
}

}  // namespace

template <class T>
Conv2dAct<T>::Conv2dAct(const ConvKernel& kernel, const float* bias, const ConvOptions& options)
    : options_(options),
      kernel_(kernel),
      gather_(options.in_index, kernel.k),
      gemm_(igemm::Weights::oihw(kernel.data, kernel.n, kernel.k, kernel.kh, kernel.kw), bias, layout_of(options)),
      copy_from_(0),
      zeros_(std::max(gather_.width, kernel.k)) {
    const bool shape = kernel.kh == 3 && kernel.kw == 3 && options.stride == 1;
    const bool wanted = std::is_same_v<T, igemm::bf16> || !options.pinned;
    if (shape && wanted && gather_.kind == Gather::Kind::kRange && Winograd<T>::pays(kernel.k, kernel.n)) {
        const std::vector<typename Winograd<T>::Part> whole{{kernel.data}};
        winograd_ = std::make_unique<Winograd<T>>(whole, bias, kernel.n, kernel.k, options.padding, options.shuffle,
                                                  layout_of(options));
    }
    kernel_.data = nullptr;
    for (std::int32_t channel : options_.out_index) copy_from_ = std::max<std::ptrdiff_t>(copy_from_, channel + 1);
    for (int ky = 0; ky < kernel_.kh; ++ky) {
        for (int kx = 0; kx < kernel_.kw; ++kx) taps_.push_back({ky - options_.padding, kx - options_.padding});
    }
}

template <class T>
Image<T> Conv2dAct<T>::result(const Image<const T>& x, std::ptrdiff_t width) const {
    Image<T> image;
    const int r = options_.shuffle;
    image.n = x.n;
    image.c = options_.scatter ? width : gemm_.n() / (r * r);
    const auto positions = [&](std::ptrdiff_t size, int kernel) {
        const std::ptrdiff_t last = size + 2 * options_.padding - kernel;
        return last < 0 ? -1 : last / options_.stride + 1;
    };
    image.h = positions(x.h, kernel_.kh) * r;
    image.w = positions(x.w, kernel_.kw) * r;
    return image;
}

template <class T>
void Conv2dAct<T>::run(const Image<const T>& x, const Image<T>& out, const Image<const T>* residual,
                       const float* scale) const {
    Grid grid;
    grid.h = out.h / options_.shuffle;
    grid.w = out.w / options_.shuffle;
    grid.taps = taps_;
    grid.stride = options_.stride;
    grid.out_step = options_.shuffle;
    std::vector<float> repeated;
    for (int i = 0; scale && i < options_.shuffle && options_.shuffle > 1; ++i) {
        repeated.insert(repeated.end(), scale, scale + out.c);
    }
    const std::ptrdiff_t copy_from = options_.scatter ? copy_from_ : out.c;
    const float* const factors = repeated.empty() ? scale : repeated.data();
    if (winograd_) {
        Image<const T> from = x;
        from.data += gather_.first;
        winograd_->run({from, out, residual, options_.activation, factors, copy_from});
        return;
    }
    run_grid<T>({gemm_, grid, gather_, zeros_.data(), x, out, residual, copy_from, options_.activation, factors});
}

template class Conv2dAct<float>;
template class Conv2dAct<igemm::bf16>;

}  // namespace sparsecodec
