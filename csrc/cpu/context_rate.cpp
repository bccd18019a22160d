#include "cpu/context_rate.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

#include "check.h"
#include "cpu/igemm.h"

namespace sparsecodec {
namespace {

void check(const std::vector<ContextLayer>& layers) {
    for (std::size_t i = 0; i < layers.size(); ++i) {
        const int given = i == 0 ? 2 : layers[i - 1].n;
        SC_CHECK(layers[i].k == given, "layer ", i, " of the offsets takes ", layers[i].k, " channels (needs ", given, ")");
    }
    SC_CHECK(layers.back().n == 1, "the offsets have ", layers.back().n, " channels (needs 1)");
}

int widest(const std::vector<ContextLayer>& layers) {
    int n = 2;
    for (const ContextLayer& layer : layers) n = std::max(n, layer.n);
    return n;
}

struct Pinned {
    std::vector<igemm::Gemm<float>> gemms;
    std::vector<float> slopes;
    int width;

    void operator()(const float* pairs, std::ptrdiff_t count, float* to) const {
        std::vector<float> values[2] = {std::vector<float>(count * width), std::vector<float>(count * width)};
        std::vector<const float*> from(count);
        std::vector<float*> out(count);
        const int m = static_cast<int>(count);
        igemm::fill_rows(from.data(), pairs, 2, m);
        for (std::size_t i = 0; i < gemms.size(); ++i) {
            const bool last = i + 1 == gemms.size();
            const std::ptrdiff_t step = last ? 1 : width;
            float* const first = last ? to : values[i % 2].data();
            igemm::fill_rows(out.data(), first, step, m);
            igemm::Epilogue<float> epilogue{out.data()};
            epilogue.activation.slope = slopes[i];
            gemms[i].run(from.data(), count, m, epilogue);
            igemm::fill_rows<const float>(from.data(), first, step, m);
        }
    }
};

struct Blas {
    std::vector<ContextLayer> layers;
    BlasGemm gemm;
    int width;

    void operator()(const float* pairs, std::ptrdiff_t count, float* to) const {
        const AlignedFloats values[2] = {aligned_floats(count * width), aligned_floats(count * width)};
        std::copy_n(pairs, 2 * count, values[1].get());
        const float* from = values[1].get();
        for (std::size_t i = 0; i < layers.size(); ++i) {
            const ContextLayer& layer = layers[i];
            float* const result = values[i % 2].get();
            for (std::ptrdiff_t row = 0; row < count; ++row) {
                for (int c = 0; c < layer.n; ++c) result[row * layer.n + c] = layer.bias ? layer.bias[c] : 0.0f;
            }
            const std::int64_t n = layer.n, k = layer.k, m = count;
            const float one = 1.0f;
            if (n == 1) {  // torch takes a column as it stands, and other results transposed
                gemm("t", "n", &m, &n, &k, &one, from, &k, layer.weight, &k, &one, result, &m);
            } else {
                gemm("t", "n", &n, &m, &k, &one, layer.weight, &k, from, &k, &one, result, &n);
            }
            for (std::ptrdiff_t j = 0; layer.slope != 1.0f && j < count * n; ++j) {
                const float negative = layer.slope == 0.0f ? 0.0f : result[j] * layer.slope;
                result[j] = result[j] < 0.0f ? negative : result[j];
            }
            from = result;
        }
        std::copy_n(from, count, to);
    }
};

}  // namespace

AlignedFloats aligned_floats(std::size_t count) {
    const std::size_t bytes = (count * sizeof(float) + 64) / 64 * 64;
    AlignedFloats floats(static_cast<float*>(std::aligned_alloc(64, bytes)));
    if (!floats) throw std::bad_alloc();
    std::memset(floats.get(), 0, bytes);
    return floats;
}

ContextOffsets pinned_offsets(const std::vector<ContextLayer>& layers, float bound) {
    if (layers.empty()) return {};
    check(layers);
    // Shared, because a function must be copyable and a Gemm is not.
    const auto network = std::make_shared<Pinned>();
    network->width = widest(layers);
    for (const ContextLayer& layer : layers) {
        network->gemms.emplace_back(igemm::Weights::oihw(layer.weight, layer.n, layer.k), layer.bias);
        network->slopes.push_back(layer.slope);
    }
    return {[network](const float* pairs, std::ptrdiff_t count, float* to) { (*network)(pairs, count, to); }, bound};
}

ContextOffsets blas_offsets(const std::vector<ContextLayer>& layers, float bound, BlasGemm gemm) {
    if (layers.empty()) return {};
    check(layers);
    SC_CHECK(gemm != nullptr, "gemm: no address");
    return {Blas{layers, gemm, widest(layers)}, bound};
}

}  // namespace sparsecodec
