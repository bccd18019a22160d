#include "cpu/depth_conv_block.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "common/parallel.h"

namespace sparsecodec {
namespace {

using igemm::Activation;
using igemm::Epilogue;
using igemm::Gemm;
using igemm::Layout;

constexpr std::ptrdiff_t kColumn = 96;  // widest column
constexpr std::ptrdiff_t kPixels = 96;  // of a group: enough to reuse the weights that each product streams through
constexpr std::ptrdiff_t kHiddenPixels = 64;  // whose hidden layer exists at a time: a row of 512 pixels at 1/8

std::ptrdiff_t round_up(std::ptrdiff_t value, std::ptrdiff_t to) { return (value + to - 1) / to * to; }

// The first element of `data` on a 64-byte boundary.
template <class T>
T* aligned(std::vector<T>& data) {
    const auto at = reinterpret_cast<std::uintptr_t>(data.data());
    return data.data() + (round_up(at, 64) - at) / sizeof(T);
}
template <class T>
const T* aligned(const std::vector<T>& data) {
    return aligned(const_cast<std::vector<T>&>(data));
}
template <class T>
std::vector<T> aligned_storage(std::ptrdiff_t count) {
    return std::vector<T>(count + 64 / sizeof(T));
}

// Asks for memory that will soon be read or written: rows of `width` elements that start at from[i].
template <class P>
void fetch(P* const* from, std::ptrdiff_t count, std::ptrdiff_t width) {
    for (std::ptrdiff_t i = 0; i < count; ++i) {
        for (std::ptrdiff_t c = 0; c < width; c += 64 / sizeof(P)) __builtin_prefetch(from[i] + c, 0, 2);
    }
}

Layout into(const std::optional<std::vector<std::int32_t>>& index, int width) {
    Layout layout;
    if (index) {
        layout.kind = Layout::Kind::kScatter;
        layout.index = *index;
        layout.width = width;
    }
    return layout;
}

Layout chunks(const DepthConvBlockParts& parts) {
    Layout layout;
    layout.chunks = parts.chunks;
    layout.interleaved = parts.interleaved;
    layout.rest_slope = parts.rest_slope;
    return layout;
}

template <class T>
Gemm<T> pack(const Matrix& matrix, const Layout& layout = {}) {
    return Gemm<T>(igemm::Weights::oihw(matrix.weight, matrix.n, matrix.k), matrix.bias, layout);
}

void require(bool fits, const char* what, int got, int need) {
    if (fits) return;
    throw std::invalid_argument(std::string(what) + ": " + std::to_string(got) + " (needs " + std::to_string(need) + ")");
}

void check(const DepthConvBlockParts& p) {
    const auto inputs = [](const std::vector<std::int32_t>& index, int k, int width, const char* what) {
        if (index.empty()) require(k == width, what, k, width);
        for (std::int32_t channel : index) require(channel < width, what, channel, width - 1);
    };
    inputs(p.in1_index, p.first.k, p.c, "input channels of w1");
    inputs(p.in3_index, p.hidden.k, p.co, "input channels of w3");
    require(p.second.k == p.first.n, "input channels of w2", p.second.k, p.first.n);
    if (p.chunks < 1 || p.hidden.n % p.chunks != 0) {
        throw std::invalid_argument("chunks=" + std::to_string(p.chunks) + " of " + std::to_string(p.hidden.n) +
                                    " channels (needs a divisor)");
    }
    require(p.last.k == p.hidden.n / p.chunks, "input channels of w4", p.last.k, p.hidden.n / p.chunks);
    if (p.adaptor) {
        require(p.adaptor->k == p.c, "input channels of adaptor", p.adaptor->k, p.c);
        require(p.adaptor->n == p.co, "output channels of adaptor", p.adaptor->n, p.co);
    } else {
        require(p.co == p.c, "output channels without adaptor", p.co, p.c);
    }
    if (!p.out2_index) require(p.second.n == p.co, "output channels of w2", p.second.n, p.co);
    if (!p.out4_index) require(p.last.n == p.co, "output channels of w4", p.last.n, p.co);
}

}  // namespace

template <class T>
struct DepthConvBlock<T>::Column {
    std::ptrdiff_t n, x0, x1, y0, y1;  // pixels [x0, x1) of rows [y0, y1) of image n
    std::ptrdiff_t left, right;        // columns of the first product that exist: [left, right)
    std::ptrdiff_t rows;               // per group
    std::ptrdiff_t width() const { return x1 - x0; }
};

// Of one thread. Rows of `ring` are [width + 2][lanes]: pixel x of the picture at x - x0 + 1.
template <class T>
struct DepthConvBlock<T>::Scratch {
    std::ptrdiff_t slots, slot_size, pixels, c1_stride, co_stride, hidden_stride;
    std::vector<float> ring_storage;  // [slots][width + 2][lanes]
    std::vector<T> depthwise_storage, sum_storage, skip_storage, hidden_storage;
    std::vector<T> gathered;                   // [pixels with halo][k1] or [pixels][k3]
    std::vector<const T*> in, residual, skip, ahead;  // skip: kept for the shortcut; ahead: of the next group
    std::vector<T*> out;
    std::vector<float*> ring_out;
    float* ring;
    T *depthwise, *sum, *adapted;  // [pixels][c1_stride], [pixels][co_stride] twice; without a shortcut adapted is sum
    T* hidden;                     // [kHiddenPixels][hidden_stride]
    const float* scale;

