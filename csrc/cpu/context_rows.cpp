#include "cpu/context_rows.h"

#include <algorithm>
#include <utility>

#include "check.h"
#include "common/parallel.h"

#if defined(__x86_64__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12 on its own intrinsics headers (its bug 105593)
#include <immintrin.h>
#endif

namespace sparsecodec {
namespace {

constexpr int kBlock = igemm::kBlock;
constexpr std::ptrdiff_t kShared = 16;  // positions of a row from which on threads share what comes from the rows above

bool supported() {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return false;
#endif
}

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
// kBlock channels of the context at one position. above: sums so far of the first block of input channels, those of the
// next one `step` later; seen: [blocks * k] what the taps beside see; weights: [blocks][k][kBlock].
void finish_context(const float* above, std::ptrdiff_t step, const float* seen, const float* weights, const float* bias,
                    int blocks, int k, float* to) {
    __m256 total[4];
    for (int v = 0; v < 4; ++v) total[v] = _mm256_load_ps(bias + v * 8);
    for (int b = 0; b < blocks; ++b, above += step) {
        __m256 sum[4];
        for (int v = 0; v < 4; ++v) sum[v] = _mm256_loadu_ps(above + v * 8);
        for (int i = 0; i < k; ++i, ++seen, weights += kBlock) {
            const __m256 x = _mm256_broadcast_ss(seen);
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) sum[v] = _mm256_fmadd_ps(x, _mm256_load_ps(weights + v * 8), sum[v]);
        }
        for (int v = 0; v < 4; ++v) total[v] = _mm256_add_ps(sum[v], total[v]);
    }
    for (int v = 0; v < 4; ++v) _mm256_store_ps(to + v * 8, total[v]);
}
#pragma GCC pop_options
#else
void finish_context(const float*, std::ptrdiff_t, const float*, const float*, const float*, int, int, float*) {}
#endif

}  // namespace

ContextRows::ContextRows(const ConvKernel& context, const float* bias, const std::vector<ContextModel::Layer>& layers,
                         bool means_first, ScaleTable table, std::shared_ptr<const rans::Tables> tables, int block,
                         Gemv gemv, bool four_sums, ContextOffsets offsets)
    : size_(context.kh),
      reach_(context.kh / 2),
      channels_(context.n),
      padded_((context.n + kBlock - 1) / kBlock * kBlock),
      block_(block),
      symbols_(std::move(table), std::move(tables), context.k, layers.empty() ? 0 : layers.back().n,
               means_first),
      offsets_(std::move(offsets)),
      layers_(layers),
      gemv_(gemv) {
    SC_CHECK(supported(), "this CPU has no AVX2 and FMA");
    SC_CHECK(block_ >= 1 && context.kh == context.kw && size_ % 2 == 1, "block=", block_, ", context of ", context.kh,
             " x ", context.kw, " (needs an odd square)");
    for (std::size_t i = 0; i < layers_.size(); ++i) {
        const int given = i == 0 ? channels_ : layers_[i - 1].n;
        SC_CHECK(i == 0 ? layers_[i].k >= given : layers_[i].k == given, "1x1 number ", i, " takes ", layers_[i].k,
                 " channels, the one before gives ", given);
    }
    for (const ContextModel::Layer& layer : layers_) {
        sums_.emplace_back();
        if (four_sums && FourSums::fits(layer.n, layer.k)) sums_.back().emplace(layer.weight, layer.n, layer.k);
    }
    const int k = context.k, blocks = (k + block_ - 1) / block_, taps = size_ * size_;
    for (int b = 0; b < blocks; ++b) {
        const int first = b * block_;
        igemm::Weights weights = igemm::Weights::oihw(context.data + first * taps, context.n,
                                                      std::min(block_, k - first), size_, size_);
        weights.stride_n = static_cast<std::ptrdiff_t>(k) * taps;
        weights.taps.resize(reach_ * size_);
        above_.emplace_back(weights, nullptr);
    }
    bias_ = aligned_floats(padded_);
    if (bias) std::copy_n(bias, channels_, bias_.get());
    beside_ = aligned_floats(static_cast<std::size_t>(padded_) * blocks * reach_ * block_);
    for (int c = 0; c < channels_; ++c) {
        for (int i = 0; i < k; ++i) {
            for (int tap = 0; tap < reach_; ++tap) {
                const std::ptrdiff_t row = ((c / kBlock * blocks + i / block_) * reach_ + tap) * block_ + i % block_;
                beside_[row * kBlock + c % kBlock] =
                    context.data[(static_cast<std::ptrdiff_t>(c) * k + i) * taps + reach_ * size_ + tap];
            }
        }
    }
}

