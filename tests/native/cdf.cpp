// Probabilities of any bits: either they are refused, or the row is a distribution that the coder takes.
#include "entropy/cdf.h"

#include <limits>

#include "fuzz.h"

const char* const fuzz::kName = "cdf";
const std::size_t fuzz::kMaxInput = 2048;

namespace {

fuzz::Bytes input(const std::vector<float>& pmf) {
    fuzz::Bytes bytes;
    for (const float p : pmf) fuzz::append(bytes, p);
    return bytes;
}

}  // namespace

std::vector<fuzz::Bytes> fuzz::corpus() {
    std::vector<float> bell, many(3000, 1e-9f), equal(65536, 1.0f / 65536), over(65537, 1.0f / 65536);
    for (int i = -20; i <= 20; ++i) bell.push_back(0.08f / (1.0f + 0.2f * static_cast<float>(i * i)));
    many[1500] = 1;
    return {input({0.5f, 0.25f, 0.25f}), input({1}), input({1, 0, 0, 0, 0}), input({0, 0, 0, 1, 0}),
            input({std::numeric_limits<float>::quiet_NaN(), 1}), input({-0.0f, 2, 2, 2}), input({1e-30f, 1e-38f}),
            input(bell), input(many), input(equal), input(over), {}};
}

bool fuzz::run(const Bytes& bytes) {
    std::vector<float> pmf(bytes.size() / 4);
    if (!pmf.empty()) std::memcpy(pmf.data(), bytes.data(), pmf.size() * 4);
    std::vector<std::int32_t> cdf(pmf.size() + 1, -1);
    sparsecodec::pmf_to_quantized_cdf(pmf.data(), pmf.size(), cdf.data());
    require(cdf.front() == 0 && cdf.back() == 65536, "a row goes from 0 to 65536");
    for (std::size_t i = 0; i < pmf.size(); ++i) require(cdf[i] < cdf[i + 1], "every symbol has an interval");
    const std::int32_t length = static_cast<std::int32_t>(cdf.size()), offset = -7;
    sparsecodec::rans::Tables(cdf.data(), 1, cdf.size(), &length, &offset);
    return true;
}
