#include "cpu/context_model.h"

#include <algorithm>
#include <exception>

#include "check.h"
#include "common/parallel.h"

namespace sparsecodec {
namespace {

constexpr std::ptrdiff_t kPixels = 48;  // of the dense product: four register tiles
constexpr int kMaxThreads = 8;          // they meet after every product of a wave
constexpr std::ptrdiff_t kShared = 32;  // positions of the longest wave from which on threads share it. They meet
                                        // hundreds of times; waves of 16 took 10 times as long on two busy cores (EPYC
                                        // Zen 4, load 12, 2026-11-21)

igemm::Weights first_layer(const std::vector<ContextModel::Layer>& layers, int from, int channels) {
    SC_CHECK(!layers.empty(), "no 1x1 convolutions (needs at least one)");
    const ContextModel::Layer& layer = layers[0];
    SC_CHECK(channels >= 0 && from >= 0, "the first 1x1 takes ", layer.k, " channels (needs the context's and more)");
    return {layer.weight + from, layer.n, channels, layer.k, 1, {0}};
}

igemm::Weights masked(const ConvKernel& context) {
    SC_CHECK(context.kh == context.kw && context.kh % 2 == 1, "context of ", context.kh, " x ", context.kw,
             " (needs an odd square)");
    igemm::Weights weights = igemm::Weights::oihw(context.data, context.n, context.k, context.kh, context.kw);
    weights.taps.resize(weights.taps.size() / 2);
    return weights;
}

// As in igemm.h. Apart, because the first 1x1 adds its two parts before the activation.
void activate(float* values, int n, float slope) {
    for (int i = 0; i < n; ++i) {
        const float negative = slope == 0.0f ? 0.0f : values[i] * slope;
        values[i] = values[i] < 0.0f ? negative : values[i];
    }
}

}  // namespace

ContextModel::ContextModel(const ConvKernel& context, const float* bias, const std::vector<Layer>& layers,
                           bool means_first, ScaleTable table, std::shared_ptr<const rans::Tables> tables,
                           const std::vector<Layer>& offsets, float bound)
    : reach_(context.kh / 2),
      symbols_(std::move(table), std::move(tables), context.k, layers.empty() ? 0 : layers.back().n,
               means_first),
      offsets_(pinned_offsets(offsets, bound)),
      from_prior_(first_layer(layers, 0, layers.empty() ? 0 : layers[0].k - context.n), layers[0].bias) {
    products_.push_back(cut(masked(context), bias, 1.0f));
    products_.push_back(cut(first_layer(layers, from_prior_.k(), context.n), nullptr, layers[0].slope));
    for (std::size_t i = 1; i < layers.size(); ++i) {
        const Layer& layer = layers[i];
        SC_CHECK(layer.k == layers[i - 1].n, "1x1 number ", i, " takes ", layer.k, " channels, the one before gives ",
                 layers[i - 1].n);
        products_.push_back(cut({layer.weight, layer.n, layer.k, layer.k, 1, {0}}, layer.bias, layer.slope));
    }
}

ContextModel::Product ContextModel::cut(igemm::Weights weights, const float* bias, float slope) {
    Product product{{}, weights.n, slope};
    for (int left = weights.n; left > 0; left -= igemm::kBlock) {
        weights.n = std::min(left, igemm::kBlock);
        product.blocks.emplace_back(weights, bias);
        weights.data += weights.stride_n * weights.n;
        if (bias) bias += weights.n;
    }
    return product;
}

// The hyper-prior's part of the first 1x1: [h * w, n].
std::vector<float> ContextModel::base_of(const Image<const float>& prior) const {
    const std::ptrdiff_t plane = prior.h * prior.w, n = from_prior_.n(), tiles = (plane + kPixels - 1) / kPixels;
    std::vector<float> base(plane * n);
#pragma omp parallel for num_threads(std::min(max_threads(), tiles)) if (tiles > 1)
    for (std::ptrdiff_t tile = 0; tile < tiles; ++tile) {
        const float* from[kPixels];
        float* to[kPixels];
        const std::ptrdiff_t first = tile * kPixels;
        const int pixels = static_cast<int>(std::min(kPixels, plane - first));
        for (int i = 0; i < pixels; ++i) from[i] = prior.pixel(0, (first + i) / prior.w, (first + i) % prior.w);
        igemm::fill_rows(to, base.data() + first * n, n, pixels);
        from_prior_.run(from, kPixels, pixels, igemm::Epilogue<float>{to});
    }
    return base;
}

// Calls code(wave) for each wave in order; it must write y_hat at the wave's positions. y_hat: as decode() has it.
template <class Code>
void ContextModel::walk(const Image<const float>& prior, const Image<float>& y_hat, const ContextRate& rate,
                        Code code) const {
    const std::ptrdiff_t h = prior.h, w = prior.w, advance = reach_ + 1;
    if (h == 0 || w == 0) return;
    const std::ptrdiff_t waves = w + advance * (h - 1), most = std::min(h, (w + advance - 1) / advance);
    const std::vector<float> base = base_of(prior);

    // Pointers to rows, [block][most], of each product's results; they stay, the inputs of the first and the residuals
    // of the second product move with the wave.
    std::vector<std::vector<float>> values;
    std::vector<std::vector<float*>> results;
    for (const Product& product : products_) {
        values.emplace_back(most * product.n);
        results.emplace_back(product.blocks.size() * most);
        for (std::size_t b = 0; b < product.blocks.size(); ++b) {
            float* const first = values.back().data() + b * igemm::kBlock;
            igemm::fill_rows(results.back().data() + b * most, first, product.n, static_cast<int>(most));
        }
    }
    const int taps = products_[0].blocks[0].taps();
    std::vector<const float*> seen(taps * most), residuals(products_[1].blocks.size() * most), shifts;
    for (std::size_t at = 0; at < rate.shift.size(); at += igemm::kBlock) shifts.insert(shifts.end(), most, &rate.shift[at]);
    Wave wave;
    wave.rows.resize(most);
    wave.columns.resize(most);
    wave.parameters = values.back().data();
    const auto move_to = [&](std::ptrdiff_t number) {
        wave.positions = 0;
        const std::ptrdiff_t first = number < w ? 0 : (number - w) / advance + 1;
        for (std::ptrdiff_t row = first; row < h && row * advance <= number; ++row) {
            const std::ptrdiff_t column = number - row * advance;
            const int i = wave.positions++;
            wave.rows[i] = row;
            wave.columns[i] = column;
            for (int tap = 0; tap < taps; ++tap) {
                seen[tap * most + i] = y_hat.pixel(0, row + tap / (2 * reach_ + 1), column + tap % (2 * reach_ + 1));
            }
            const float* const from = base.data() + (row * w + column) * products_[1].n;
            for (std::size_t b = 0; b < products_[1].blocks.size(); ++b) {
                residuals[b * most + i] = from + b * igemm::kBlock;
            }
        }
    };
    const auto run_block = [&](std::size_t p, std::ptrdiff_t b) {
        const Product& product = products_[p];
        const igemm::Gemm<float>& gemm = product.blocks[b];
        float* const* const to = results[p].data() + b * most;
        igemm::Epilogue<float> epilogue{to};
        if (p == 0 && !shifts.empty()) epilogue.residual = shifts.data() + b * most;
        if (p == 1) {
            epilogue.residual = residuals.data() + b * most;
        } else {
            epilogue.activation.slope = product.slope;
        }
        const float* const* const from = p == 0 ? seen.data() : results[p - 1].data();
        gemm.run(from, most, wave.positions, epilogue);
        if (p == 1 && product.slope != 1.0f) {
            for (int i = 0; i < wave.positions; ++i) activate(to[i], gemm.n(), product.slope);
        }
    };

    std::exception_ptr failure;  // an exception must not leave the parallel region
    move_to(0);
#pragma omp parallel num_threads(std::min<std::ptrdiff_t>(max_threads(), kMaxThreads)) if (most >= kShared)
    for (std::ptrdiff_t number = 0; number < waves && !failure; ++number) {
        for (std::size_t p = 0; p < products_.size(); ++p) {
            const std::ptrdiff_t blocks = products_[p].blocks.size();
#pragma omp for schedule(static)
            for (std::ptrdiff_t b = 0; b < blocks; ++b) run_block(p, b);
        }
#pragma omp single
        try {
            code(wave);
            move_to(number + 1);
        } catch (...) {
            failure = std::current_exception();
        }
    }
    if (failure) std::rethrow_exception(failure);
}

rans::Writer ContextModel::encode(const Image<const float>& y, const Image<const float>& prior,
                                  const Image<float>& y_hat, const ContextRate& rate) const {
    const std::ptrdiff_t latent = symbols_.latent, total = y.h * y.w * latent;
    fill_zeros(y_hat);
    std::vector<std::int32_t> symbols(total);
    std::vector<std::int16_t> rows(total);
    std::ptrdiff_t coded = 0;
    PositionCoder position(symbols_, rate, offsets_);
    walk(prior, y_hat, rate, [&](const Wave& wave) {
        for (int i = 0; i < wave.positions; ++i, coded += latent) {
            const float* const parameters = wave.parameters + i * products_.back().n;
            position.choose(parameters, rows.data() + coded);
            position.quantize(parameters, y.pixel(0, wave.rows[i], wave.columns[i]), symbols.data() + coded);
            position.restore(parameters, symbols.data() + coded,
                             y_hat.pixel(0, wave.rows[i] + reach_, wave.columns[i] + reach_));
        }
    });
    std::vector<rans::Writer> writers(1);
    rans::encode(writers, symbols.data(), rows.data(), symbols.size(), *symbols_.tables);
    return std::move(writers[0]);
}

void ContextModel::decode(rans::Reader reader, const Image<const float>& prior, const Image<float>& y_hat,
                          const ContextRate& rate) const {
    fill_zeros(y_hat);
    const std::ptrdiff_t latent = symbols_.latent, most = prior.h * latent;  // symbols of a wave
    std::vector<std::int32_t> symbols(most);
    std::vector<std::int16_t> rows(most);
    std::vector<rans::Reader> readers{reader};
    PositionCoder position(symbols_, rate, offsets_);
    walk(prior, y_hat, rate, [&](const Wave& wave) {
        const std::ptrdiff_t n = products_.back().n;
        for (int i = 0; i < wave.positions; ++i) position.choose(wave.parameters + i * n, rows.data() + i * latent);
        rans::decode(readers, symbols.data(), rows.data(), wave.positions * latent, *symbols_.tables);
        for (int i = 0; i < wave.positions; ++i) {
            position.restore(wave.parameters + i * n, symbols.data() + i * latent,
                             y_hat.pixel(0, wave.rows[i] + reach_, wave.columns[i] + reach_));
        }
    });
    readers[0].finish();
}

}  // namespace sparsecodec
