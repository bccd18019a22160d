// What both context models do at a position once its entropy parameters are known. Internal to context_*.cpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "check.h"
#include "common/spatial_prior.h"
#include "cpu/entropy_parameters.h"
#include "cpu/image.h"
#include "entropy/rans.h"

namespace sparsecodec {

inline void fill_zeros(const Image<float>& image) {
    for (std::ptrdiff_t row = 0; row < image.h; ++row) {
        for (std::ptrdiff_t column = 0; column < image.w; ++column) {
            std::fill_n(image.pixel(0, row, column), image.c, 0.0f);
        }
    }
}

struct ContextSymbols {
    ScaleTable table;
    std::shared_ptr<const rans::Tables> tables;
    int latent;
    bool has_means;
    int means, scales;  // where they begin among the parameters of a position

    // means_first: means before scales, as in DCVC; else behind them, as in CompressAI.
    ContextSymbols(ScaleTable scale_table, std::shared_ptr<const rans::Tables> coder_tables, int channels,
                   int parameters, bool means_first)
        : table(std::move(scale_table)),
          tables(std::move(coder_tables)),
          latent(channels),
          has_means(parameters == 2 * channels),
          means(means_first ? 0 : channels),
          scales(means_first ? channels : 0) {
        SC_CHECK(has_means || parameters == channels, parameters, " entropy parameters for ", channels,
                 " latent channels (needs as many, or twice as many)");
        SC_CHECK(has_means || !means_first, "means_first without means");
    }

    // parameters: of one position. The others: [latent].
    void choose(const float* parameters, std::int16_t* rows) const {
        table.look_up(parameters + scales, latent, rows, 1);
    }
    void quantize(const float* parameters, const float* y, std::int32_t* symbols) const {
        constexpr float kLimit = 1 << 24;  // float holds every integer up to here
        for (int c = 0; c < latent; ++c) {
            symbols[c] = sparsecodec::quantize(has_means ? y[c] - parameters[means + c] : y[c], kLimit);
        }
    }
    void restore(const float* parameters, const std::int32_t* symbols, float* y_hat) const {
        for (int c = 0; c < latent; ++c) {
            const float symbol = static_cast<float>(symbols[c]);
            y_hat[c] = has_means ? symbol + parameters[means + c] : symbol;
        }
    }
};

}  // namespace sparsecodec
