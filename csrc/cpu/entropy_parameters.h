// Between the entropy networks and the entropy coder: entropy_parameters, quantize_latent and restore_latent. What they
// compute: sparsecodec/ops/ under these names. Networks keep channels innermost, streams run over [N, C, H, W], so each
// function also transposes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/spatial_prior.h"

namespace sparsecodec {

// A borrowed batch [n, groups, c, h, w] in host memory, c innermost with stride 1.
template <class T>
struct GroupedImage {
    T* data = nullptr;
    std::ptrdiff_t n = 0, groups = 0, c = 0, h = 0, w = 0;
    std::ptrdiff_t stride_n = 0, stride_g = 0, stride_h = 0, stride_w = 0;  // elements

    T* pixel(std::ptrdiff_t in, std::ptrdiff_t g, std::ptrdiff_t iy, std::ptrdiff_t ix) const {
        return data + in * stride_n + g * stride_g + iy * stride_h + ix * stride_w;
    }
};

// scale_index() through a table of float bit patterns.
class ScaleTable {
  public:
    // thresholds: at most 32766, ascending, not NaN. Throws std::invalid_argument otherwise.
    explicit ScaleTable(std::vector<float> thresholds);

    // scales: [n] -> indexes[i * step].
    void look_up(const float* scales, std::ptrdiff_t n, std::int16_t* indexes, std::ptrdiff_t step) const;

  private:
    std::vector<float> thresholds_;     // with one +inf behind
    std::vector<std::int16_t> first_;   // bucket -> thresholds below it; a bucket holds at most one. Empty: search
    std::int32_t origin_ = 0, last_ = 0;  // bits of the first threshold; buckets - 1
    int shift_ = 0;                     // bucket = (bits - origin) >> shift
};

// scales: [n, part.groups, c, h, w] -> indexes: [n, c, h, w] contiguous.
void entropy_parameters(const ScaleTable& table, const Part& part, const GroupedImage<const float>& scales,
                        std::int16_t* indexes);

// symbols: [n, c, h, w] contiguous = round(y / step - means) at the active group. means, step: null data or as y.
void quantize_latent(const Part& part, float limit, const GroupedImage<const float>& y,
                     const GroupedImage<const float>& means, const GroupedImage<const float>& step,
                     std::int32_t* symbols);

// out = (symbols + means at the active group, base elsewhere) * step * gain. means, base, step: null data or as out;
// base null stands for zeros; gain: [groups * c] or null. out may be base.
void restore_latent(const Part& part, const std::int32_t* symbols, const GroupedImage<const float>& means,
                    const GroupedImage<const float>& base, const GroupedImage<const float>& step, const float* gain,
                    const GroupedImage<float>& out);

}  // namespace sparsecodec
