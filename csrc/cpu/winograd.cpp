#include "cpu/winograd.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "common/parallel.h"
#include "cpu/conv_rows.h"

#if defined(__x86_64__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12 on its own intrinsics headers (its bug 105593)
#include <immintrin.h>
#endif

namespace sparsecodec {
namespace {

using igemm::bf16;
using igemm::kBlock;

constexpr int kCells = 16;                // of a transformed tile
constexpr std::ptrdiff_t kTiles = 48;     // of a task: what lies between the transforms stays in the second-level cache
constexpr std::ptrdiff_t kSpread = 32;    // elements between two cells' rows, so that they start in different sets
constexpr int kLeastChannels = 32;        // below, the transforms cost more than the products that they save

// Where a tile's four inputs by four begin: a pointer per row and column, null where there is nothing.
template <class T>
struct TileRun {
    const T* rows[4];              // at channel 0 of column 0 of the picture; null: zeros
    std::ptrdiff_t column, width;  // first column that the run reads, columns of the picture
    std::ptrdiff_t stride;         // between columns
};

template <class T>
struct Transforms {
    void (*inputs)(const TileRun<T>&, std::ptrdiff_t count, int k, T* cells, std::ptrdiff_t cell_step,
                   std::ptrdiff_t row_step);
    // [whether the first row has products][the first column]
    void (*products[2][2])(const float* products, std::ptrdiff_t cell_step, std::ptrdiff_t count, const int* place,
                           int width, float* sums);
};

namespace narrow {
constexpr int kBytes = 16;
#include "cpu/winograd_transforms.inl"
}  // namespace narrow

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
constexpr int kBytes = 32;
#include "cpu/winograd_transforms.inl"
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
namespace avx512 {
constexpr int kBytes = 64;
#include "cpu/winograd_transforms.inl"
}  // namespace avx512
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,prefer-vector-width=512")
namespace avx512bf16 {
constexpr int kBytes = 64;
#include "cpu/winograd_transforms.inl"

template <>
struct Memory<bf16> {
    static Vec load(const bf16* p, int count) {
        const __mmask16 mask = count >= kLanes ? 0xffff : static_cast<__mmask16>((1u << count) - 1u);
        const __m512i bits = _mm512_maskz_cvtepu16_epi32(mask, _mm256_maskz_loadu_epi16(mask, p));
        return (Vec)_mm512_maskz_slli_epi32(mask, bits, 16);
    }
    static void store(bf16* p, Vec v) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh((__m512)v));
    }
};
}  // namespace avx512bf16
#pragma GCC pop_options
#endif

template <class T>
Transforms<T> transforms_of(igemm::Isa isa) {
#if defined(__x86_64__)
    if constexpr (std::is_same_v<T, bf16>) {
        return avx512bf16::transforms<T>();
    } else {
        if (isa >= igemm::Isa::kAvx512) return avx512::transforms<T>();
        if (isa >= igemm::Isa::kAvx2) return avx2::transforms<T>();
        return narrow::transforms<T>();
    }
#else
    if constexpr (std::is_same_v<T, float>) return narrow::transforms<T>();
    throw std::logic_error("no bf16 transforms on this processor");
#endif
}

// Weights transformed for cell (i, j): row i of G * weights * G^T, column j.
float transformed_weight(const float* w, int i, int j) {
    static constexpr float kG[4][3] = {{1, 0, 0}, {0.5f, 0.5f, 0.5f}, {0.5f, -0.5f, 0.5f}, {0, 0, 1}};
    float sum = 0;
    for (int y = 0; y < 3; ++y) {
        for (int x = 0; x < 3; ++x) sum += kG[i][y] * kG[j][x] * w[y * 3 + x];
    }
    return sum;
}

// Tiles of 2 x 2 of a convolution's pixels.
template <class T>
Grid tiles_of(const Image<T>& out, int step) {
    Grid tiles;
    tiles.h = (out.h + 2 * step - 1) / (2 * step);
    tiles.w = (out.w + 2 * step - 1) / (2 * step);
    return tiles;
}

template <class T>
std::unique_ptr<T[]> uninitialised(std::ptrdiff_t count) {
    return std::unique_ptr<T[]>(new T[count]);
}

}  // namespace

// Of one thread.
template <class T>
struct Winograd<T>::Scratch {
    std::ptrdiff_t row_step, cell_step, product_step;
    Transforms<T> transforms;
    std::unique_ptr<T[]> cells;          // [16][kTiles][row_step]
    std::unique_ptr<float[]> products;   // [16][kTiles][32]
    std::unique_ptr<float[]> sums;       // [pixels + 1][32], the last for pixels outside; 16 readable floats
    std::vector<const T*> rows;          // [16][kTiles]
    std::vector<float*> product_rows;    // [16][kTiles]
    std::vector<int> place;              // [kTiles][4]
    std::vector<T*> out;                 // [pixels]
    std::vector<const T*> residual;      // [pixels]

    Scratch(int k, igemm::Isa isa)
        : row_step((k + 15) / 16 * 16 + kSpread),
          cell_step(kTiles * row_step + kSpread),
          product_step(kTiles * kBlock + 16),
          transforms(transforms_of<T>(isa)),
          cells(uninitialised<T>(kCells * cell_step)),
          products(uninitialised<float>(kCells * product_step)),
          sums(uninitialised<float>((4 * kTiles + 1) * kBlock + 16)),
          rows(kCells * kTiles),
          product_rows(kCells * kTiles),
          place(4 * kTiles),
          out(4 * kTiles),
          residual(4 * kTiles) {
        for (int cell = 0; cell < kCells; ++cell) {
            igemm::fill_rows<const T>(rows.data() + cell * kTiles, cells.get() + cell * cell_step, row_step, kTiles);
            igemm::fill_rows(product_rows.data() + cell * kTiles, products.get() + cell * product_step, kBlock, kTiles);
        }
    }
};

