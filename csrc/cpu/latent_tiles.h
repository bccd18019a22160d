// Runs of pixels that are transposed together: networks keep channels innermost, streams run over [N, C, H, W].
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace sparsecodec {

inline constexpr std::ptrdiff_t kTile = 16;  // pixels of one row

// Calls f(image, row, first column, pixels, buffer of image.c * kTile elements) for all tiles, in parallel.
template <class T, class Image, class F>
void for_each_tile(const Image& image, F f) {
    const std::ptrdiff_t across = (image.w + kTile - 1) / kTile, tiles = image.n * image.h * across;
#pragma omp parallel if (tiles * image.c > 4096)
    {
        std::vector<T> buffer(image.c * kTile);
#pragma omp for
        for (std::ptrdiff_t tile = 0; tile < tiles; ++tile) {
            const std::ptrdiff_t x = tile % across * kTile, row = tile / across;
            f(row / image.h, row % image.h, x, std::min(kTile, image.w - x), buffer.data());
        }
    }
}

}  // namespace sparsecodec
