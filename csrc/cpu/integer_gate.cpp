#include "cpu/integer_gate.h"

#include <algorithm>

#include "common/requantize.h"

namespace sparsecodec {

void integer_gate(const Image<const std::int16_t>& x, const std::int16_t* table, int chunks,
                  const Image<std::int16_t>& out) {
    const std::int16_t* const centre = table + (1 << 15);
    const std::ptrdiff_t rows = out.n * out.h;
#pragma omp parallel for if (rows * out.w * x.c > 16384)
    for (std::ptrdiff_t row = 0; row < rows; ++row) {
        const std::ptrdiff_t n = row / out.h, y = row % out.h;
        for (std::ptrdiff_t column = 0; column < out.w; ++column) {
            const std::int16_t* const from = x.pixel(n, y, column);
            std::int16_t* const to = out.pixel(n, y, column);
            if (chunks == 1) {
                for (std::ptrdiff_t c = 0; c < out.c; ++c) to[c] = centre[from[c]];
            } else if (chunks == 2) {
                const std::int16_t* const second = from + out.c;
                for (std::ptrdiff_t c = 0; c < out.c; ++c) {
                    to[c] = narrowed<std::int16_t>(std::int32_t{centre[from[c]]} + centre[second[c]]);
                }
            } else {
                for (std::ptrdiff_t c = 0; c < out.c; ++c) {
                    std::int32_t sum = 0;
                    for (int k = 0; k < chunks; ++k) sum += centre[from[c + k * out.c]];
                    to[c] = narrowed<std::int16_t>(sum);
                }
            }
        }
    }
}

}  // namespace sparsecodec
