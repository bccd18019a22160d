// Tables and indexes that the programs here share: every kind of row the coder tells apart.
#pragma once

#include <cmath>
#include <cstdlib>

#include "entropy/cdf.h"
#include "fuzz.h"

namespace fuzz {

struct Distributions {
    std::vector<std::int32_t> cdf, lengths, offsets;
    std::size_t columns = 0;
    sparsecodec::rans::Order order = sparsecodec::rans::Order::kAscending;

    sparsecodec::rans::Tables tables() const {
        return {cdf.data(), lengths.size(), columns, lengths.data(), offsets.data(), order};
    }
    bool zigzags() const { return order == sparsecodec::rans::Order::kZigzag; }
    std::int64_t place(std::int64_t symbol, std::size_t row) const {
        if (zigzags()) return 2 * std::llabs(symbol) - (symbol > 0);
        return symbol - offsets[row];
    }
    std::int64_t symbol(std::int64_t place, std::size_t row) const {
        if (zigzags()) return place % 2 != 0 ? (place + 1) / 2 : -place / 2;
        return place + offsets[row];
    }
};

// Bells from one symbol to 401, a row of nothing but escapes, one of a single symbol, and a comb of narrow intervals.
inline Distributions distributions() {
    std::vector<std::vector<std::int32_t>> rows{{0, 65536}, {0, 65535, 65536}, {0, 1, 2, 3, 4, 65000, 65536}};
    for (int reach = 1; reach <= 200; reach = 2 * reach + 1) {
        std::vector<float> pmf;
        for (int i = -reach; i <= reach; ++i) {
            const float x = 3.5f * static_cast<float>(i) / static_cast<float>(reach);
            pmf.push_back(std::exp(-x * x / 2) / static_cast<float>(reach));
        }
        pmf.push_back(1e-4f);
        std::vector<std::int32_t> row(pmf.size() + 1);
        sparsecodec::pmf_to_quantized_cdf(pmf.data(), pmf.size(), row.data());
        rows.push_back(row);
    }
    Distributions result;
    for (const auto& row : rows) result.columns = std::max(result.columns, row.size());
    for (auto row : rows) {
        result.lengths.push_back(static_cast<std::int32_t>(row.size()));
        result.offsets.push_back(-static_cast<std::int32_t>(row.size()) / 2 + 1);
        row.resize(result.columns);
        result.cdf.insert(result.cdf.end(), row.begin(), row.end());
    }
    return result;
}

// The same rows in the other order.
inline Distributions zigzag_distributions() {
    Distributions result = distributions();
    result.order = sparsecodec::rans::Order::kZigzag;
    std::fill(result.offsets.begin(), result.offsets.end(), 0);
    return result;
}

// Which row each symbol has, from a seed: all rows in use, those of escapes rarely.
inline std::vector<std::int32_t> row_numbers(std::size_t count, std::size_t rows, std::uint64_t seed) {
    Random random(seed);
    std::vector<std::int32_t> result(count);
    for (std::int32_t& index : result) {
        index = static_cast<std::int32_t>(random.below(8) == 0 ? random.below(rows) : 3 + random.below(rows - 3));
    }
    return result;
}

// Symbols such as the rows expect, one in `rarity` anywhere in 31 bits.
inline std::vector<std::int32_t> symbols_for(const std::vector<std::int32_t>& indexes, const Distributions& of,
                                             std::uint64_t seed, std::size_t rarity) {
    Random random(seed);
    std::vector<std::int32_t> result(indexes.size());
    for (std::size_t i = 0; i < indexes.size(); ++i) {
        const std::size_t row = static_cast<std::size_t>(indexes[i]);
        const std::int32_t* cdf = of.cdf.data() + row * of.columns;
        const std::int32_t* end = cdf + of.lengths[row];
        const auto slot = static_cast<std::int32_t>(random.below(65536));
        result[i] = static_cast<std::int32_t>(of.symbol(std::upper_bound(cdf, end, slot) - cdf - 1, row));
        if (random.below(rarity) == 0) result[i] = static_cast<std::int32_t>(random.next()) >> (1 + random.below(30));
    }
    return result;
}

}  // namespace fuzz
