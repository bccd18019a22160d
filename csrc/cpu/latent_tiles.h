// Runs of pixels that are transposed together: networks keep channels innermost, streams run over [N, C, H, W].
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "common/parallel.h"

namespace sparsecodec {

inline constexpr std::ptrdiff_t kTile = 16;  // pixels of one row

// Calls f(image, row, first column, pixels, buffer of image.c * kTile elements) for all tiles, rows in parallel.
template <class T, class Image, class F>
void for_each_tile(const Image& image, F f) {
    const std::ptrdiff_t rows = image.n * image.h, tiles = rows * ((image.w + kTile - 1) / kTile);
    const auto run = [&](Tasks& tasks) {
        std::vector<T> buffer(image.c * kTile);
        for (std::ptrdiff_t row; tasks.take(row);) {
            for (std::ptrdiff_t x = 0; x < image.w; x += kTile) {
                f(row / image.h, row % image.h, x, std::min(kTile, image.w - x), buffer.data());
            }
        }
    };
    in_parallel(rows, run, tiles * image.c > 4096 ? max_threads() : 1);
}

}  // namespace sparsecodec
