// expand_symbols of csrc/cuda against csrc/cpu.
#include "check.h"
#include "cpu/compact_symbols.cpp"
#include "cuda/expand_symbols.cu"

using namespace sparsecodec;

namespace {

void compare(check::Report& report, std::size_t n, double kept, int surplus, std::size_t shift) {
    check::Buffer<std::int16_t> indexes(n, shift);
    std::bernoulli_distribution keep(kept);
    int needed = 0;
    for (std::size_t i = 0; i < n; ++i) {
        indexes[i] = keep(check::generator()) ? static_cast<std::int16_t>(check::generator()() % 256) : kSkipped;
        needed += is_kept(indexes[i]);
    }
    const std::size_t available = std::max(0, needed + surplus);
    check::Buffer<std::int32_t> symbols(available, shift), expanded(n, shift), expanded_cpu(n, shift);
    for (std::size_t i = 0; i < available; ++i) symbols[i] = static_cast<std::int32_t>(check::generator()());
#if defined(SC_PLANT_OVERRUN)
    const unsigned told = static_cast<unsigned>(n) + 1;  // for AddressSanitizer to find
#else
    const unsigned told = static_cast<unsigned>(n);
#endif
    check::Buffer<unsigned long long> scratch(1 + kept_scan::tiles(told));
    const int error = sparsecodec_expand_symbols(symbols.data(), static_cast<unsigned>(available), indexes.data(), told,
                                                 scratch.data(), expanded.data(), nullptr);
    expand_symbols(symbols.data(), static_cast<std::ptrdiff_t>(available), indexes.data(),
                   static_cast<std::ptrdiff_t>(n), expanded_cpu.data());
    report.expect(error == cudaSuccess && expanded == expanded_cpu,
                  std::to_string(n) + " positions, kept " + std::to_string(kept) + ", surplus " +
                      std::to_string(surplus) + ", shift " + std::to_string(shift));
}

}  // namespace

int main(int argc, char**) {
    check::Report report("expand_symbols");
    if (argc > 1) {  // as many as ThreadSanitizer needs
        compare(report, 4105, 0.5, 0, 0);
        return report.finish();
    }
    for (std::size_t n : {0, 1, 7, 9, 255, 256, 257, 2047, 2048, 2049, 7001}) compare(report, n, 0.4, 0, 0);
    for (double kept : {0.0, 0.001, 0.999, 1.0}) compare(report, 4609, kept, 0, 0);
    for (std::size_t shift : {1, 2, 3, 4, 8}) compare(report, 4105, 0.5, 0, shift);
    for (int surplus : {-100000, -2500, -1, 1, 40}) compare(report, 6151, 0.6, surplus, 0);
    return report.finish();
}
