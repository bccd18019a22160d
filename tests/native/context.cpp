// Streams of autoregressive codecs, of any bytes, decoded position by position: refused, or what was decoded makes a
// stream that is not longer and decodes to the same; every instruction set agrees.
#include <cstdlib>
#include <optional>

#include "cpu/context_model.h"
#include "cpu/context_rows.h"
#include "fuzz.h"
#include "guarded.h"
#include "rans_tables.h"

const char* const fuzz::kName = "context";
const std::size_t fuzz::kMaxInput = 4096;

namespace {

using namespace sparsecodec;
using fuzz::Bytes;
using fuzz::Guarded;

constexpr int kLatent = 5, kContext = 6, kPrior = 6, kHidden = 20, kOffsets = 3;
constexpr int kSizes[][2] = {{1, 1}, {1, 6}, {5, 1}, {3, 5}, {4, 4}};

// BLAS's sgemv of a transposed matrix, the only call of it that there is: y = beta y + alpha a' x.
void gemv(const char*, const std::int64_t* m, const std::int64_t* n, const float* alpha, const float* a,
          const std::int64_t* lda, const float* x, const std::int64_t* incx, const float* beta, float* y,
          const std::int64_t* incy) {
    for (std::int64_t j = 0; j < *n; ++j) {
        float sum = 0.0f;
        for (std::int64_t i = 0; i < *m; ++i) sum += a[j * *lda + i] * x[i * *incx];
        y[j * *incy] = *beta * y[j * *incy] + *alpha * sum;
    }
}

// The same of sgemm: C = beta C + alpha A' B.
void gemm(const char*, const char*, const std::int64_t* m, const std::int64_t* n, const std::int64_t* k,
          const float* alpha, const float* a, const std::int64_t* lda, const float* b, const std::int64_t* ldb,
          const float* beta, float* c, const std::int64_t* ldc) {
    for (std::int64_t i = 0; i < *m; ++i) {
        for (std::int64_t j = 0; j < *n; ++j) {
            float sum = 0.0f;
            for (std::int64_t p = 0; p < *k; ++p) sum += a[i * *lda + p] * b[j * *ldb + p];
            c[j * *ldc + i] = *beta * c[j * *ldc + i] + *alpha * sum;
        }
    }
}

struct Networks {
    std::vector<float> context, context_bias, first, second, bias, offset_first, offset_second;
    std::shared_ptr<const rans::Tables> tables;
    ScaleTable table;

    static std::vector<float> values(std::size_t count, std::uint64_t seed, float reach) {
        fuzz::Random random(seed);
        std::vector<float> result(count);
        for (float& value : result) value = reach * (static_cast<float>(random.below(2001)) / 1000.0f - 1.0f);
        return result;
    }
    static std::shared_ptr<const rans::Tables> rows() {
        const fuzz::Distributions all = fuzz::distributions();
        return std::make_shared<const rans::Tables>(all.tables());
    }
    static ScaleTable thresholds(std::size_t rows) {
        std::vector<float> values;
        for (std::size_t i = 1; i < rows; ++i) values.push_back(static_cast<float>(i) / 4.0f);
        return ScaleTable(values);
    }
    Networks()
        : context(values(std::size_t{kContext} * kLatent * 25, 1, 0.1f)),
          context_bias(values(kContext, 2, 1.0f)),
          first(values(std::size_t{kHidden} * (kPrior + kContext), 3, 0.5f)),
          second(values(std::size_t{2} * kLatent * kHidden, 4, 0.7f)),
          bias(values(2 * kLatent, 5, 1.0f)),
          offset_first(values(std::size_t{kOffsets} * 2, 6, 0.01f)),
          offset_second(values(kOffsets, 7, 0.1f)),
          tables(rows()),
          table(thresholds(tables->rows())) {}

