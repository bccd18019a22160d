#include "entropy/cdf.h"

#include <cmath>

#include "check.h"

namespace sparsecodec {

void pmf_to_quantized_cdf(const float* pmf, std::size_t count, std::int32_t* cdf) {
    SC_CHECK(count >= 1 && count <= kProbabilityOne, "pmf: ", count, " symbols (needs 1 to ", kProbabilityOne, ")");

    std::uint64_t total = 0;
    for (std::size_t i = 0; i < count; ++i) {
        // Also false for NaN. A mass above 2 is no rounding error; the bound keeps the sums below far from overflow.
        SC_CHECK(pmf[i] >= 0 && pmf[i] <= 2, "pmf[", i, "] = ", pmf[i], " (needs a probability)");
        cdf[i + 1] = static_cast<std::int32_t>(std::round(pmf[i] * static_cast<float>(kProbabilityOne)));
        total += static_cast<std::uint64_t>(cdf[i + 1]);
    }
    SC_CHECK(total > 0, "pmf: every one of the ", count, " probabilities rounds to 0 of ", kProbabilityOne);

    cdf[0] = 0;
    for (std::size_t i = 0; i < count; ++i) {
        const std::uint64_t scaled = static_cast<std::uint64_t>(cdf[i + 1]) * kProbabilityOne / total;
        cdf[i + 1] = cdf[i] + static_cast<std::int32_t>(scaled);
    }
    cdf[count] = static_cast<std::int32_t>(kProbabilityOne);

    for (std::size_t i = 0; i < count; ++i) {
        if (cdf[i] != cdf[i + 1]) continue;
        // There is a frequency above 1: the sum is 65536 over at most 65536 symbols, and one of them has none.
        std::size_t donor = count;
        std::int32_t least = static_cast<std::int32_t>(kProbabilityOne) + 1;
        for (std::size_t j = 0; j < count && least > 2; ++j) {
            const std::int32_t frequency = cdf[j + 1] - cdf[j];
            if (frequency > 1 && frequency < least) {
                least = frequency;
                donor = j;
            }
        }
        if (donor < i) {
            for (std::size_t j = donor + 1; j <= i; ++j) --cdf[j];
        } else {
            for (std::size_t j = i + 1; j <= donor; ++j) ++cdf[j];
        }
    }
}

}  // namespace sparsecodec
