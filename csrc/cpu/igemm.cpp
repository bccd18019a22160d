#include "cpu/igemm.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <numeric>
#include <string>

#include "check.h"
#include "cpu/igemm_isa.h"

namespace sparsecodec::igemm {
namespace {

Isa best_isa() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
        return __builtin_cpu_supports("avx512bf16") ? Isa::kAvx512Bf16 : Isa::kAvx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
    return Isa::kScalar;
}

template <class In, class Out>
BlockKernel<In, Out> kernel_for(Isa isa) {
#if defined(__x86_64__)
    if constexpr (std::is_same_v<In, float>) {
        if (isa >= Isa::kAvx512) return block_avx512<In, Out>;
    } else {
        if (isa == Isa::kAvx512Bf16) return block_avx512bf16<In, Out>;
    }
    if (isa >= Isa::kAvx2) return block_avx2<In, Out>;
#endif
    return block_scalar<In, Out>;
}

// The caller's channel in each packed column, so that every block writes ascending addresses.
std::vector<std::int32_t> column_order(int n, const Layout& layout) {
    std::vector<std::int32_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    if (layout.kind == Layout::Kind::kScatter) {
        std::sort(order.begin(), order.end(),
                  [&](std::int32_t a, std::int32_t b) { return layout.index[a] < layout.index[b]; });
    } else if (layout.kind == Layout::Kind::kShuffle) {
        const int cells = layout.shuffle * layout.shuffle, channels = n / cells;
        for (int column = 0; column < n; ++column) order[column] = column % channels * cells + column / channels;
    }
    return order;
}

void check_layout(int n, const Layout& layout) {
    if (layout.kind == Layout::Kind::kShuffle) {
        SC_CHECK(layout.shuffle >= 1 && n % (layout.shuffle * layout.shuffle) == 0, "shuffle=", layout.shuffle,
                 " with C_out=", n, " (needs C_out divisible by shuffle^2)");
    }
    if (layout.kind != Layout::Kind::kScatter) return;
    SC_CHECK(static_cast<int>(layout.index.size()) == n, "out_index has ", layout.index.size(),
             " entries (needs C_out=", n, ")");
    std::vector<std::int32_t> sorted = layout.index;
    std::sort(sorted.begin(), sorted.end());
    for (std::size_t i = 0; i < sorted.size(); ++i) {
        const bool inside = sorted[i] >= 0 && (layout.width == 0 || sorted[i] < layout.width);
        SC_CHECK(inside && (i == 0 || sorted[i] != sorted[i - 1]), "out_index holds ", sorted[i],
                 " (needs distinct channels of the result)");
    }
}

std::vector<Place> make_places(int n, const Layout& layout, const std::vector<std::int32_t>& order) {
    std::vector<Place> places((n + kBlock - 1) / kBlock);
    // Columns that share a row of the result lie next to each other there.
    const int run = layout.kind == Layout::Kind::kShuffle ? n / layout.shuffle : std::max(n, 1);
    for (std::size_t b = 0; b < places.size(); ++b) {
        Place& place = places[b];
        const int first = static_cast<int>(b) * kBlock;
        place.n = std::min(kBlock, n - first);
        if (layout.kind != Layout::Kind::kScatter) {
            for (int column = first; column < first + place.n;) {
                const int end = std::min(first + place.n, (column / run + 1) * run);
                place.segments.push_back({column - first, end - first, column / run, column % run});
                column = end;
            }
            continue;
        }
        for (int c = 0; c < place.n; ++c) place.index.push_back(layout.index[order[first + c]]);
        place.begin = b == 0 ? 0 : place.index.front();
        place.end = first + place.n < n ? layout.index[order[first + place.n]]
                                        : std::max(layout.width, place.index.back() + 1);
        place.masks.assign((place.end - place.begin + 15) / 16, 0);
        for (std::int32_t at : place.index) {
            place.masks[(at - place.begin) / 16] |= static_cast<std::uint16_t>(1u << (at - place.begin) % 16);
        }
    }
    return places;
}

void pack_element(float* block, int tap, int k, int column, int size_k, float value) {
    block[(static_cast<std::size_t>(tap) * size_k + k) * kBlock + column] = value;
}
void pack_element(bf16* block, int tap, int k, int column, int size_k, float value) {
    const std::size_t pairs = (size_k + 1) / 2;
    block[((tap * pairs + k / 2) * kBlock + column) * 2 + k % 2] = to_bf16(value);
}

}  // namespace

