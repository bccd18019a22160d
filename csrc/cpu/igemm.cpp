#include "cpu/igemm.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <numeric>
#include <string>

#include "check.h"
#include "cpu/igemm_isa.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sparsecodec::igemm {
namespace {

// A system call gives a process the right to the tile registers; its threads inherit it.
std::string request_amx() {
#if defined(__x86_64__) && defined(__linux__)
    constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;  // CPUID leaf 7, EDX
    constexpr long kRequestState = 0x1023, kTileData = 18;        // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kAmxTile) == 0 || (d & kAmxBf16) == 0) {
        return "this CPU has no AMX-BF16";
    }
    if (!__builtin_cpu_supports("avx512bf16")) return "this CPU has AMX-BF16 but not AVX512-BF16";
    if (syscall(SYS_arch_prctl, kRequestState, kTileData) != 0) {
        return std::string("the system does not give this process the tile registers of AMX: ") + std::strerror(errno);
    }
    return "";
#else
    return "AMX is used on x86-64 with Linux only";
#endif
}

Isa best_isa() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
        if (why_no_amx().empty()) return Isa::kAmx;
        return __builtin_cpu_supports("avx512bf16") ? Isa::kAvx512Bf16 : Isa::kAvx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
    return Isa::kScalar;
}

template <class In, class Out>
Kernels<In, Out> kernels_for(Isa isa) {
#if defined(__x86_64__)
    if constexpr (std::is_same_v<In, float>) {
        if (isa >= Isa::kAvx512) return {block_avx512<In, Out>, finish_avx512<In, Out>};
    } else {
        if (isa == Isa::kAmx) return {block_amx<In, Out>, finish_amx<In, Out>};
        if (isa == Isa::kAmxEmulated) return {block_amx_emulated<In, Out>, finish_amx_emulated<In, Out>};
        if (isa == Isa::kAvx512Bf16) return {block_avx512bf16<In, Out>, finish_avx512bf16<In, Out>};
    }
    if (isa >= Isa::kAvx2) return {block_avx2<In, Out>, finish_avx2<In, Out>};
#endif
    return {block_scalar<In, Out>, finish_scalar<In, Out>};
}

constexpr int kChunkPixels = 48;  // whose sums are added up at a time: 6 KiB

// The caller's channel in each packed column, -1 for padding, so that every block writes ascending addresses.
std::vector<std::int32_t> column_order(int n, const Layout& layout) {
    const int blocks = (n / layout.chunks + kBlock - 1) / kBlock * layout.chunks;
    std::vector<std::int32_t> order(static_cast<std::size_t>(blocks) * kBlock, -1);
    if (layout.chunks > 1) {
        const int sums = n / layout.chunks;
        for (int sum = 0; sum < sums; ++sum) {
            for (int i = 0; i < layout.chunks; ++i) {
                order[(sum / kBlock * layout.chunks + i) * kBlock + sum % kBlock] =
                    layout.interleaved ? sum * layout.chunks + i : i * sums + sum;
            }
        }
        return order;
    }
    std::iota(order.begin(), order.begin() + n, 0);
    if (layout.kind == Layout::Kind::kScatter) {
        std::sort(order.begin(), order.begin() + n,
                  [&](std::int32_t a, std::int32_t b) { return layout.index[a] < layout.index[b]; });
    } else if (layout.kind == Layout::Kind::kShuffle) {
        const int cells = layout.shuffle * layout.shuffle, channels = n / cells;
        for (int column = 0; column < n; ++column) order[column] = column % channels * cells + column / channels;
    }
    return order;
}

void check_layout(int n, const Layout& layout) {
    SC_CHECK(layout.chunks >= 1 && n % layout.chunks == 0, "chunks=", layout.chunks, " of ", n,
             " channels (needs a divisor)");
    SC_CHECK(layout.chunks == 1 || layout.kind == Layout::Kind::kDense, "chunks=", layout.chunks,
             " with shuffle or out_index (needs neither)");
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

// rows: of the packed block, per tap.
void pack_element(float* block, int tap, int k, int column, int rows, float value) {
    block[(static_cast<std::size_t>(tap) * rows + k) * kBlock + column] = value;
}
void pack_element(bf16* block, int tap, int k, int column, int rows, float value) {
    block[((static_cast<std::size_t>(tap) * rows + k) / 2 * kBlock + column) * 2 + k % 2] = to_bf16(value);
}

}  // namespace

Isa isa() {
    const Isa best = best_isa();
    const char* name = std::getenv("SPARSECODEC_CPU_ISA");
    if (name == nullptr || *name == '\0') return best;
    const std::string wanted = name;
    if (wanted == "scalar") return Isa::kScalar;
    if (wanted == "avx2" && best >= Isa::kAvx2) return Isa::kAvx2;
    if (wanted == "avx512" && best >= Isa::kAvx512) return std::min(best, Isa::kAvx512Bf16);
    if (wanted == "amx-emulated" && best >= Isa::kAvx512) return Isa::kAmxEmulated;
    if (wanted == "amx") {
        SC_CHECK(best == Isa::kAmx, "SPARSECODEC_CPU_ISA=amx: ", why_no_amx());
        return best;
    }
    refuse("SPARSECODEC_CPU_ISA=", wanted,
           " (scalar, avx2, avx512, amx or amx-emulated, as far as this CPU has what they need)");
}

const std::string& why_no_amx() {
    static const std::string reason = request_amx();
    return reason;
}

Weights Weights::oihw(const float* data, int n, int k, int kh, int kw) {
    Weights weights{data, n, k, static_cast<std::ptrdiff_t>(k) * kh * kw, static_cast<std::ptrdiff_t>(kh) * kw, {}};
    for (int tap = 0; tap < kh * kw; ++tap) weights.taps.push_back(tap);
    return weights;
}

