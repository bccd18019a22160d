// How the pixels of a grid are cut into tasks, and the pointers through which a kernel reads and writes them.
#pragma once

#include <algorithm>
#include <cstddef>

#include "cpu/conv_grid.h"

namespace sparsecodec {

inline constexpr std::ptrdiff_t kMaxTask = 240;     // pixels of a task
inline constexpr std::size_t kTaskBytes = 1 << 17;  // input of a task: stays in the second-level cache with weights

// Pixels per task: large enough to reuse weights, small enough that every thread gets some.
inline std::ptrdiff_t task_pixels(std::ptrdiff_t pixels, std::size_t row_bytes, std::ptrdiff_t threads,
                                 std::ptrdiff_t tile) {
    const auto round_up = [&](std::ptrdiff_t n) { return (n + tile - 1) / tile * tile; };
    const std::ptrdiff_t cached = round_up(kTaskBytes / std::max<std::size_t>(row_bytes, 1));
    const std::ptrdiff_t shared = threads == 1 ? kMaxTask : round_up((pixels + 4 * threads - 1) / (4 * threads));
    return std::max(tile, std::min({kMaxTask, std::max<std::ptrdiff_t>(cached, 48), shared}) / tile * tile);
}

// Calls f(position in the task, image, row, column, length) for each stretch of grid pixels [first, first + m) that lies
// in one row.
template <class F>
void for_each_stretch(const Grid& grid, std::ptrdiff_t first, std::ptrdiff_t m, F f) {
    std::ptrdiff_t x = first % grid.w, y = first / grid.w % grid.h, n = first / grid.w / grid.h;
    for (std::ptrdiff_t i = 0; i < m;) {
        const std::ptrdiff_t length = std::min(m - i, grid.w - x);
        f(i, n, y, x, length);
        i += length;
        x = 0;
        if (++y == grid.h) y = 0, ++n;
    }
}

template <class P>
void step_rows(P** rows, P* first, std::ptrdiff_t step, std::ptrdiff_t n) {
    for (std::ptrdiff_t j = 0; j < n; ++j) rows[j] = first + j * step;
}

// rows: [taps][tap_step], filled for m pixels; zeros: what taps outside the image read.
template <class T>
void point_rows(const Grid& grid, const Image<const T>& x, const T* zeros, int first_channel, std::ptrdiff_t first,
                std::ptrdiff_t m, const T** rows, std::ptrdiff_t tap_step) {
    for_each_stretch(grid, first, m, [&](auto i, auto n, auto y, auto column, auto length) {
        for (std::size_t t = 0; t < grid.taps.size(); ++t) {
            const T** row = rows + t * tap_step + i;
            const std::ptrdiff_t iy = y * grid.stride + grid.taps[t].dy;
            const std::ptrdiff_t ix = column * grid.stride + grid.taps[t].dx;
            std::ptrdiff_t begin = 0, end = 0;  // pixels of the stretch whose input column exists
            if (iy >= 0 && iy < x.h) {
                begin = std::min(length, ix >= 0 ? 0 : (-ix + grid.stride - 1) / grid.stride);
                end = std::max(begin, std::min(length, (x.w - ix + grid.stride - 1) / grid.stride));
            }
            std::fill(row, row + begin, zeros);
            if (end > begin) {
                const T* from = x.pixel(n, iy, ix + begin * grid.stride) + first_channel;
                step_rows(row + begin, from, grid.stride * x.stride_w, end - begin);
            }
            std::fill(row + end, row + length, zeros);
        }
    });
}

template <class T, class P>
void point_out(const Grid& grid, const Image<P>& image, std::ptrdiff_t first, std::ptrdiff_t m, P** rows) {
    for_each_stretch(grid, first, m, [&](auto i, auto n, auto y, auto x, auto length) {
        P* from = image.pixel(n, y * grid.out_step + grid.out_y, x * grid.out_step + grid.out_x);
        step_rows(rows + i, from, grid.out_step * image.stride_w, length);
    });
}

// Channels [begin, end) of a pixel, which may already stand where they go.
template <class T>
void copy_scaled(const T* from, std::ptrdiff_t begin, std::ptrdiff_t end, const float* scale, T* to) {
    if (!scale) {
        if (from != to) std::copy(from + begin, from + end, to + begin);
        return;
    }
    for (std::ptrdiff_t c = begin; c < end; ++c) igemm::store(to + c, igemm::to_float(from[c]) * scale[c]);
}

}  // namespace sparsecodec