Isa isa() {
    const Isa best = best_isa();
    const char* name = std::getenv("SPARSECODEC_CPU_ISA");
    if (name == nullptr || *name == '\0') return best;
    const std::string wanted = name;
    if (wanted == "scalar") return Isa::kScalar;
    if (wanted == "avx2" && best >= Isa::kAvx2) return Isa::kAvx2;
    if (wanted == "avx512" && best >= Isa::kAvx512) return best;
    refuse("SPARSECODEC_CPU_ISA=", wanted, " (scalar, avx2 or avx512, as far as this CPU has it)");
}

Weights Weights::oihw(const float* data, int n, int k, int kh, int kw) {
    Weights weights{data, n, k, static_cast<std::ptrdiff_t>(k) * kh * kw, static_cast<std::ptrdiff_t>(kh) * kw, {}};
    for (int tap = 0; tap < kh * kw; ++tap) weights.taps.push_back(tap);
    return weights;
}

template <class T>
Gemm<T>::Gemm(const Weights& w, const float* bias, const Layout& layout)
    : n_(w.n), k_(w.k), taps_(static_cast<int>(w.taps.size())) {
    check_layout(n_, layout);
    const std::vector<std::int32_t> order = column_order(n_, layout);
    places_ = make_places(n_, layout, order);
    const int rows = std::is_same_v<T, float> ? k_ : (k_ + 1) / 2 * 2;
    block_size_ = static_cast<std::size_t>(taps_) * rows * kBlock;
    const std::size_t bytes = std::max<std::size_t>(64, (places_.size() * block_size_ * sizeof(T) + 63) / 64 * 64);
    packed_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
    if (!packed_) throw std::bad_alloc();
    std::memset(packed_.get(), 0, bytes);
    bias_.assign(places_.size() * kBlock, 0.0f);
    for (int column = 0; column < n_; ++column) {
        if (bias) bias_[column] = bias[order[column]];
        const float* from = w.data + order[column] * w.stride_n;
        T* block = packed_.get() + column / kBlock * block_size_;
        for (int tap = 0; tap < taps_; ++tap) {
            for (int k = 0; k < k_; ++k) {
                pack_element(block, tap, k, column % kBlock, k_, from[w.taps[tap] + k * w.stride_k]);
            }
        }
    }
    kernel_ = kernel_for<T, T>(isa());
    kernel_float_ = kernel_for<T, float>(isa());
}

template <class T>
template <class Out>
void Gemm<T>::run(const T* const* rows, std::ptrdiff_t tap_step, int m, const Epilogue<Out>& epilogue,
                  std::ptrdiff_t row_stride) const {
    for (std::size_t b = 0; b < places_.size(); ++b) {
        const BlockArgs<T, Out> args{rows,
                                     tap_step,
                                     m,
                                     taps_,
                                     k_,
                                     packed_.get() + b * block_size_,
                                     bias_.data() + b * kBlock,
                                     &places_[b],
                                     row_stride,
                                     &epilogue};
        if constexpr (std::is_same_v<T, Out>) {
            kernel_(args);
        } else {
            kernel_float_(args);
        }
    }
}

template class Gemm<float>;
template class Gemm<bf16>;
template void Gemm<float>::run(const float* const*, std::ptrdiff_t, int, const Epilogue<float>&, std::ptrdiff_t) const;
template void Gemm<bf16>::run(const bf16* const*, std::ptrdiff_t, int, const Epilogue<bf16>&, std::ptrdiff_t) const;
template void Gemm<bf16>::run(const bf16* const*, std::ptrdiff_t, int, const Epilogue<float>&, std::ptrdiff_t) const;

}  // namespace sparsecodec::igemm
