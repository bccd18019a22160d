// prior_head: the last 1x1 of a spatial prior with the entropy parameters of one pass. What it computes:
// sparsecodec/ops/prior_head.py. Of the product only the rows of the group that is coded at a position are computed, in
// the pinned arithmetic of igemm.h, so the bits are those of the whole product.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "common/spatial_prior.h"
#include "cpu/entropy_parameters.h"
#include "cpu/igemm.h"
#include "cpu/image.h"

namespace sparsecodec {

class PriorHead {
  public:
    // Where the rows of a group lie: its c scales from scales + g * group, its c means from means + g * group.
    struct Rows {
        std::ptrdiff_t c, scales, means, group;
    };

    // weight: [2 * part.groups * rows.c, k], bias: as many or null; host, borrowed during construction only.
    // skip: scales up to here get the index -1.
    PriorHead(const float* weight, const float* bias, int k, const Part& part, const Rows& rows,
              const igemm::Activation& activation, ScaleTable table, std::optional<float> skip);

    // x: [n, k, h, w]; residual: null or [n, 2 * groups * c, h, w]; indexes: [n, c, h, w] contiguous;
    // means: [n, c, h, w].
    void run(const Image<const float>& x, const Image<const float>* residual, std::int16_t* indexes,
             const Image<float>& means) const;

    const Part& part() const { return part_; }
    const Rows& rows() const { return rows_; }
    int k() const { return scales_[0].k(); }

  private:
    Part part_;
    Rows rows_;
    igemm::Activation activation_;
    ScaleTable table_;
    std::optional<float> skip_;
    std::vector<igemm::Gemm<float>> scales_, means_;  // [part_.groups]
};

}  // namespace sparsecodec