    Scratch(const DepthConvBlock& block, std::ptrdiff_t width, std::ptrdiff_t rows, const float* scale)
        : slots(rows + 2),
          slot_size((width + 2) * block.lanes_),
          pixels(width * rows),
          c1_stride(block.lanes_ + 32),  // rows of different pixels start in different sets of the cache
          co_stride(round_up(block.co_, 16) + 32),
          hidden_stride(round_up(block.last_.k(), 16) + 32),
          ring_storage(aligned_storage<float>(slots * slot_size)),
          depthwise_storage(aligned_storage<T>(pixels * c1_stride)),
          sum_storage(aligned_storage<T>(pixels * co_stride)),
          skip_storage(aligned_storage<T>(block.shortcut_ && block.adaptor_ ? pixels * co_stride : 0)),
          hidden_storage(aligned_storage<T>(kHiddenPixels * hidden_stride)),
          scale(scale) {
        const std::ptrdiff_t most = (width + 2) * slots;
        in.resize(most);
        ring_out.resize(most);
        residual.resize(pixels);
        skip.resize(pixels);
        ahead.resize(pixels);
        out.resize(pixels);
        const bool gather1 = block.gather1_.kind == Gather::Kind::kIndex;
        const bool gather3 = block.gather3_.kind == Gather::Kind::kIndex;
        gathered.resize(std::max(gather1 ? most * block.first_.k() : 0, gather3 ? pixels * block.hidden_.k() : 0));
        ring = aligned(ring_storage);
        depthwise = aligned(depthwise_storage);
        sum = aligned(sum_storage);
        adapted = block.shortcut_ ? aligned(skip_storage) : sum;
        hidden = aligned(hidden_storage);
    }

    float* ring_row(std::ptrdiff_t y) const { return ring + (y + slots) % slots * slot_size; }

