#include "cpu/conv_transpose2d_act.h"

namespace sparsecodec {

template <class T>
ConvTranspose2dAct<T>::ConvTranspose2dAct(const ConvKernel& kernel, const float* bias, int stride, int padding,
                                          int output_padding, igemm::Activation activation)
    : kernel_(kernel),
      stride_(stride),
      padding_(padding),
      output_padding_(output_padding),
      activation_(activation),
      gather_({}, kernel.k),
      zeros_(kernel.k) {
    kernel_.data = nullptr;
    // Output row o takes input row i through kernel row ky where o = i * stride - padding + ky.
    const auto steps = [&](int phase, int size) {
        std::vector<std::pair<int, int>> result;  // (position in the kernel, input offset)
        for (int at = 0; at < size; ++at) {
            const int distance = phase + padding - at;
            if (distance % stride == 0) result.emplace_back(at, distance / stride);
        }
        return result;
    };
    const std::ptrdiff_t cells = static_cast<std::ptrdiff_t>(kernel.kh) * kernel.kw;
    for (int y = 0; y < stride; ++y) {
        for (int x = 0; x < stride; ++x) {
            std::vector<Grid::Tap> taps;
            igemm::Weights weights{kernel.data, kernel.n, kernel.k, cells, kernel.n * cells, {}};
            for (const auto& [ky, dy] : steps(y, kernel.kh)) {
                for (const auto& [kx, dx] : steps(x, kernel.kw)) {
                    taps.push_back({dy, dx});
                    weights.taps.push_back(ky * kernel.kw + kx);
                }
            }
            phases_.push_back({y, x, std::move(taps), igemm::Gemm<T>(weights, bias)});
        }
    }
}

template <class T>
Image<T> ConvTranspose2dAct<T>::result(const Image<const T>& x) const {
    Image<T> image;
    image.n = x.n;
    image.c = kernel_.n;
    image.h = (x.h - 1) * stride_ - 2 * padding_ + kernel_.kh + output_padding_;
    image.w = (x.w - 1) * stride_ - 2 * padding_ + kernel_.kw + output_padding_;
    return image;
}

template <class T>
void ConvTranspose2dAct<T>::run(const Image<const T>& x, const Image<T>& out) const {
    for (const Phase& phase : phases_) {
        Grid grid;
        grid.h = (out.h - phase.y + stride_ - 1) / stride_;
        grid.w = (out.w - phase.x + stride_ - 1) / stride_;
        grid.taps = phase.taps;
        grid.out_step = stride_;
        grid.out_y = phase.y;
        grid.out_x = phase.x;
        run_grid<T>({phase.gemm, grid, gather_, zeros_.data(), x, out, nullptr, out.c, activation_});
    }
}

template class ConvTranspose2dAct<float>;
template class ConvTranspose2dAct<igemm::bf16>;

}  // namespace sparsecodec
