#include "cpu/conv_transpose2d_act.h"

#include <algorithm>
#include <type_traits>
#include <utility>

namespace sparsecodec {
namespace {

constexpr int kLanes = 16;  // columns of a product are computed by so many

int filled(int columns) { return (columns + kLanes - 1) / kLanes * kLanes; }

}  // namespace

template <class T>
ConvTranspose2dAct<T>::ConvTranspose2dAct(const ConvKernel& kernel, const float* bias, int stride, int padding,
                                          int output_padding, igemm::Activation activation, bool pinned)
    : kernel_(kernel),
      stride_(stride),
      padding_(padding),
      output_padding_(output_padding),
      activation_(activation),
      gather_({}, kernel.k),
      zeros_(kernel.k) {
    const float* const data = std::exchange(kernel_.data, nullptr);
    const bool halves = stride == 2 && kernel.kh == 5 && kernel.kw == 5 && padding == 2;
    const bool wanted = std::is_same_v<T, igemm::bf16> || !pinned;
    if (wanted && halves && Winograd<T>::pays(kernel.k, kernel.n)) {
        add_winograd(data, bias);
    } else if (together()) {
        add_together(data, bias);
    } else {
        add_phases(data, bias);
    }
}

// Output row o takes input row i through kernel row ky where o = i * stride - padding + ky; ascending in ky.
template <class T>
auto ConvTranspose2dAct<T>::steps(int phase, int size) const -> std::vector<Step> {
    std::vector<Step> result;
    for (int at = 0; at < size; ++at) {
        const int distance = phase + padding_ - at;
        if (distance % stride_ == 0) result.push_back({at, distance / stride_});
    }
    return result;
}

// Whether one product for all phases has fewer columns to compute. It needs a result of `stride` rows for each of x.
template <class T>
bool ConvTranspose2dAct<T>::together() const {
    const auto offsets = [&](int size) {
        return (size - 1 - padding_) / stride_ + (stride_ - 1 + padding_) / stride_ + 1;
    };
    const auto whole = [&](int size) { return size + output_padding_ - 2 * padding_ == stride_; };
    const int kh = kernel_.kh, kw = kernel_.kw, n = kernel_.n;
    return stride_ > 1 && whole(kh) && whole(kw) &&
           filled(n * stride_ * stride_) * offsets(kh) * offsets(kw) < filled(n) * kh * kw;
}

template <class T>
void ConvTranspose2dAct<T>::add_phases(const float* data, const float* bias) {
    const std::ptrdiff_t cells = static_cast<std::ptrdiff_t>(kernel_.kh) * kernel_.kw;
    for (int y = 0; y < stride_; ++y) {
        for (int x = 0; x < stride_; ++x) {
            std::vector<Grid::Tap> taps;
            igemm::Weights weights{data, kernel_.n, kernel_.k, cells, kernel_.n * cells, {}};
            for (const Step row : steps(y, kernel_.kh)) {
                for (const Step column : steps(x, kernel_.kw)) {
                    taps.push_back({row.offset, column.offset});
                    weights.taps.push_back(row.at * kernel_.kw + column.at);
                }
            }
            phases_.push_back({y, x, std::move(taps), igemm::Gemm<T>(weights, bias)});
        }
    }
}

// Taps in the order in which the phases have theirs; those that a phase lacks are zeros, which change no sum.
template <class T>
void ConvTranspose2dAct<T>::add_together(const float* data, const float* bias) {
    const int n = kernel_.n, k = kernel_.k, phases = stride_ * stride_;
    const auto first = [&](int size) { return -((size - 1 - padding_) / stride_); };
    const auto last = [&] { return (stride_ - 1 + padding_) / stride_; };
    std::vector<Grid::Tap> taps;
    for (int dy = last(); dy >= first(kernel_.kh); --dy) {
        for (int dx = last(); dx >= first(kernel_.kw); --dx) taps.push_back({dy, dx});
    }
    const auto count = static_cast<std::ptrdiff_t>(taps.size());
    std::vector<float> values(static_cast<std::size_t>(n) * phases * k * count), biases(n * phases);
    const auto inside = [](int at, int size) { return at >= 0 && at < size; };
    for (int channel = 0; channel < n * phases; ++channel) {
        const int c = channel / phases, y = channel % phases / stride_, x = channel % stride_;
        if (bias) biases[channel] = bias[c];
        for (std::ptrdiff_t tap = 0; tap < count; ++tap) {
            const int ky = y + padding_ - taps[tap].dy * stride_, kx = x + padding_ - taps[tap].dx * stride_;
            if (!inside(ky, kernel_.kh) || !inside(kx, kernel_.kw)) continue;
            for (int i = 0; i < k; ++i) {
                values[(static_cast<std::ptrdiff_t>(channel) * k + i) * count + tap] =
                    data[((static_cast<std::ptrdiff_t>(i) * n + c) * kernel_.kh + ky) * kernel_.kw + kx];
            }
        }
    }
    igemm::Layout layout;
    layout.kind = igemm::Layout::Kind::kShuffle;
    layout.shuffle = stride_;
    const igemm::Weights weights = igemm::Weights::oihw(values.data(), n * phases, k, 1, static_cast<int>(count));
    phases_.push_back({0, 0, std::move(taps), igemm::Gemm<T>(weights, biases.data(), layout)});
}

// Phase p of a 5x5 kernel of stride 2 and padding 2 reads rows -1, 0, 1 through kernel rows 4 + p, 2 + p and p.
template <class T>
void ConvTranspose2dAct<T>::add_winograd(const float* data, const float* bias) {
    const int n = kernel_.n, k = kernel_.k;
    std::vector<std::vector<float>> kernels;
    std::vector<typename Winograd<T>::Part> parts;
    for (int phase = 0; phase < 4; ++phase) {
        const int y = phase / 2, x = phase % 2;
        std::vector<float>& values = kernels.emplace_back(static_cast<std::size_t>(n) * k * 9);
        for (int c = 0; c < n; ++c) {
            for (int i = 0; i < k; ++i) {
                const float* const from = data + (static_cast<std::ptrdiff_t>(i) * n + c) * 25;
                float* const to = values.data() + (static_cast<std::ptrdiff_t>(c) * k + i) * 9;
                for (int row = y; row < 3; ++row) {
                    for (int column = x; column < 3; ++column) {
                        to[row * 3 + column] = from[(4 + y - 2 * row) * 5 + 4 + x - 2 * column];
                    }
                }
            }
        }
        parts.push_back({values.data(), y, x, y == 0, x == 0});
    }
    winograd_ = std::make_unique<Winograd<T>>(parts, bias, n, k, 1, 2, igemm::Layout{});
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
    if (winograd_) return winograd_->run({x, out, nullptr, activation_, nullptr, out.c});
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
