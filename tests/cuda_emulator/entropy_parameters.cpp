// entropy_parameters of csrc/cuda against csrc/cpu.
#include <limits>

#include "check.h"
#include "cpu/entropy_parameters.cpp"
#include "cuda/entropy_parameters.cu"

using namespace sparsecodec;

namespace {

float odd_or_log_uniform() {
    constexpr float kOdd[] = {-1.0f, 0.0f, std::numeric_limits<float>::infinity(),
                              std::numeric_limits<float>::quiet_NaN(), 1e30f};
    const unsigned die = check::generator()() % 64;
    return die < 5 ? kOdd[die] : std::exp(std::uniform_real_distribution<float>(-6, 6)(check::generator()));
}

// Channels innermost, as networks leave them; `apart` more channels lie between two groups.
void compare(check::Report& report, const NamedPart& named, unsigned n, unsigned c, unsigned h, unsigned w,
             unsigned thresholds, unsigned apart) {
    const unsigned groups = static_cast<unsigned>(named.part.groups), row = groups * (c + apart);
    check::Buffer<float> scales(std::size_t{n} * h * w * row - apart);
    for (std::size_t i = 0; i < scales.size(); ++i) scales[i] = odd_or_log_uniform();
    check::Buffer<float> table(thresholds);
    for (unsigned i = 0; i < thresholds; ++i) table[i] = std::exp(-5.0f + 10.0f * static_cast<float>(i) / 255.0f);
    const std::size_t count = std::size_t{n} * c * h * w;
    check::Buffer<std::int16_t> indexes(count), indexes_cpu(count);

    GroupedImage<const float> image{scales.data(), n, static_cast<std::ptrdiff_t>(groups), c, h, w};
    image.stride_w = row;
    image.stride_h = static_cast<std::ptrdiff_t>(w) * row;
    image.stride_n = h * image.stride_h;
    image.stride_g = c + apart;
    const std::int64_t strides[] = {image.stride_n, image.stride_g, 1, image.stride_h, image.stride_w};
#if defined(SC_PLANT_OVERRUN)
    h += 1;  // for AddressSanitizer to find
#endif
    const int error = sparsecodec_entropy_parameters(scales.data(), n, c, h, w, strides, named.name, table.data(),
                                                     static_cast<int>(thresholds), indexes.data(), nullptr);
    const ScaleTable look_up(std::vector<float>(table.data(), table.data() + thresholds));
    entropy_parameters(look_up, named.part, image, indexes_cpu.data());
    report.expect(error == cudaSuccess && indexes == indexes_cpu,
                  std::string(named.name) + ", " + std::to_string(n) + "x" + std::to_string(c) + "x" + std::to_string(h) +
                      "x" + std::to_string(w) + ", " + std::to_string(thresholds) + " thresholds");
}

}  // namespace

int main(int argc, char**) {
    check::Report report("entropy_parameters");
    if (argc > 1) {  // as many as ThreadSanitizer needs
        compare(report, kParts[1], 1, 33, 5, 7, 63, 0);
        return report.finish();
    }
    for (const NamedPart& named : kParts) compare(report, named, 1, 6, 5, 7, 255, 3);
    for (unsigned c : {1, 31, 32, 33}) compare(report, kParts[1], 1, c, 4, 8, 63, 0);  // 32 positions, 32 channels a block
    for (unsigned w : {31, 33}) compare(report, kParts[2], 2, 35, 1, w, 63, 0);
    for (unsigned thresholds : {0, 1, 2}) compare(report, kParts[0], 1, 4, 3, 3, thresholds, 0);
    compare(report, kParts[0], 0, 4, 3, 3, 63, 0);
    const std::int64_t strides[5] = {};
    report.expect(sparsecodec_entropy_parameters(nullptr, 0, 0, 0, 0, strides, "none", nullptr, 0, nullptr, nullptr) ==
                      cudaErrorInvalidValue, "an unknown part");
    return report.finish();
}