ContextRows::Scratch ContextRows::scratch(std::ptrdiff_t columns) const {
    Scratch scratch;
    scratch.above.resize(above_.size() * columns * padded_);
    scratch.from.resize(above_.size() * reach_ * size_ * columns);
    scratch.to.resize(above_.size() * columns);
    scratch.values.push_back(aligned_floats(layers_[0].k + kBlock));
    for (const ContextModel::Layer& layer : layers_) scratch.values.push_back(aligned_floats(layer.n));
    scratch.values.push_back(aligned_floats(above_.size() * reach_ * block_ + padded_));
    return scratch;
}

// The rows above all positions of a row, for all of them at once.
void ContextRows::start_row(const Image<const float>& y_hat, std::ptrdiff_t row, std::ptrdiff_t columns,
                            Scratch& scratch) const {
    const std::ptrdiff_t blocks = above_.size(), taps = reach_ * size_;
#pragma omp parallel for num_threads(std::min(max_threads(), blocks)) if (columns >= kShared)
    for (std::ptrdiff_t b = 0; b < blocks; ++b) {
        const float** const from = scratch.from.data() + b * taps * columns;
        float** const to = scratch.to.data() + b * columns;
        for (std::ptrdiff_t tap = 0; tap < taps; ++tap) {
            igemm::fill_rows(from + tap * columns, y_hat.pixel(0, row + tap / size_, tap % size_) + b * block_,
                             y_hat.stride_w, static_cast<int>(columns));
        }
        igemm::fill_rows(to, scratch.above.data() + b * columns * padded_, padded_, static_cast<int>(columns));
        above_[b].run(from, columns, static_cast<int>(columns), igemm::Epilogue<float>{to});
    }
}

// The entropy parameters of a position of the row that was started.
const float* ContextRows::at(const Image<const float>& y_hat, const float* prior, std::ptrdiff_t row,
                             std::ptrdiff_t column, std::ptrdiff_t columns, const ContextRate& rate,
                             Scratch& scratch) const {
    const int blocks = static_cast<int>(above_.size()), k = symbols_.latent, priors = prior_channels();
    float* const seen = scratch.values.back().get();  // [block][tap][block_], zeros past the last channel
    float* const context = seen + blocks * reach_ * block_;
    for (int tap = 0; tap < reach_; ++tap) {
        const float* const from = y_hat.pixel(0, row + reach_, column + tap);
        for (int b = 0; b < blocks; ++b) {
            std::copy_n(from + b * block_, std::min(block_, k - b * block_), seen + (b * reach_ + tap) * block_);
        }
    }
    for (int c = 0; c < padded_; c += kBlock) {
        alignas(64) float sums[kBlock];
        finish_context(scratch.above.data() + column * padded_ + c, columns * padded_, seen,
                       beside_.get() + static_cast<std::ptrdiff_t>(c) * blocks * reach_ * block_, bias_.get() + c, blocks,
                       reach_ * block_, sums);
        std::copy_n(sums, kBlock, context + c);
    }
    for (std::size_t c = 0; c < rate.shift.size(); ++c) context[c] += rate.shift[c];
    std::copy_n(prior, priors, scratch.values[0].get());
    std::copy_n(context, channels_, scratch.values[0].get() + priors);
    for (std::size_t i = 0; i < layers_.size(); ++i) {
        const ContextModel::Layer& layer = layers_[i];
        float* const to = scratch.values[i + 1].get();
        if (layer.bias) {
            std::copy_n(layer.bias, layer.n, to);
        } else {
            std::fill_n(to, layer.n, 0.0f);
        }
        const std::int64_t inputs = layer.k, outputs = layer.n, one = 1;
        const float unit = 1.0f;
        if (sums_[i]) {
            sums_[i]->run(scratch.values[i].get(), to);
        } else {
            gemv_("t", &inputs, &outputs, &unit, layer.weight, &inputs, scratch.values[i].get(), &one, &unit, to, &one);
        }
        if (layer.slope == 1.0f) continue;
        for (int c = 0; c < layer.n; ++c) {
            const float negative = layer.slope == 0.0f ? 0.0f : to[c] * layer.slope;
            to[c] = to[c] < 0.0f ? negative : to[c];
        }
    }
    return scratch.values[layers_.size()].get();
}

