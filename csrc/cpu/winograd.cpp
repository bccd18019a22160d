#include "cpu/winograd.h"

#include <algorithm>
#include <memory>
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
struct TileRun {
    const bf16* rows[4];           // at channel 0 of column 0 of the picture; null: zeros
    std::ptrdiff_t column, width;  // first column that the run reads, columns of the picture
    std::ptrdiff_t stride;         // between columns
};

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,prefer-vector-width=512")

inline __m512 load_values(const bf16* p, __mmask16 mask) {
    const __m512i bits = _mm512_maskz_cvtepu16_epi32(mask, _mm256_maskz_loadu_epi16(mask, p));
    return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(mask, bits, 16));
}

// Sixteen channels of one column of four inputs, transformed downwards.
struct Column {
    __m512 v[4];
};

inline Column transformed_column(const TileRun& run, std::ptrdiff_t column, std::ptrdiff_t k, __mmask16 mask) {
    __m512 d[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const bool here = run.rows[i] && column >= 0 && column < run.width;
        d[i] = here ? load_values(run.rows[i] + column * run.stride + k, mask) : _mm512_setzero_ps();
    }
    return {{_mm512_sub_ps(d[0], d[2]), _mm512_add_ps(d[1], d[2]), _mm512_sub_ps(d[2], d[1]),
             _mm512_sub_ps(d[1], d[3])}};
}

// `count` tiles beside each other: cell (i, j) of tile t to cells[(i * 4 + j) * cell_step + t * row_step], k channels
// rounded up to sixteen.
void transform_inputs(const TileRun& run, std::ptrdiff_t count, int k, bf16* cells, std::ptrdiff_t cell_step,
                      std::ptrdiff_t row_step) {
    for (int c = 0; c < k; c += 16) {
        const __mmask16 mask = k - c >= 16 ? 0xffff : static_cast<__mmask16>((1u << (k - c)) - 1u);
        Column first = transformed_column(run, run.column, c, mask);
        Column second = transformed_column(run, run.column + 1, c, mask);
        bf16* to = cells + c;
        for (std::ptrdiff_t t = 0; t < count; ++t, to += row_step) {
            const Column third = transformed_column(run, run.column + 2 * t + 2, c, mask);
            const Column fourth = transformed_column(run, run.column + 2 * t + 3, c, mask);
            const auto put = [&](int cell, __m512 v) {
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + cell * cell_step), (__m256i)_mm512_cvtneps_pbh(v));
            };
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                put(i * 4, _mm512_sub_ps(first.v[i], third.v[i]));
                put(i * 4 + 1, _mm512_add_ps(second.v[i], third.v[i]));
                put(i * 4 + 2, _mm512_sub_ps(third.v[i], second.v[i]));
                put(i * 4 + 3, _mm512_sub_ps(second.v[i], fourth.v[i]));
            }
            first = third;
            second = fourth;
        }
    }
}

// The products of `count` tiles, 32 channels, to the sums of their pixels: pixel (i, j) of tile t at
// sums + place[t * 4 + i * 2 + j] * 32. Above, Left: whether there are products of the first row, the first column.
template <bool Above, bool Left>
void transform_products(const float* products, std::ptrdiff_t cell_step, std::ptrdiff_t count, const int* place,
                        float* sums) {
    for (std::ptrdiff_t t = 0; t < count; ++t, products += kBlock, place += 4) {
#pragma GCC unroll 2
        for (int v = 0; v < kBlock; v += 16) {
            __m512 upper[4], lower[4];
#pragma GCC unroll 4
            for (int j = Left ? 0 : 1; j < 4; ++j) {
                const float* const from = products + j * cell_step + v;
                const __m512 b = _mm512_loadu_ps(from + 4 * cell_step), c = _mm512_loadu_ps(from + 8 * cell_step);
                const __m512 d = _mm512_loadu_ps(from + 12 * cell_step);
                upper[j] = _mm512_add_ps(Above ? _mm512_add_ps(_mm512_loadu_ps(from), b) : b, c);
                lower[j] = _mm512_sub_ps(_mm512_sub_ps(b, c), d);
            }
            const auto put = [&](int pixel, const __m512 (&m)[4]) {
                const __m512 first = Left ? _mm512_add_ps(m[0], m[1]) : m[1];
                _mm512_storeu_ps(sums + place[pixel] * kBlock + v, _mm512_add_ps(first, m[2]));
                _mm512_storeu_ps(sums + place[pixel + 1] * kBlock + v,
                                 _mm512_sub_ps(_mm512_sub_ps(m[1], m[2]), m[3]));
            };
            put(0, upper);
            put(2, lower);
        }
    }
}
#pragma GCC pop_options
#else
void transform_inputs(const TileRun&, std::ptrdiff_t, int, bf16*, std::ptrdiff_t, std::ptrdiff_t) {}
template <bool, bool>
void transform_products(const float*, std::ptrdiff_t, std::ptrdiff_t, const int*, float*) {}
#endif

