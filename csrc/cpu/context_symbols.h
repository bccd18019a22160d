// What both context models do at a position once its entropy parameters are known. Internal to context_*.cpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "check.h"
#include "common/spatial_prior.h"
#include "cpu/context_rate.h"
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
};

// Codes positions at a rate. Of one call; parameters: of one position; the others: [latent].
class PositionCoder {
  public:
    PositionCoder(const ContextSymbols& symbols, const ContextRate& rate, const ContextOffsets& offsets)
        : symbols_(symbols), rate_(rate), offsets_(offsets), inverse_(1.0f / rate.gain), scales_(symbols.latent) {
        if (rate.scaled && offsets.network) pairs_.resize(2 * symbols.latent);
        moves_.resize(pairs_.size() / 2);
    }

    void choose(const float* parameters, std::int16_t* rows) {
        const float* scales = parameters + symbols_.scales;
        for (int c = 0; c < symbols_.latent; ++c) scales_[c] = scales[c] * rate_.gain;
        symbols_.table.look_up(scales_.data(), symbols_.latent, rows, 1);
    }
    void quantize(const float* parameters, const float* y, std::int32_t* symbols) const {
        constexpr float kLimit = 1 << 24;  // float holds every integer up to here
        for (int c = 0; c < symbols_.latent; ++c) {
            const float centred = symbols_.has_means ? y[c] - parameters[symbols_.means + c] : y[c];
            symbols[c] = sparsecodec::quantize(rate_.scaled ? centred * rate_.gain : centred, kLimit);
        }
    }
    void restore(const float* parameters, const std::int32_t* symbols, float* y_hat) {
        for (int c = 0; c < symbols_.latent; ++c) y_hat[c] = static_cast<float>(symbols[c]);
        if (!pairs_.empty()) move(parameters + symbols_.scales, y_hat);
        for (int c = 0; c < symbols_.latent; ++c) {
            const float value = rate_.scaled ? y_hat[c] * inverse_ : y_hat[c];
            y_hat[c] = symbols_.has_means ? value + parameters[symbols_.means + c] : value;
        }
    }

  private:
    // Symbols towards zero; zeros stay.
    void move(const float* scales, float* values) {
        for (int c = 0; c < symbols_.latent; ++c) {
            pairs_[2 * c] = std::max(scales[c] * rate_.gain, offsets_.bound);
            pairs_[2 * c + 1] = rate_.gain;
        }
        offsets_.network(pairs_.data(), symbols_.latent, moves_.data());
        for (int c = 0; c < symbols_.latent; ++c) {
            if (values[c] == 0.0f) continue;
            const float moved = std::fabs(values[c]) - moves_[c];
            values[c] = values[c] < 0.0f ? -moved : moved;
        }
    }

    const ContextSymbols& symbols_;
    const ContextRate& rate_;
    const ContextOffsets& offsets_;
    float inverse_;
    std::vector<float> scales_, pairs_, moves_;
};

}  // namespace sparsecodec