void ContextRows::parameters(const Image<const float>& y_hat, const Image<const float>& prior, float* to) const {
    Scratch memory = scratch(1);
    start_row(y_hat, 0, 1, memory);
    std::copy_n(at(y_hat, prior.pixel(0, 0, 0), 0, 0, 1, {}, memory), entropy_parameters(), to);
}

// Calls code(number of the position, parameters, latent) for each position; it must write the latent. y_hat: as
// decode() has it.
template <class Code>
void ContextRows::walk(const Image<const float>& prior, const Image<float>& y_hat, const ContextRate& rate,
                       Code code) const {
    Scratch memory = scratch(prior.w);
    for (std::ptrdiff_t row = 0; row < prior.h; ++row) {
        start_row(y_hat, row, prior.w, memory);
        for (std::ptrdiff_t column = 0; column < prior.w; ++column) {
            const float* const found = at(y_hat, prior.pixel(0, row, column), row, column, prior.w, rate, memory);
            code(row * prior.w + column, found, y_hat.pixel(0, row + reach_, column + reach_));
        }
    }
}

rans::Writer ContextRows::encode(const Image<const float>& y, const Image<const float>& prior,
                                 const Image<float>& y_hat, const ContextRate& rate) const {
    const std::ptrdiff_t latent = symbols_.latent, total = y.h * y.w * latent;
    fill_zeros(y_hat);
    std::vector<std::int32_t> symbols(total);
    std::vector<std::int16_t> rows(total);
    PositionCoder position(symbols_, rate, offsets_);
    walk(prior, y_hat, rate, [&](std::ptrdiff_t number, const float* found, float* to) {
        std::int32_t* const here = symbols.data() + number * latent;
        position.choose(found, rows.data() + number * latent);
        position.quantize(found, y.pixel(0, number / y.w, number % y.w), here);
        position.restore(found, here, to);
    });
    std::vector<rans::Writer> writers(1);
    rans::encode(writers, symbols.data(), rows.data(), symbols.size(), *symbols_.tables);
    return std::move(writers[0]);
}

void ContextRows::decode(rans::Reader reader, const Image<const float>& prior, const Image<float>& y_hat,
                         const ContextRate& rate) const {
    fill_zeros(y_hat);
    std::vector<std::int32_t> symbols(symbols_.latent);
    std::vector<std::int16_t> rows(symbols_.latent);
    std::vector<rans::Reader> readers{reader};
    PositionCoder position(symbols_, rate, offsets_);
    walk(prior, y_hat, rate, [&](std::ptrdiff_t, const float* found, float* to) {
        position.choose(found, rows.data());
        rans::decode(readers, symbols.data(), rows.data(), symbols.size(), *symbols_.tables);
        position.restore(found, symbols.data(), to);
    });
    readers[0].finish();
}

}  // namespace sparsecodec
