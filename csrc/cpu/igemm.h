// Indirect GEMM: the matrix product under every dense convolution of this package.
//
//     out[i][c] = act(bias[c] + sum over (tap, k) of rows[tap * tap_step + i][k] * w[c][tap][k])
//
// for pixels i and channels c; then, as far as they are wanted: sums of several channels, + residual[i][c],
// + shortcut[i][c], * scale[c]. A convolution is this product with one pointer per (tap, pixel): padding points at a row
// of zeros, so the kernel knows neither borders nor strides. Weights are packed once, by the constructor of `Gemm`.
//
// Arithmetic
//   float: pinned. acc = bias; acc = fma(x, w, acc) in the order (tap, k), taps outer; then the activation; then each
//     of the above as one operation, chunks in ascending order. The bits depend neither on the instruction set nor on
//     how pixels are cut into tiles.
//   bf16: weights are rounded to bf16, products accumulate in float, one rounding at the end. Bits may differ between
//     instruction sets, never with the tiling.
//
// Threads: `Gemm::run` is const, works on the caller's thread and allocates nothing; callers parallelise over pixels.
// A padded weight column is never stored and a row is never read past its `k` elements.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

namespace sparsecodec::igemm {

using bf16 = std::uint16_t;  // the bit pattern of a bfloat16

inline constexpr int kBlock = 32;  // output channels per packed block

// Instruction set of the kernels. kAvx512Bf16 is kAvx512 with vdpbf16ps for the bf16 products, kAmx with tdpbf16ps;
// kAmxEmulated is the kernel of kAmx with its tile instructions in plain C++: slow, a testing aid for other machines.
enum class Isa { kScalar, kAvx2, kAvx512, kAvx512Bf16, kAmxEmulated, kAmx };

// The best set of this CPU, or what SPARSECODEC_CPU_ISA=scalar|avx2|avx512|amx|amx-emulated says (never more than the
// CPU has: throws std::invalid_argument). Read at each call; a `Gemm` keeps the one it was built with.
Isa isa();

// Why kAmx cannot be used, one sentence; empty if it can. The first call asks the system for the tile registers.
const std::string& why_no_amx();

struct Activation {
    float slope = 1.0f;         // factor of negative values: 1 = identity, 0 = ReLU, else leaky ReLU
    bool sigmoid_gate = false;  // x * sigmoid(4 x); then `slope` is ignored
};

// Weights as the caller holds them: element (channel c, tap t, k) is data[c * stride_n + taps[t] + k * stride_k].
struct Weights {
    const float* data;                 // host, borrowed during construction only
    int n;                             // output channels
    int k;                             // input channels per tap
    std::ptrdiff_t stride_n, stride_k;
    std::vector<std::ptrdiff_t> taps;  // offset of each tap; {0} for a 1x1 kernel

    // A contiguous OIHW kernel [n, k, kh, kw], taps in the order (row, column).
    static Weights oihw(const float* data, int n, int k, int kh = 1, int kw = 1);
};

// Where the channels of one pixel go, relative to its out pointer.
struct Layout {
    enum class Kind { kDense, kScatter, kShuffle } kind = Kind::kDense;
    std::vector<std::int32_t> index;  // kScatter: channel c goes to channel index[c] of `width`; no repeats, any order
    int width = 0;                    // kScatter: channels of the result; those not in `index` copy the residual.
                                      // 0: up to the last index, and the caller copies what comes after it
    int shuffle = 1;                  // kShuffle: r; channel c*r*r + i*r + j goes to row i, column j, channel c of an
                                      // NHWC image with n / (r*r) channels; `row_stride` of run() is between its rows
    int chunks = 1;                   // kDense: channel o of the result is the sum of this many activated channels:
    bool interleaved = false;         // i * n / chunks + o in ascending i, or, interleaved, o * chunks + i
    std::optional<float> rest_slope;  // of the summands behind the first, if not that of the epilogue
};

template <class T>
struct Epilogue {
    T* const* out;                         // [m] host; where pixel i starts
    const T* const* residual = nullptr;    // [m] or null; addressed as `out`; residual[i] may equal out[i]
    Activation activation = {};
    const T* const* shortcut = nullptr;    // [m] or null; another residual, added after the first; may equal `out` too
    const float* scale = nullptr;          // factor of channel c of the result, or null; kShuffle: `shuffle` times over