template <class T>
Gemm<T>::Gemm(const Weights& w, const float* bias, const Layout& layout)
    : k_(w.k), taps_(static_cast<int>(w.taps.size())), chunks_(layout.chunks), rest_slope_(layout.rest_slope) {
    check_layout(w.n, layout);
    n_ = w.n / chunks_;
    const std::vector<std::int32_t> order = column_order(w.n, layout);
    places_ = make_places(n_, layout, order);
    for (const Place& place : places_) {
        if (chunks_ > 1) chunk_places_.push_back({place.n, {{0, place.n, 0, 0}}, {}, 0, 0, {}});
    }
    const Isa set = isa();
    const bool tiles = std::is_same_v<T, bf16> && set >= Isa::kAmxEmulated;
    const int step = tiles ? kAmxPadding : std::is_same_v<T, float> ? 1 : 2;
    const int rows = (k_ + step - 1) / step * step;
    tile_ = tiles ? 32 : 12;
    block_size_ = static_cast<std::size_t>(taps_) * rows * kBlock;
    const std::size_t blocks = order.size() / kBlock;
    const std::size_t bytes = std::max<std::size_t>(64, (blocks * block_size_ * sizeof(T) + 63) / 64 * 64);
    packed_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
    if (!packed_) throw std::bad_alloc();
    std::memset(packed_.get(), 0, bytes);
    bias_.assign(order.size(), 0.0f);
    for (std::size_t column = 0; column < order.size(); ++column) {
        if (order[column] < 0) continue;
        if (bias) bias_[column] = bias[order[column]];
        const float* from = w.data + order[column] * w.stride_n;
        T* block = packed_.get() + column / kBlock * block_size_;
        for (int tap = 0; tap < taps_; ++tap) {
            for (int k = 0; k < k_; ++k) {
                const float value = from[w.taps[tap] + k * w.stride_k];
                pack_element(block, tap, k, static_cast<int>(column % kBlock), rows, value);
            }
        }
    }
    kernels_ = kernels_for<T, T>(set);
    kernels_float_ = kernels_for<T, float>(set);
}

template <class T>
template <class Out>
BlockArgs<T, Out> Gemm<T>::block_args(std::size_t first, int count, const Place* places, const T* const* rows,
                                  std::ptrdiff_t tap_step, int m, const Epilogue<Out>& epilogue,
                                  std::ptrdiff_t row_stride) const {
    return {rows,
            tap_step,
            m,
            taps_,
            k_,
            count,
            packed_.get() + first * block_size_,
            bias_.data() + first * kBlock,
            places,
            block_size_,
            row_stride,
            &epilogue};
}

template <class T>
template <class Out>
void Gemm<T>::run(const T* const* rows, std::ptrdiff_t tap_step, int m, const Epilogue<Out>& epilogue,
                  std::ptrdiff_t row_stride) const {
    if (chunks_ > 1) return run_chunks(rows, tap_step, m, epilogue);
    kernels<Out>().block(
        block_args(0, static_cast<int>(places_.size()), places_.data(), rows, tap_step, m, epilogue, row_stride));
}

// The members of a sum stand in the same column of consecutive blocks: each block adds to the sums of the one before.
template <class T>
template <class Out>
void Gemm<T>::run_chunks(const T* const* rows, std::ptrdiff_t tap_step, int m, const Epilogue<Out>& epilogue) const {
    alignas(64) float sums[kChunkPixels * kBlock + 16];
    float* to[kChunkPixels];
    fill_rows(to, sums, kBlock, kChunkPixels);
    Activation rest = epilogue.activation;
    rest.slope = rest_slope_.value_or(rest.slope);
    const Epilogue<float> start{to, nullptr, epilogue.activation}, add{to, to, rest};
    for (int first = 0; first < m; first += kChunkPixels) {
        const int pixels = std::min(kChunkPixels, m - first);
        Epilogue<Out> last = epilogue.from(first);
        last.activation = {};
        for (std::size_t p = 0; p < places_.size(); ++p) {
            for (int i = 0; i < chunks_; ++i) {
                kernels<float>().block(block_args(p * chunks_ + i, 1, &chunk_places_[p], rows + first, tap_step, pixels,
                                              i == 0 ? start : add, 0));
            }
            kernels<Out>().finish(block_args(p * chunks_, 1, &places_[p], rows + first, tap_step, pixels, last, 0), sums);
        }
    }
}

template <class T>
void Gemm<T>::sums(int block, const T* const* rows, std::ptrdiff_t tap_step, int m, float* const* out) const {
    static const Place half{16, {{0, 16, 0, 0}}, {}, 0, 0, {}}, whole{kBlock, {{0, kBlock, 0, 0}}, {}, 0, 0, {}};
    const Place* const place = width(block) == 16 ? &half : &whole;
    kernels<float>().block(block_args(block, 1, place, rows, tap_step, m, Epilogue<float>{out}, 0));
}

template <class T>
void Gemm<T>::finish(int block, float* sums, int m, const Epilogue<T>& epilogue, std::ptrdiff_t row_stride) const {
    kernels<T>().finish(block_args(block, 1, &places_[block], nullptr, 0, m, epilogue, row_stride), sums);
}

template class Gemm<float>;
template class Gemm<bf16>;
template void Gemm<float>::run(const float* const*, std::ptrdiff_t, int, const Epilogue<float>&, std::ptrdiff_t) const;
template void Gemm<bf16>::run(const bf16* const*, std::ptrdiff_t, int, const Epilogue<bf16>&, std::ptrdiff_t) const;
template void Gemm<bf16>::run(const bf16* const*, std::ptrdiff_t, int, const Epilogue<float>&, std::ptrdiff_t) const;

}  // namespace sparsecodec::igemm