    ConvKernel kernel() const { return {context.data(), kContext, kLatent, 5, 5}; }
    std::vector<ContextModel::Layer> layers() const {
        return {{first.data(), nullptr, kHidden, kPrior + kContext, 0.01f},
                {second.data(), bias.data(), 2 * kLatent, kHidden, 1.0f}};
    }
    std::vector<ContextLayer> offsets() const {  // small enough that what was moved is rounded to what it was
        return {{offset_first.data(), nullptr, kOffsets, 2, 0.0f}, {offset_second.data(), nullptr, 1, kOffsets, 1.0f}};
    }
};
const Networks kNetworks;

Guarded<float> prior(int h, int w) {
    Guarded<float> image(1, kPrior, h, w, 0, true);
    fuzz::Random random(7);
    image.each([&](float& to) { to = static_cast<float>(random.below(400)) / 100.0f - 2.0f; });
    return image;
}

template <class Model>
Bytes encoded(const Model& model, const ContextRate& rate, const Image<const float>& y, int h, int w) {
    Guarded<float> given = prior(h, w), y_hat(1, kLatent, h + 2, w + 4, 0, true);
    const rans::Writer writer = model.encode(y, given.view(), y_hat.image(), rate);
    Bytes bytes(writer.size());
    writer.flush_to(bytes.data());
    return bytes;
}

template <class Model>
Bytes decoded(const Model& model, const ContextRate& rate, const Bytes& payload, int h, int w) {
    Guarded<float> given = prior(h, w), y_hat(1, kLatent, h + 2, w + 4, 0, true);
    model.decode({payload.data(), payload.size()}, given.view(), y_hat.image(), rate);
    Bytes bits = y_hat.bits();
    bool small = true;
    y_hat.each([&](float& value) { small = small && value < 1e4f && value > -1e4f; });
    if (small) {  // else a float has no room for symbol and mean
        Image<const float> y = y_hat.view();
        y.data = y_hat.image().pixel(0, 2, 2);
        y.h = h;
        y.w = w;
        const Bytes again = encoded(model, rate, y, h, w);
        fuzz::require(again.size() <= payload.size(), "the symbols need no more bytes than they came from");
        model.decode({again.data(), again.size()}, given.view(), y_hat.image(), rate);
        fuzz::require(y_hat.bits() == bits, "what was decoded can be coded");
    }
    return bits;
}

// Bits: row by row instead of by waves of positions; at a rate.
constexpr std::uint8_t kRows = 1, kRated = 2, kWays = 4;

template <class F>
auto with_model(std::uint8_t way, F f) {
    const ConvKernel kernel = kNetworks.kernel();
    const float* const bias = kNetworks.context_bias.data();
    ContextRate rate;
    if (way & kRated) rate = {0.75f, true, std::vector<float>(kContext, 0.25f)};
    if (way & kRows) {
        const ContextOffsets offsets = blas_offsets(kNetworks.offsets(), 0.11f, gemm);
        const ContextRows model(kernel, bias, kNetworks.layers(), false, kNetworks.table, kNetworks.tables, 4, gemv, true,
                                offsets);
        return f(model, rate);
    }
    const ContextModel model(kernel, bias, kNetworks.layers(), false, kNetworks.table, kNetworks.tables,
                             kNetworks.offsets(), 0.11f);
    return f(model, rate);
}

// Of the decoded, or empty where the payload is refused.
std::optional<Bytes> result(const char* isa, std::uint8_t way, const Bytes& payload, int h, int w) {
    ::setenv("SPARSECODEC_CPU_ISA", isa, 1);
    try {
        return with_model(way, [&](const auto& model, const auto& rate) { return decoded(model, rate, payload, h, w); });
    } catch (const BitstreamError&) {
        return {};
    }
}

}  // namespace

std::vector<Bytes> fuzz::corpus() {
    std::vector<Bytes> inputs;
    for (std::uint8_t way = 0; way < kWays; ++way) {
        for (std::uint8_t at = 0; at < std::size(kSizes); ++at) {
            const int h = kSizes[at][0], w = kSizes[at][1];
            Guarded<float> y(1, kLatent, h, w, 0, true);
            Random random(at);
            y.each([&](float& to) { to = static_cast<float>(random.below(2000)) / 100.0f - 10.0f; });
            const Bytes payload = with_model(way, [&](const auto& model, const auto& rate) {
                return encoded(model, rate, y.view(), h, w);
            });
            inputs.push_back({way, at});
            inputs.back().insert(inputs.back().end(), payload.begin(), payload.end());
        }
    }
    return inputs;
}

bool fuzz::run(const Bytes& bytes) {
    Source source(bytes);
    const std::uint8_t way = source.take<std::uint8_t>() % kWays;
    const auto& size = kSizes[source.take<std::uint8_t>() % std::size(kSizes)];
    const Bytes payload = source.rest();
    const auto first = result("avx2", way, payload, size[0], size[1]);
    if (!(way & kRows)) {  // row by row it needs AVX2 and is not pinned
        for (const char* isa : {"scalar", "avx512"}) {
            require(result(isa, way, payload, size[0], size[1]) == first, "every instruction set decodes the same");
        }
    }
    return first.has_value();
}