using TransformProducts = void (*)(const float*, std::ptrdiff_t, std::ptrdiff_t, const int*, float*);
constexpr TransformProducts kTransformProducts[2][2] = {  // [above][left]
    {transform_products<false, false>, transform_products<false, true>},
    {transform_products<true, false>, transform_products<true, true>},
};

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
Grid tiles_of(const Image<bf16>& out, int step) {
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
struct Winograd::Scratch {
    std::ptrdiff_t row_step, cell_step, product_step;
    std::unique_ptr<bf16[]> cells;       // [16][kTiles][row_step]
    std::unique_ptr<float[]> products;   // [16][kTiles][32]
    std::unique_ptr<float[]> sums;       // [pixels + 1][32], the last for pixels outside; 16 readable floats
    std::vector<const bf16*> rows;       // [16][kTiles]
    std::vector<float*> product_rows;    // [16][kTiles]
    std::vector<int> place;              // [kTiles][4]
    std::vector<bf16*> out;              // [pixels]
    std::vector<const bf16*> residual;   // [pixels]

    explicit Scratch(int k)
        : row_step((k + 15) / 16 * 16 + kSpread),
          cell_step(kTiles * row_step + kSpread),
          product_step(kTiles * kBlock + 16),
          cells(uninitialised<bf16>(kCells * cell_step)),
          products(uninitialised<float>(kCells * product_step)),
          sums(uninitialised<float>((4 * kTiles + 1) * kBlock + 16)),
          rows(kCells * kTiles),
          product_rows(kCells * kTiles),
          place(4 * kTiles),
          out(4 * kTiles),
          residual(4 * kTiles) {
        for (int cell = 0; cell < kCells; ++cell) {
            igemm::fill_rows<const bf16>(rows.data() + cell * kTiles, cells.get() + cell * cell_step, row_step, kTiles);
            igemm::fill_rows(product_rows.data() + cell * kTiles, products.get() + cell * product_step, kBlock, kTiles);
        }
    }
};

bool Winograd::pays(int k, int n) {
    return igemm::isa() == igemm::Isa::kAvx512Bf16 && std::min(k, n) >= kLeastChannels;
}

Winograd::Winograd(const std::vector<Part>& parts, const float* bias, int n, int k, int padding, int step,
                   const igemm::Layout& layout)
    : k_(k), padding_(padding), step_(step) {
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

void Winograd::run_tiles(const Call& call, std::ptrdiff_t first, std::ptrdiff_t count, Scratch& s) const {
    for_each_stretch(tiles_of(call.out, step_), first, count, [&](auto at, auto n, auto ty, auto tx, auto length) {
        TileRun run{{}, 2 * tx - padding_, call.x.w, call.x.stride_w};
        for (int i = 0; i < 4; ++i) {
            const std::ptrdiff_t y = 2 * ty - padding_ + i;
            run.rows[i] = y >= 0 && y < call.x.h ? call.x.pixel(n, y, 0) : nullptr;
        }
        transform_inputs(run, length, k_, s.cells.get() + at * s.row_step, s.cell_step, s.row_step);
    });
    for (const Products& part : parts_) run_part(part, call, first, count, s);
}

void Winograd::run_part(const Products& part, const Call& call, std::ptrdiff_t first, std::ptrdiff_t count,
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
    const igemm::Epilogue<bf16> epilogue{s.out.data(), call.residual ? s.residual.data() : nullptr, call.activation,
                                         nullptr, call.scale};
    for (int block = 0; block < part.gemms[0].blocks(); ++block) {
        for (std::size_t i = 0; i < part.cells.size(); ++i) {
            const std::ptrdiff_t rows = part.cells[i] * kTiles;
            part.gemms[i].sums(block, s.rows.data() + rows, kTiles, static_cast<int>(count),
                               s.product_rows.data() + rows);
        }
        kTransformProducts[part.above][part.left](s.products.get(), s.product_step, count, s.place.data(),
                                                  s.sums.get());
        part.gemms[0].finish(block, s.sums.get(), pixels, epilogue, call.out.stride_h);
    }
}

void Winograd::run(const Call& call) const {
    const Grid grid = tiles_of(call.out, step_);
    const std::ptrdiff_t tiles = call.out.n * grid.h * grid.w;
    if (tiles == 0) return;
    const std::ptrdiff_t threads = max_threads();
    const std::ptrdiff_t shared = threads == 1 ? kTiles : std::max<std::ptrdiff_t>(12, tiles / (4 * threads) / 12 * 12);
    const std::ptrdiff_t size = std::min(kTiles, shared);
    in_parallel((tiles + size - 1) / size, [&](Tasks& tasks) {
        Scratch scratch(k_);
        for (std::ptrdiff_t task; tasks.take(task);) {
            run_tiles(call, task * size, std::min(size, tiles - task * size), scratch);
        }
    });
}

}  // namespace sparsecodec
