#include "cpu/prior_head.h"

#include <algorithm>

#include "common/parallel.h"

namespace sparsecodec {
namespace {

constexpr std::ptrdiff_t kPixels = 48;  // of a task that share a group: four register tiles

}  // namespace

PriorHead::PriorHead(const float* weight, const float* bias, int k, const Part& part, const Rows& rows,
                     const igemm::Activation& activation, ScaleTable table, std::optional<float> skip)
    : part_(part), rows_(rows), activation_(activation), table_(std::move(table)), skip_(skip) {
    const auto gemm = [&](std::ptrdiff_t first) {
        const auto matrix = igemm::Weights::oihw(weight + first * k, static_cast<int>(rows.c), k);
        return igemm::Gemm<float>(matrix, bias ? bias + first : nullptr);
    };
    for (int group = 0; group < part.groups; ++group) {
        scales_.push_back(gemm(rows.scales + group * rows.group));
        means_.push_back(gemm(rows.means + group * rows.group));
    }
}

void PriorHead::run(const Image<const float>& x, const Image<const float>* residual, std::int16_t* indexes,
                    const Image<float>& means) const {
    const std::ptrdiff_t c = rows_.c, plane = x.h * x.w, tile = kPixels * part_.groups;
    const std::ptrdiff_t across = (plane + tile - 1) / tile;
    if (x.n * across == 0 || c == 0) return;
    in_parallel(x.n * across, [&](Tasks& tasks) {
        // Of the positions of a task that have one group:
        std::vector<std::ptrdiff_t> at(tile);  // which they are
        std::vector<const float*> from(tile), scale_residual(tile), mean_residual(tile);
        std::vector<float*> scale_rows(tile), mean_rows(tile);
        std::vector<float> scales(tile * c);
        std::vector<std::int16_t> found(c * tile);  // of all positions, [c][size]
        igemm::fill_rows(scale_rows.data(), scales.data(), c, static_cast<int>(tile));
        for (std::ptrdiff_t task; tasks.take(task);) {
            const std::ptrdiff_t n = task / across, first = task % across * tile;
            const std::ptrdiff_t size = std::min(tile, plane - first);
            for (int group = 0; group < part_.groups; ++group) {
                const std::ptrdiff_t scale_row = rows_.scales + group * rows_.group;
                const std::ptrdiff_t mean_row = rows_.means + group * rows_.group;
                int m = 0;
                for (std::ptrdiff_t i = 0, row = first / x.w, column = first % x.w; i < size; ++i) {
                    if (part_.at(row, column) == group) {
                        at[m] = i;
                        from[m] = x.pixel(n, row, column);
                        mean_rows[m] = means.pixel(n, row, column);
                        if (residual) {
                            scale_residual[m] = residual->pixel(n, row, column) + scale_row;
                            mean_residual[m] = residual->pixel(n, row, column) + mean_row;
                        }
                        ++m;
                    }
                    if (++column == x.w) column = 0, ++row;
                }
                igemm::Epilogue<float> to_scales{scale_rows.data()}, to_means{mean_rows.data()};
                to_scales.activation = to_means.activation = activation_;
                if (residual) {
                    to_scales.residual = scale_residual.data();
                    to_means.residual = mean_residual.data();
                }
                scales_[group].run(from.data(), tile, m, to_scales);
                means_[group].run(from.data(), tile, m, to_means);
                for (int i = 0; i < m; ++i) {
                    const float* const scale = scale_rows[i];
                    std::int16_t* const to = found.data() + at[i];
                    table_.look_up(scale, c, to, size);
                    for (std::ptrdiff_t j = 0; skip_ && j < c; ++j) {
                        if (scale[j] <= *skip_) to[j * size] = -1;
                    }
                }
            }
            std::int16_t* const out = indexes + n * c * plane + first;
            for (std::ptrdiff_t j = 0; j < c; ++j) std::copy_n(found.data() + j * size, size, out + j * plane);
        }
    });
}

}  // namespace sparsecodec
