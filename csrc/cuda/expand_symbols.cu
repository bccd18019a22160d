// expand_symbols on the GPU. What it computes: sparsecodec/ops/expand_symbols.py.
#include "cuda/kept_scan.cuh"

namespace sparsecodec {
namespace {

using namespace kept_scan;

struct ExpandShared {
    Shared scan;
    std::int32_t symbols[kTile];  // those of the tile's kept positions, in order
};

// One block: one tile of kTile positions.
__global__ void __launch_bounds__(kThreads)
    expand_symbols_kernel(const std::int32_t* __restrict__ symbols, unsigned available,
                          const std::int16_t* __restrict__ indexes, unsigned n, Word* scratch,
                          std::int32_t* __restrict__ expanded) {
    ExpandShared& shared = block_shared<ExpandShared>();
    const unsigned tile = take_tile(scratch, shared.scan);
    const unsigned first = tile * kTile + threadIdx.x * kItems;

    const Items<std::int16_t> index = load_items(indexes, first, n, kSkipped);
    unsigned kept = 0;
#pragma unroll
    for (int i = 0; i < kItems; ++i) kept += is_kept(index.item[i]);
    const Rank rank = rank_in_tile(kept, shared.scan);
    if (threadIdx.x < kWarp) {
        const unsigned before = look_back(scratch, tile, rank.tile);
        if (threadIdx.x == 0) shared.scan.base = before;
    }
    __syncthreads();

    const unsigned base = shared.scan.base;
    for (unsigned i = threadIdx.x; i < rank.tile; i += kThreads) {
        shared.symbols[i] = base + i < available ? symbols[base + i] : 0;
    }
    __syncthreads();

    Items<std::int32_t> value;
    unsigned place = rank.before;
#pragma unroll
    for (int i = 0; i < kItems; ++i) value.item[i] = is_kept(index.item[i]) ? shared.symbols[place++] : 0;
    if (first >= n) return;
    if (vector_access(expanded, first, n)) {
        *reinterpret_cast<Items<std::int32_t>*>(expanded + first) = value;
        return;
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
        if (first + i < n) expanded[first + i] = value.item[i];
    }
}

}  // namespace
}  // namespace sparsecodec

// symbols: [available] int32; indexes: [n] int16; expanded: [n] int32; scratch: as many words of 8 bytes as
// sparsecodec_scan_words says. available, n < 2^31. The output must not overlap the inputs.
SC_EXPORT int sparsecodec_expand_symbols(const std::int32_t* symbols, unsigned available, const std::int16_t* indexes,
                                         unsigned n, unsigned long long* scratch, std::int32_t* expanded,
                                         void* stream) {
    using namespace sparsecodec;
    if (n == 0) return cudaSuccess;
    const cudaError_t error = cudaMemsetAsync(scratch, 0, kept_scan::scratch_words(n) * sizeof *scratch,
                                              static_cast<cudaStream_t>(stream));
    if (error != cudaSuccess) return error;
    return launch(expand_symbols_kernel, kept_scan::tiles(n), kept_scan::kThreads, stream, symbols, available, indexes,
                  n, scratch, expanded);
}