    // That of the pixels from `first` on.
    Epilogue from(std::ptrdiff_t first) const {
        return {out + first, residual ? residual + first : nullptr, activation, shortcut ? shortcut + first : nullptr,
                scale};
    }
};

// One block of at most 32 packed columns and the places they go to. Internal; here because the kernels share it.
struct Place {
    struct Segment {
        int begin, end;         // columns of the block
        int row;                // kShuffle: row i of the result this segment belongs to, else 0
        std::ptrdiff_t offset;  // elements past the pixel's pointer, without row * row_stride
    };
    int n = 0;                          // columns used
    std::vector<Segment> segments;      // kDense, kShuffle: ascending, cover [0, n)
    std::vector<std::int32_t> index;    // kScatter: ascending target channel of each column
    int begin = 0, end = 0;             // kScatter: channels of the result this block must write, residual copies included
    std::vector<std::uint16_t> masks;   // kScatter: per 16 channels from `begin`: which of them have a column
};

template <class In, class Out>
struct BlockArgs {
    const In* const* rows;      // [taps * tap_step]
    std::ptrdiff_t tap_step;
    int m, taps, k;
    int blocks;                 // the next three are those of the first
    const In* weights;          // 64-byte aligned, per block: float [taps][k][32]; bf16 [taps][ceil(k/2)][32][2],
                                // with AMX [taps][ceil(k/32) * 16][32][2]
    const float* bias;          // [blocks][32]
    const Place* place;         // [blocks]
    std::size_t block_size;     // elements of the weights of one block
    std::ptrdiff_t row_stride;  // kShuffle
    const Epilogue<Out>* epilogue;
};

// The product and all that follows it.
template <class In, class Out>
using BlockKernel = void (*)(const BlockArgs<In, Out>&);

// What follows the product, for one block whose sums [m][32], 16 readable floats behind them, are at hand.
template <class In, class Out>
using FinishKernel = void (*)(const BlockArgs<In, Out>&, float* sums);

template <class In, class Out>
struct Kernels {
    BlockKernel<In, Out> block;
    FinishKernel<In, Out> finish;
};

template <class T>
class Gemm {  // T, the type of the rows: float or bf16
  public:
    // bias: [w.n] host or null (zeros). Throws std::invalid_argument for a layout that does not fit w.n.
    Gemm(const Weights& w, const float* bias, const Layout& layout = {});

    // rows: [taps][tap_step] host pointers, row (t, i) at rows[t * tap_step + i], each to k elements, any alignment;
    // m <= tap_step pixels, m >= 0. Out is T, or float when T is bf16 (results that go on in float).
    // Loop order is block of channels, then pixels, so 48..240 pixels are good; tile() pixels fill the registers.
    template <class Out>
    void run(const T* const* rows, std::ptrdiff_t tap_step, int m, const Epilogue<Out>& epilogue,
             std::ptrdiff_t row_stride = 0) const;

    // `run` in two parts, for a Gemm without chunks: out[i] takes the width() sums of `block`, bias included; and the way of
    // such sums [m][32], with 16 readable floats behind them, to epilogue.out.
    void sums(int block, const T* const* rows, std::ptrdiff_t tap_step, int m, float* const* out) const;
    void finish(int block, float* sums, int m, const Epilogue<T>& epilogue, std::ptrdiff_t row_stride) const;
    int blocks() const { return static_cast<int>(places_.size()); }
    int width(int block) const { return places_[block].n > 16 ? kBlock : 16; }

    int n() const { return n_; }  // channels of the result, before a shuffle
    int k() const { return k_; }
    int taps() const { return taps_; }
    int chunks() const { return chunks_; }
    int tile() const { return tile_; }

  private:
    template <class Out>
    BlockArgs<T, Out> block_args(std::size_t first, int count, const Place* places, const T* const* rows,
                             std::ptrdiff_t tap_step, int m, const Epilogue<Out>& epilogue,
                             std::ptrdiff_t row_stride) const;
    template <class Out>
    const Kernels<T, Out>& kernels() const {
        if constexpr (std::is_same_v<T, Out>) {
            return kernels_;
        } else {
            return kernels_float_;
        }
    }
    template <class Out>
    void run_chunks(const T* const* rows, std::ptrdiff_t tap_step, int m, const Epilogue<Out>& epilogue) const;

    struct Free {
        void operator()(T* p) const { std::free(p); }
    };
    int n_, k_, taps_, chunks_, tile_;
    std::optional<float> rest_slope_;
    std::size_t block_size_;             // elements of T per packed block
    std::unique_ptr<T[], Free> packed_;  // 64-byte aligned, [places][chunks_][block_size_]
    std::vector<float> bias_;            // [places][chunks_][32], zeros past n
    std::vector<Place> places_;          // 32 channels of the result each
    std::vector<Place> chunk_places_;    // chunks: where their sums are added up, per place
    Kernels<T, T> kernels_;
    Kernels<T, float> kernels_float_;
};

// For tiles that lie in memory at a constant distance: pointer i = base + i * stride (elements), i < m.
template <class P>
inline void fill_rows(P** rows, P* base, std::ptrdiff_t stride, int m) {
    for (int i = 0; i < m; ++i) rows[i] = base + i * stride;
}

inline float to_float(bf16 value) {
    union {
        std::uint32_t bits;
        float value;
    } u{static_cast<std::uint32_t>(value) << 16};
    return u.value;
}
inline float to_float(float value) { return value; }

// Round to nearest, ties to even; NaN stays NaN.
inline bf16 to_bf16(float value) {
    union {
        float value;
        std::uint32_t bits;
    } u{value};
    if (value != value) return static_cast<bf16>((u.bits >> 16) | 0x40u);
    return static_cast<bf16>((u.bits + 0x7fffu + ((u.bits >> 16) & 1u)) >> 16);
}

inline void store(float* to, float value) { *to = value; }
inline void store(bf16* to, float value) { *to = to_bf16(value); }

}  // namespace sparsecodec::igemm
