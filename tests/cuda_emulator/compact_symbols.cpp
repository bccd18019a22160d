// compact_symbols of csrc/cuda against csrc/cpu, and the look-back of its scan by hand.
#include "check.h"
#include "cpu/compact_symbols.cpp"
#include "cuda/compact_symbols.cu"

using namespace sparsecodec;
using namespace sparsecodec::kept_scan;

namespace {

void compare(check::Report& report, std::size_t n, double kept, bool with_symbols, std::size_t shift) {
    check::Buffer<std::int16_t> indexes(n, shift), packed(n, shift), packed_cpu(n, shift);
    const std::size_t carried = with_symbols ? n : 0;
    check::Buffer<std::int32_t> symbols(carried, shift), packed_symbols(carried, shift), symbols_cpu(carried, shift);
    check::Buffer<std::int32_t> count(1);
    std::bernoulli_distribution keep(kept);
    for (std::size_t i = 0; i < n; ++i) {
        indexes[i] = keep(check::generator()) ? static_cast<std::int16_t>(check::generator()() % 256) : kSkipped;
        if (with_symbols) symbols[i] = static_cast<std::int32_t>(check::generator()());
    }
    std::int32_t* const values = with_symbols ? symbols.data() : nullptr;
#if defined(SC_PLANT_OVERRUN)
    const unsigned told = static_cast<unsigned>(n) + 1;  // for AddressSanitizer to find
#else
    const unsigned told = static_cast<unsigned>(n);
#endif
    check::Buffer<unsigned long long> scratch(sparsecodec_scan_words(told));
    const int error = sparsecodec_compact_symbols(indexes.data(), values, told, scratch.data(), packed.data(),
                                                  with_symbols ? packed_symbols.data() : nullptr, count.data(), nullptr);
    const std::ptrdiff_t count_cpu =
        compact_symbols(indexes.data(), values, static_cast<std::ptrdiff_t>(n), packed_cpu.data(), symbols_cpu.data());
    report.expect(error == cudaSuccess && packed == packed_cpu && packed_symbols == symbols_cpu && count[0] == count_cpu,
                  std::to_string(n) + " positions, kept " + std::to_string(kept) + ", shift " + std::to_string(shift) +
                      (with_symbols ? ", symbols" : ""));
}

void look_back_kernel(Word* scratch, unsigned tile, unsigned kept, unsigned* before) {
    before[threadIdx.x] = look_back(scratch, tile, kept);
}

// Tiles 0 .. tile - 1 have published; those from `counted` on only their own counts.
void look_back_by_hand(check::Report& report, unsigned tile, unsigned counted) {
    check::Buffer<Word> scratch(1 + tile + 1);
    check::Buffer<unsigned> before(kWarp);
    unsigned total = 0;
    for (unsigned t = 0; t < tile; ++t) {
        const unsigned kept = t % 7 == 3 ? 0 : 5 * t + 1;
        total += kept;
        scratch[1 + t] = t < counted ? kTotal | total : kTileCount | kept;
    }
    scratch[1 + tile] = 0;
    launch(look_back_kernel, 1, kWarp, nullptr, scratch.data(), tile, 11u, before.data());
    bool equal = scratch[1 + tile] == (kTotal | (total + 11));
    for (unsigned lane = 0; lane < kWarp; ++lane) equal &= before[lane] == total;
    report.expect(equal, "look-back of tile " + std::to_string(tile) + ", totals of " + std::to_string(counted));
}

}  // namespace

int main(int argc, char**) {
    check::Report report("compact_symbols");
    if (argc > 1) {  // as many as ThreadSanitizer needs
        compare(report, 4105, 0.5, true, 0);
        look_back_by_hand(report, 33, 1);
        return report.finish();
    }
    for (std::size_t n : {0, 1, 7, 9, 255, 256, 257, 2047, 2048, 2049, 7001}) {
        compare(report, n, 0.4, n % 2 == 1, 0);
    }
    for (double kept : {0.0, 0.001, 0.999, 1.0}) compare(report, 4609, kept, true, 0);
    for (std::size_t shift : {1, 3, 4, 8}) compare(report, 4105, 0.5, true, shift);
    for (unsigned tile : {1, 2, 31, 32, 33, 64, 65, 100}) {
        for (unsigned counted : {1u, tile - 1, tile, tile > 32 ? tile - 32 : 1}) {
            if (counted > 0) look_back_by_hand(report, tile, counted);
        }
    }
    return report.finish();
}
