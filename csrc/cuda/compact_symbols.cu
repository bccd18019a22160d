// compact_symbols on the GPU. What it computes: sparsecodec/ops/compact_symbols.py.
#include "cuda/kept_scan.cuh"

namespace sparsecodec {
namespace {

using namespace kept_scan;

struct CompactShared {
    Shared scan;
    std::int16_t indexes[kTile];  // the kept ones of the tile, in order
    std::int32_t symbols[kTile];
};

// One block: one tile of kTile positions. The r-th kept position of all goes to place r, the r-th skipped one to place
// n - 1 - r, so that every place is written once and nobody needs to know the total.
__global__ void __launch_bounds__(kThreads)
    compact_symbols_kernel(const std::int16_t* __restrict__ indexes, const std::int32_t* __restrict__ symbols,
                           unsigned n, Word* scratch, std::int16_t* __restrict__ packed,
                           std::int32_t* __restrict__ packed_symbols, std::int32_t* count) {
    CompactShared& shared = block_shared<CompactShared>();
    const unsigned tile = take_tile(scratch, shared.scan);
    const unsigned start = tile * kTile, first = start + threadIdx.x * kItems;

    const Items<std::int16_t> index = load_items(indexes, first, n, kSkipped);
    unsigned kept = 0;
#pragma unroll
    for (int i = 0; i < kItems; ++i) kept += is_kept(index.item[i]);
    const Rank rank = rank_in_tile(kept, shared.scan);

    unsigned place = rank.before;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
        if (is_kept(index.item[i])) shared.indexes[place++] = index.item[i];
    }
    if (symbols != nullptr) {
        const Items<std::int32_t> symbol = load_items(symbols, first, n, 0);
        place = rank.before;
#pragma unroll
        for (int i = 0; i < kItems; ++i) {
            if (is_kept(index.item[i])) shared.symbols[place++] = symbol.item[i];
        }
    }
    if (threadIdx.x < kWarp) {
        const unsigned before = look_back(scratch, tile, rank.tile);
        if (threadIdx.x == 0) shared.scan.base = before;
    }
    __syncthreads();

    const unsigned base = shared.scan.base;
    for (unsigned i = threadIdx.x; i < rank.tile; i += kThreads) {
        packed[base + i] = shared.indexes[i];
        if (symbols != nullptr) packed_symbols[base + i] = shared.symbols[i];
    }
    const unsigned positions = n - start < kTile ? n - start : kTile;
    const unsigned skipped = positions - rank.tile, end = n - (start - base) - skipped;
    for (unsigned i = threadIdx.x; i < skipped; i += kThreads) {
        packed[end + i] = kSkipped;
        if (symbols != nullptr) packed_symbols[end + i] = 0;
    }
    if (threadIdx.x == 0 && n - start <= kTile) *count = static_cast<std::int32_t>(base + rank.tile);
}

}  // namespace
}  // namespace sparsecodec

// indexes: [n] int16; symbols: [n] int32 or null; packed, packed_symbols: [n], the latter null with symbols; count: [1];
// scratch: as many words of 8 bytes as sparsecodec_scan_words says. n < 2^31. Outputs must not overlap inputs.
SC_EXPORT int sparsecodec_compact_symbols(const std::int16_t* indexes, const std::int32_t* symbols, unsigned n,
                                          unsigned long long* scratch, std::int16_t* packed,
                                          std::int32_t* packed_symbols, std::int32_t* count, void* stream) {
    using namespace sparsecodec;
    if (n == 0) return cudaMemsetAsync(count, 0, sizeof *count, static_cast<cudaStream_t>(stream));
    const cudaError_t error = cudaMemsetAsync(scratch, 0, kept_scan::scratch_words(n) * sizeof *scratch,
                                              static_cast<cudaStream_t>(stream));
    if (error != cudaSuccess) return error;
    return launch(compact_symbols_kernel, kept_scan::tiles(n), kept_scan::kThreads, stream, indexes, symbols, n, scratch,
                  packed, packed_symbols, count);
}

// Host only: words of 8 bytes that a scan of n positions needs.
SC_EXPORT std::size_t sparsecodec_scan_words(unsigned n) { return sparsecodec::kept_scan::scratch_words(n); }