    // Pointers of m pixels to the channels that a product reads.
    void gather(const Gather& gather, int k, std::ptrdiff_t m) {
        if (gather.kind == Gather::Kind::kRange) {
            for (std::ptrdiff_t i = 0; i < m; ++i) in[i] += gather.first;
            return;
        }
        for (std::ptrdiff_t i = 0; i < m; ++i) {
            T* const to = gathered.data() + i * k;
            for (int j = 0; j < k; ++j) to[j] = in[i][gather.index[j]];
            in[i] = to;
        }
    }
};

template <class T>
DepthConvBlock<T>::DepthConvBlock(const DepthConvBlockParts& parts)
    : c_((check(parts), parts.c)),
      c1_(parts.first.n),
      co_(parts.co),
      shortcut_(parts.shortcut),
      gather1_(parts.in1_index, parts.first.k),
      gather3_(parts.in3_index, parts.hidden.k),
      first_(pack<T>(parts.first)),
      second_(pack<T>(parts.second, into(parts.out2_index, parts.co))),
      hidden_(pack<T>(parts.hidden, chunks(parts))),
      last_(pack<T>(parts.last, into(parts.out4_index, parts.co))),
      lanes_(round_up(std::max(parts.first.n, 1), kLanes)),
      depthwise_(aligned_storage<float>(10 * lanes_)),
      depthwise_row_(depthwise_row<T>(igemm::isa())) {
    if (parts.adaptor) adaptor_.emplace(pack<T>(*parts.adaptor));
    for (int i = 0; i < 5; ++i) activations_[i] = {parts.slopes[i], parts.gated && (i == 0 || i == 3)};
    float* const taps = aligned(depthwise_);
    for (int c = 0; c < c1_; ++c) {
        for (int tap = 0; tap < 9; ++tap) taps[tap * lanes_ + c] = parts.depthwise[c * 9 + tap];
        taps[9 * lanes_ + c] = parts.depthwise_bias ? parts.depthwise_bias[c] : 0.0f;
    }
}

// Rows [from, to) of the first product into the ring, zeros where the picture ends.
template <class T>
void DepthConvBlock<T>::first_rows(const Image<const T>& x, const Column& column, std::ptrdiff_t from,
                                   std::ptrdiff_t to, Scratch& s) const {
    std::ptrdiff_t m = 0;
    for (std::ptrdiff_t y = from; y < to; ++y) {
        float* const row = s.ring_row(y);
        if (y < 0 || y >= x.h) {
            std::fill_n(row, s.slot_size, 0.0f);
            continue;
        }
        const T* pixel = x.pixel(column.n, y, column.left);
        float* out = row + (column.left - column.x0 + 1) * lanes_;
        for (std::ptrdiff_t i = column.left; i < column.right; ++i, ++m, pixel += x.stride_w, out += lanes_) {
            s.in[m] = pixel;
            s.ring_out[m] = out;
        }
    }
    s.gather(gather1_, first_.k(), m);
    first_.run(s.in.data(), m, static_cast<int>(m), Epilogue<float>{s.ring_out.data(), nullptr, activations_[0]});
}

// From the ring to `sum`: depthwise, second product, skip.
template <class T>
void DepthConvBlock<T>::middle(const Image<const T>& x, const Column& column, std::ptrdiff_t y, std::ptrdiff_t rows,
                               Scratch& s) const {
    const std::ptrdiff_t width = column.width(), m = width * rows;
    const float* const taps = aligned(depthwise_);
    for (std::ptrdiff_t r = 0; r < rows; ++r) {
        const DepthwiseArgs args{{s.ring_row(y + r - 1), s.ring_row(y + r), s.ring_row(y + r + 1)},
                                 lanes_,
                                 static_cast<int>(width),
                                 c1_,
                                 taps,
                                 taps + 9 * lanes_,
                                 activations_[1].slope};
        depthwise_row_(args, s.depthwise + r * width * s.c1_stride, s.c1_stride);
        igemm::fill_rows(s.residual.data() + r * width, x.pixel(column.n, y + r, column.x0), x.stride_w,
                         static_cast<int>(width));
    }
    const int pixels = static_cast<int>(m);
    if (adaptor_) {
        igemm::fill_rows(s.out.data(), s.adapted, s.co_stride, pixels);
        adaptor_->run(s.residual.data(), m, pixels, Epilogue<T>{s.out.data()});
        std::copy_n(s.out.data(), m, s.residual.data());
    }
    std::copy_n(s.residual.data(), m, s.skip.data());
    igemm::fill_rows(s.out.data(), s.sum, s.co_stride, pixels);
    if (second_.n() == 0) {
        for (std::ptrdiff_t i = 0; i < m && s.residual[i] != s.out[i]; ++i) {
            std::copy_n(s.residual[i], co_, s.out[i]);
        }
        return;
    }
    igemm::fill_rows<const T>(s.in.data(), s.depthwise, s.c1_stride, pixels);
    second_.run(s.in.data(), m, pixels, Epilogue<T>{s.out.data(), s.residual.data(), activations_[2]});
}

// From `sum` to the result.
template <class T>
void DepthConvBlock<T>::feed_forward(const Image<const T>& x, const Image<T>& out, const Column& column,
                                     std::ptrdiff_t y, std::ptrdiff_t rows, Scratch& s) const {
    const std::ptrdiff_t width = column.width(), m = width * rows;
    igemm::fill_rows<const T>(s.residual.data(), s.sum, s.co_stride, static_cast<int>(m));
    std::copy_n(s.residual.data(), m, s.in.data());
    for (std::ptrdiff_t r = 0; r < rows; ++r) {
        igemm::fill_rows(s.out.data() + r * width, out.pixel(column.n, y + r, column.x0), out.stride_w,
                         static_cast<int>(width));
    }
    const T* const* const skip = shortcut_ ? s.skip.data() : nullptr;
    if (last_.n() == 0) {
        for (std::ptrdiff_t i = 0; i < m; ++i) {
            for (int c = 0; c < co_; ++c) {
                float value = igemm::to_float(s.residual[i][c]);
                if (skip) value += igemm::to_float(skip[i][c]);
                igemm::store(s.out[i] + c, s.scale ? value * s.scale[c] : value);
            }
        }
        return;
    }
    s.gather(gather3_, hidden_.k(), m);
    // The result, and the rows of x that the next group reads, are on their way while this one is multiplied. 64
    // channels, 256x384, bf16, one core of a busy Zen 4 machine, 2026-11: 42.2 -> 41.5 ms.
    const std::ptrdiff_t ahead = std::min(rows, x.h - (y + rows + 1));
    for (std::ptrdiff_t r = 0; r < ahead; ++r) {
        igemm::fill_rows(s.ahead.data() + r * width, x.pixel(column.n, y + rows + 1 + r, column.x0), x.stride_w,
                         static_cast<int>(width));
    }
    T* hidden_out[kHiddenPixels];
    const T* hidden_in[kHiddenPixels];
    igemm::fill_rows(hidden_out, s.hidden, s.hidden_stride, kHiddenPixels);
    std::copy_n(hidden_out, kHiddenPixels, hidden_in);
    for (std::ptrdiff_t first = 0; first < m; first += kHiddenPixels) {
        const int pixels = static_cast<int>(std::min(kHiddenPixels, m - first));
        fetch(s.out.data() + first, pixels, co_);
        fetch(s.ahead.data() + first, std::min<std::ptrdiff_t>(pixels, ahead * width - first), c_);
        hidden_.run(s.in.data() + first, m, pixels, Epilogue<T>{hidden_out, nullptr, activations_[3]});
        last_.run(hidden_in, kHiddenPixels, pixels,
                  Epilogue<T>{s.out.data(), s.residual.data(), activations_[4], skip, s.scale}.from(first));
    }
}

template <class T>
void DepthConvBlock<T>::run_column(const Image<const T>& x, const Image<T>& out, const Column& column,
                                   Scratch& s) const {
    std::fill_n(s.ring, s.slots * s.slot_size, 0.0f);  // pixels left and right of the picture stay zero
    std::ptrdiff_t ready = column.y0 - 1;              // rows before this one are in the ring
    for (std::ptrdiff_t y = column.y0; y < column.y1; y += column.rows) {
        const std::ptrdiff_t rows = std::min(column.rows, column.y1 - y);
        if (second_.n() > 0) {
            first_rows(x, column, ready, y + rows + 1, s);
            ready = y + rows + 1;
        }
        middle(x, column, y, rows, s);
        feed_forward(x, out, column, y, rows, s);
    }
}

template <class T>
void DepthConvBlock<T>::run(const Image<const T>& x, const Image<T>& out, const float* scale) const {
    if (x.n * x.h * x.w == 0) return;
    const std::ptrdiff_t threads = max_threads();
    const std::ptrdiff_t columns = (x.w + kColumn - 1) / kColumn, width = (x.w + columns - 1) / columns;
    const std::ptrdiff_t rows = std::min(x.h, std::max<std::ptrdiff_t>(1, kPixels / width));
    // A strip computes two rows of the first product twice; eight rows keep that below 3 % of the block.
    const std::ptrdiff_t wanted = threads == 1 ? 1 : (4 * threads + x.n * columns - 1) / (x.n * columns);
    const std::ptrdiff_t least = std::max<std::ptrdiff_t>(8, rows);
    const std::ptrdiff_t most = std::max<std::ptrdiff_t>(1, x.h / least);  // strips
    const std::ptrdiff_t strip = (x.h + std::min(wanted, most) - 1) / std::min(wanted, most);  // alike, for the threads
    const std::ptrdiff_t strips = (x.h + strip - 1) / strip;
    in_parallel(x.n * columns * strips, [&](Tasks& tasks) {
        Scratch scratch(*this, width, rows, scale);
        for (std::ptrdiff_t task; tasks.take(task);) {
            Column column;
            column.n = task / (columns * strips);
            column.x0 = task % columns * width;
            column.x1 = std::min(x.w, column.x0 + width);
            column.y0 = task / columns % strips * strip;
            column.y1 = std::min(x.h, column.y0 + strip);
            column.left = std::max<std::ptrdiff_t>(0, column.x0 - 1);
            column.right = std::min(x.w, column.x1 + 1);
            column.rows = rows;
            run_column(x, out, column, scratch);
        }
    });
}

template class DepthConvBlock<float>;
template class DepthConvBlock<igemm::bf16>;

}  // namespace sparsecodec
