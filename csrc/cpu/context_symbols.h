// What both context models do at a position once its entropy parameters are known. Internal to context_*.cpp.
#pragma once

#include <cstdint>
#include <memory>

#include "check.h"
#include "common/spatial_prior.h"
#include "cpu/entropy_parameters.h"
#include "entropy/rans.h"

namespace sparsecodec {

struct ContextSymbols {
    ScaleTable table;
    std::shared_ptr<const rans::Tables> tables;
    int latent;
    bool has_means;

    ContextSymbols(ScaleTable scale_table, std::shared_ptr<const rans::Tables> coder_tables, int channels,
                   int parameters)
        : table(std::move(scale_table)),
          tables(std::move(coder_tables)),
          latent(channels),
          has_means(parameters == 2 * channels) {
        SC_CHECK(has_means || parameters == channels, parameters, " entropy parameters for ", channels,
                 " latent channels (needs as many, or twice as many)");
    }

    // parameters: scales, then means if there are any. The others: [latent].
    void choose(const float* parameters, std::int16_t* rows) const { table.look_up(parameters, latent, rows, 1); }
    void quantize(const float* parameters, const float* y, std::int32_t* symbols) const {
        constexpr float kLimit = 1 << 24;  // float holds every integer up to here
        for (int c = 0; c < latent; ++c) {
            symbols[c] = sparsecodec::quantize(has_means ? y[c] - parameters[latent + c] : y[c], kLimit);
        }
    }
    void restore(const float* parameters, const std::int32_t* symbols, float* y_hat) const {
        for (int c = 0; c < latent; ++c) {
            const float symbol = static_cast<float>(symbols[c]);
            y_hat[c] = has_means ? symbol + parameters[latent + c] : symbol;
        }
    }
};

}  // namespace sparsecodec
