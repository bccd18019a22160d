#include "cpu/conv_grid.h"

#include <algorithm>

#include "check.h"
#include "common/parallel.h"
#include "cpu/conv_rows.h"

namespace sparsecodec {
namespace {

constexpr std::size_t kSmallWeights = 1 << 15;  // stay in the first-level cache
constexpr std::size_t kLargeImages = 1 << 24;   // input and output together: come from main memory

// Runs a task whose pixels come from and go to main memory: one register tile at a time through all blocks of channels,
// while the next tile is on its way. 1x1, 64 -> 64 channels, 256x384, one core of a busy Zen 5 machine, 2026-11: bf16
// 2.8 -> 2.3 ms, float 6.5 -> 5.6 ms. On 128x192 bf16 lost 7 %, hence kLargeImages.
template <class T>
void run_streaming(const GridCall<T>& call, const T* const* rows, std::ptrdiff_t tap_step, std::ptrdiff_t m,
                   const igemm::Epilogue<T>& epilogue) {
    const auto prefetch = [](const T* row, std::ptrdiff_t elements) {
        for (std::ptrdiff_t i = 0; i < elements; i += 64 / sizeof(T)) __builtin_prefetch(row + i);
    };
    const std::ptrdiff_t tile = call.gemm.tile();
    for (std::ptrdiff_t i = 0; i < m; i += tile) {
        for (std::ptrdiff_t next = i + tile; next < std::min(m, i + 2 * tile); ++next) {
            prefetch(rows[next], call.gemm.k());
            prefetch(epilogue.out[next], call.out.c);
        }
        call.gemm.run(rows + i, tap_step, static_cast<int>(std::min(tile, m - i)), epilogue.from(i), call.out.stride_h);
    }
}

template <class T>
void gather_pixel(const T* from, const std::vector<std::int32_t>& index, T* to) {
    for (std::size_t k = 0; k < index.size(); ++k) to[k] = from[index[k]];
}

// The gathered channels of the whole input, for kernels that read a pixel more than once.
template <class T>
Image<const T> gather_image(const Image<const T>& x, const std::vector<std::int32_t>& index, std::vector<T>& storage) {
    const std::ptrdiff_t k = static_cast<std::ptrdiff_t>(index.size());
    storage.resize(x.n * x.h * x.w * k);
#pragma omp parallel for
    for (std::ptrdiff_t row = 0; row < x.n * x.h; ++row) {
        for (std::ptrdiff_t ix = 0; ix < x.w; ++ix) {
            gather_pixel(x.pixel(row / x.h, row % x.h, ix), index, storage.data() + (row * x.w + ix) * k);
        }
    }
    return {storage.data(), x.n, k, x.h, x.w, x.h * x.w * k, x.w * k, k};
}

}  // namespace

Gather::Gather(const std::vector<std::int32_t>& channels, int k) : width(k) {
    if (channels.empty()) return;
    SC_CHECK(static_cast<int>(channels.size()) == k, "in_index has ", channels.size(), " entries (needs C_in=", k, ")");
    const auto [low, high] = std::minmax_element(channels.begin(), channels.end());
    SC_CHECK(*low >= 0, "in_index holds ", *low, " (needs channels of x)");
    width = *high + 1;
    first = channels[0];
    for (int i = 0; i < k; ++i) {
        if (channels[i] != first + i) kind = Kind::kIndex;
    }
    if (kind == Kind::kIndex) index = channels;
}

template <class T>
void run_grid(const GridCall<T>& call) {
    const Grid& grid = call.grid;
    const std::ptrdiff_t pixels = call.out.n * grid.h * grid.w;
    if (pixels == 0) return;
    const bool indexed = call.gather.kind == Gather::Kind::kIndex;
    const bool gather_tiles = indexed && grid.taps.size() == 1;
    std::vector<T> gathered;
    Image<const T> x = call.x;
    if (indexed && !gather_tiles) x = gather_image(x, call.gather.index, gathered);
    const int first_channel = indexed ? 0 : call.gather.first;

    const std::ptrdiff_t k = call.gemm.k(), taps = call.gemm.taps();
    const std::ptrdiff_t tile = task_pixels(pixels, k * sizeof(T), max_threads(), call.gemm.tile());
    const std::size_t weights = k * call.gemm.n() * call.gemm.chunks() * sizeof(T);
    const std::size_t images = pixels * (k + call.out.c) * sizeof(T);
    const bool streaming = taps == 1 && weights <= kSmallWeights && images >= kLargeImages;
    in_parallel((pixels + tile - 1) / tile, [&](Tasks& tasks) {
        std::vector<const T*> rows(taps * tile), residual(call.residual ? tile : 0);
        std::vector<T*> out(tile);
        std::vector<T> compact(gather_tiles ? tile * k : 0);
        for (std::ptrdiff_t task; tasks.take(task);) {
            const std::ptrdiff_t first = task * tile, m = std::min(tile, pixels - first);
            point_rows(grid, x, call.zeros, first_channel, first, m, rows.data(), tile);
            if (gather_tiles) {
                for (std::ptrdiff_t i = 0; i < m; ++i) {
                    if (rows[i] == call.zeros) continue;
                    gather_pixel(rows[i], call.gather.index, compact.data() + i * k);
                    rows[i] = compact.data() + i * k;
                }
            }
            point_out<T>(grid, call.out, first, m, out.data());
            if (call.residual) {
                point_out<T>(grid, *call.residual, first, m, residual.data());
                for (std::ptrdiff_t i = 0; i < m && call.copy_from < call.out.c; ++i) {
                    copy_scaled(residual[i], call.copy_from, call.out.c, call.scale, out[i]);
                }
            }
            const igemm::Epilogue<T> epilogue{out.data(), call.residual ? residual.data() : nullptr, call.activation,
                                              nullptr, call.scale};
            if (streaming) {
                run_streaming(call, rows.data(), tile, m, epilogue);
            } else {
                call.gemm.run(rows.data(), tile, static_cast<int>(m), epilogue, call.out.stride_h);
            }
        }
    });
}

template void run_grid(const GridCall<float>&);
template void run_grid(const GridCall<igemm::bf16>&);

}  // namespace sparsecodec