template <class T>
bool Winograd<T>::pays(int k, int n) {
    const bool here = std::is_same_v<T, float> || igemm::isa() == igemm::Isa::kAvx512Bf16;
    return here && std::min(k, n) >= kLeastChannels;
}

template <class T>
Winograd<T>::Winograd(const std::vector<Part>& parts, const float* bias, int n, int k, int padding, int step,
                      const igemm::Layout& layout)
    : isa_(igemm::isa()), k_(k), padding_(padding), step_(step) {
    std::vector<float> transformed(static_cast<std::size_t>(n) * k);
    for (const Part& part : parts) {
        Products products{part.y, part.x, part.above, part.left, {}, {}};
        for (int cell = 0; cell < kCells; ++cell) {
            if ((cell / 4 == 0 && !part.above) || (cell % 4 == 0 && !part.left)) continue;
            for (std::size_t i = 0; i < transformed.size(); ++i) {
                transformed[i] = transformed_weight(part.weights + i * 9, cell / 4, cell % 4);
            }
            // Every pixel of a tile has the product of cell (1, 1) with a plus sign: it brings the bias.
            products.cells.push_back(cell);
            products.gemms.emplace_back(igemm::Weights::oihw(transformed.data(), n, k), cell == 5 ? bias : nullptr,
                                        layout);
        }
        parts_.push_back(std::move(products));
    }
}

template <class T>
void Winograd<T>::run_tiles(const Call& call, std::ptrdiff_t first, std::ptrdiff_t count, Scratch& s) const {
    for_each_stretch(tiles_of(call.out, step_), first, count, [&](auto at, auto n, auto ty, auto tx, auto length) {
        TileRun<T> run{{}, 2 * tx - padding_, call.x.w, call.x.stride_w};
        for (int i = 0; i < 4; ++i) {
            const std::ptrdiff_t y = 2 * ty - padding_ + i;
            run.rows[i] = y >= 0 && y < call.x.h ? call.x.pixel(n, y, 0) : nullptr;
        }
        s.transforms.inputs(run, length, k_, s.cells.get() + at * s.row_step, s.cell_step, s.row_step);
    });
    for (const Products& part : parts_) run_part(part, call, first, count, s);
}

template <class T>
void Winograd<T>::run_part(const Products& part, const Call& call, std::ptrdiff_t first, std::ptrdiff_t count,
                           Scratch& s) const {
    int pixels = 0;
    for_each_stretch(tiles_of(call.out, step_), first, count, [&](auto at, auto n, auto ty, auto tx, auto length) {
        for (std::ptrdiff_t t = 0; t < length; ++t) {
            for (int i = 0; i < 4; ++i) {
                const std::ptrdiff_t y = (2 * ty + i / 2) * step_ + part.y, x = (2 * (tx + t) + i % 2) * step_ + part.x;
                int& place = s.place[(at + t) * 4 + i];
                place = 4 * kTiles;
                if (y >= call.out.h || x >= call.out.w) continue;
                place = pixels++;
                s.out[place] = call.out.pixel(n, y, x);
                if (!call.residual) continue;
                s.residual[place] = call.residual->pixel(n, y, x);
                copy_scaled(s.residual[place], call.copy_from, call.out.c, call.scale, s.out[place]);
            }
        }
    });
    const igemm::Epilogue<T> epilogue{s.out.data(), call.residual ? s.residual.data() : nullptr, call.activation,
                                      nullptr, call.scale};
    for (int block = 0; block < part.gemms[0].blocks(); ++block) {
        for (std::size_t i = 0; i < part.cells.size(); ++i) {
            const std::ptrdiff_t rows = part.cells[i] * kTiles;
            part.gemms[i].sums(block, s.rows.data() + rows, kTiles, static_cast<int>(count),
                               s.product_rows.data() + rows);
        }
        s.transforms.products[part.above][part.left](s.products.get(), s.product_step, count, s.place.data(),
                                                     part.gemms[0].width(block), s.sums.get());
        part.gemms[0].finish(block, s.sums.get(), pixels, epilogue, call.out.stride_h);
    }
}

template <class T>
void Winograd<T>::run(const Call& call) const {
    const Grid grid = tiles_of(call.out, step_);
    const std::ptrdiff_t tiles = call.out.n * grid.h * grid.w;
    if (tiles == 0) return;
    const std::ptrdiff_t threads = max_threads();
    const std::ptrdiff_t shared = threads == 1 ? tiles : std::max<std::ptrdiff_t>(12, tiles / (4 * threads) / 12 * 12);
    const std::ptrdiff_t size = std::min(kTiles, shared);
    in_parallel((tiles + size - 1) / size, [&](Tasks& tasks) {
        Scratch scratch(k_, isa_);
        for (std::ptrdiff_t task; tasks.take(task);) {
            run_tiles(call, task * size, std::min(size, tiles - task * size), scratch);
        }
    });
}

template class Winograd<float>;
template class Winograd<bf16>;

}  // namespace sparsecodec
