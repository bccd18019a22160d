#include "cpu/compact_symbols.h"

#include <algorithm>

#include "common/kept.h"

namespace sparsecodec {

std::ptrdiff_t compact_symbols(const std::int16_t* indexes, const std::int32_t* symbols, std::ptrdiff_t n,
                               std::int16_t* packed, std::int32_t* packed_symbols) {
    // Every position is stored and the place moves on only behind a kept one: no branch to predict.
    std::ptrdiff_t count = 0;
    if (symbols == nullptr) {
        for (std::ptrdiff_t i = 0; i < n; ++i) {
            packed[count] = indexes[i];
            count += is_kept(indexes[i]);
        }
    } else {
        for (std::ptrdiff_t i = 0; i < n; ++i) {
            packed[count] = indexes[i];
            packed_symbols[count] = symbols[i];
            count += is_kept(indexes[i]);
        }
        std::fill(packed_symbols + count, packed_symbols + n, 0);
    }
    std::fill(packed + count, packed + n, kSkipped);
    return count;
}

void expand_symbols(const std::int32_t* symbols, std::ptrdiff_t available, const std::int16_t* indexes,
                    std::ptrdiff_t n, std::int32_t* expanded) {
    std::ptrdiff_t next = 0, i = 0;
    for (; i < n && next < available; ++i) {
        const std::int32_t kept = is_kept(indexes[i]);
        expanded[i] = symbols[next] & -kept;  // without a branch, as above
        next += kept;
    }
    std::fill(expanded + i, expanded + n, 0);
}

}  // namespace sparsecodec
