#include "cpu/entropy_parameters.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "cpu/latent_tiles.h"

namespace sparsecodec {
namespace {

constexpr std::ptrdiff_t kBuckets = 1 << 13;  // 16 KiB: half of a first-level cache

std::int32_t bits_of(float value) {
    std::int32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

}  // namespace

ScaleTable::ScaleTable(std::vector<float> thresholds) : thresholds_(std::move(thresholds)) {
    const std::size_t n = thresholds_.size();
    if (n > 32766) throw std::invalid_argument("thresholds: more than 32766 values");
    for (std::size_t i = 0; i < n; ++i) {
        if (!(thresholds_[i] == thresholds_[i]) || (i > 0 && thresholds_[i] < thresholds_[i - 1])) {
            throw std::invalid_argument("thresholds: not ascending at entry " + std::to_string(i));
        }
    }
    // Bits of positive floats are ordered as the floats.
    if (n > 0 && thresholds_[0] > 0) {
        std::int32_t gap = std::numeric_limits<std::int32_t>::max();
        for (std::size_t i = 1; i < n; ++i) gap = std::min(gap, bits_of(thresholds_[i]) - bits_of(thresholds_[i - 1]));
        while (shift_ < 30 && (std::int64_t{2} << shift_) <= gap) ++shift_;
        origin_ = bits_of(thresholds_[0]);
        last_ = ((bits_of(thresholds_[n - 1]) - origin_) >> shift_) + 1;
        if (gap > 0 && last_ < kBuckets) {
            std::size_t below = 0;
            for (std::int32_t bucket = 0; bucket <= last_; ++bucket) {
                const std::int64_t start = origin_ + (static_cast<std::int64_t>(bucket) << shift_);
                while (below < n && bits_of(thresholds_[below]) < start) ++below;
                first_.push_back(static_cast<std::int16_t>(below));
            }
        }
    }
    thresholds_.push_back(std::numeric_limits<float>::infinity());
}

void ScaleTable::look_up(const float* scales, std::ptrdiff_t n, std::int16_t* indexes, std::ptrdiff_t step) const {
    const float* const thresholds = thresholds_.data();
    if (first_.empty()) {
        const int size = static_cast<int>(thresholds_.size()) - 1;
        for (std::ptrdiff_t i = 0; i < n; ++i) {
            indexes[i * step] = static_cast<std::int16_t>(scale_index(scales[i], thresholds, size));
        }
        return;
    }
    const std::int16_t* const first = first_.data();
    const float lowest = thresholds[0];
    for (std::ptrdiff_t i = 0; i < n; ++i) {
        // A negative or small scale goes to bucket 0 and stays at index 0; NaN has the largest bits, whatever its sign.
        const float scale = scales[i];
        const std::int32_t bits = scale <= lowest ? origin_ : bits_of(scale) & 0x7fffffff;
        const int index = first[std::min((bits - origin_) >> shift_, last_)];
        indexes[i * step] = static_cast<std::int16_t>(index + (thresholds[index] < scale));
    }
}

void entropy_parameters(const ScaleTable& table, const Part& part, const GroupedImage<const float>& scales,
                        std::int16_t* indexes) {
    const std::ptrdiff_t plane = scales.h * scales.w;
    for_each_tile<std::int16_t>(scales, [&](auto n, auto y, auto x, auto pixels, std::int16_t* tile) {
        for (std::ptrdiff_t p = 0; p < pixels; ++p) {
            table.look_up(scales.pixel(n, part.at(y, x + p), y, x + p), scales.c, tile + p, kTile);
        }
        std::int16_t* out = indexes + n * scales.c * plane + y * scales.w + x;
        for (std::ptrdiff_t c = 0; c < scales.c; ++c) std::copy_n(tile + c * kTile, pixels, out + c * plane);
    });
}

void quantize_latent(const Part& part, float limit, const GroupedImage<const float>& y,
                     const GroupedImage<const float>& means, const GroupedImage<const float>& step,
                     std::int32_t* symbols) {
    const std::ptrdiff_t plane = y.h * y.w;
    for_each_tile<std::int32_t>(y, [&](auto n, auto row, auto x, auto pixels, std::int32_t* tile) {
        for (std::ptrdiff_t p = 0; p < pixels; ++p) {
            const int group = part.at(row, x + p);
            const float* const value = y.pixel(n, group, row, x + p);
            const float* const mean = means.data ? means.pixel(n, group, row, x + p) : nullptr;
            const float* const by = step.data ? step.pixel(n, group, row, x + p) : nullptr;
            for (std::ptrdiff_t c = 0; c < y.c; ++c) {
                const float scaled = by ? value[c] / by[c] : value[c];
                tile[c * kTile + p] = quantize(mean ? scaled - mean[c] : scaled, limit);
            }
        }
        std::int32_t* out = symbols + n * y.c * plane + row * y.w + x;
        for (std::ptrdiff_t c = 0; c < y.c; ++c) std::copy_n(tile + c * kTile, pixels, out + c * plane);
    });
}

void restore_latent(const Part& part, const std::int32_t* symbols, const GroupedImage<const float>& means,
                    const GroupedImage<const float>& base, const GroupedImage<const float>& step, const float* gain,
                    const GroupedImage<float>& out) {
    const std::ptrdiff_t plane = out.h * out.w;
    for_each_tile<std::int32_t>(out, [&](auto n, auto row, auto x, auto pixels, std::int32_t* tile) {
        const std::int32_t* from = symbols + n * out.c * plane + row * out.w + x;
        for (std::ptrdiff_t c = 0; c < out.c; ++c) std::copy_n(from + c * plane, pixels, tile + c * kTile);
        for (std::ptrdiff_t p = 0; p < pixels; ++p) {
            const int active = part.at(row, x + p);
            for (int group = 0; group < part.groups; ++group) {
                float* const to = out.pixel(n, group, row, x + p);
                if (group == active) {
                    for (std::ptrdiff_t c = 0; c < out.c; ++c) to[c] = static_cast<float>(tile[c * kTile + p]);
                    if (means.data) {
                        const float* const mean = means.pixel(n, group, row, x + p);
                        for (std::ptrdiff_t c = 0; c < out.c; ++c) to[c] += mean[c];
                    }
                } else if (!base.data) {
                    std::fill_n(to, out.c, 0.0f);
                } else if (const float* const old = base.pixel(n, group, row, x + p); old != to) {
                    std::copy_n(old, out.c, to);
                }
                if (step.data) {
                    const float* const by = step.pixel(n, group, row, x + p);
                    for (std::ptrdiff_t c = 0; c < out.c; ++c) to[c] *= by[c];
                }
                if (gain) {
                    for (std::ptrdiff_t c = 0; c < out.c; ++c) to[c] *= gain[group * out.c + c];
                }
            }
        }
    });
}

}  // namespace sparsecodec
