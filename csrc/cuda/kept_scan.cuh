// How many symbols are kept before each position: the scan behind compact_symbols and expand_symbols.
//
// One pass with decoupled look-back (Merrill and Garland 2016): a block counts its tile, publishes the count, and adds up
// what the tiles before it have published. It waits only for tiles with a smaller number, and blocks number themselves
// when they start, so whatever a block waits for is running or done: no order of blocks can deadlock.
#pragma once

#include <cstdint>

#include "common/kept.h"
#include "cuda/launch.cuh"

namespace sparsecodec {
namespace kept_scan {

constexpr int kThreads = 256, kWarp = 32, kWarps = kThreads / kWarp;
constexpr int kItems = 8;  // positions of a thread: their int16 indexes are one 16-byte load
constexpr unsigned kTile = kThreads * kItems;
constexpr unsigned kAllLanes = 0xffffffffu;

using Word = unsigned long long;

// What a tile has published, in one word, so that no fence is needed: the state above, a number of symbols below. Zeros
// are "nothing yet".
constexpr Word kTileCount = Word{1} << 32;  // kept in this tile
constexpr Word kTotal = Word{2} << 32;      // kept in this tile and in all before it

inline unsigned tiles(unsigned n) { return n / kTile + (n % kTile != 0); }

// Words of scratch memory for n positions: the next tile to take, then what each tile has published. Zeros at launch.
inline std::size_t scratch_words(unsigned n) { return std::size_t{1} + tiles(n); }

struct Shared {
    unsigned tile;
    unsigned base;             // kept before the tile
    unsigned warp[kWarps];     // kept in each warp
};

// Eight neighbours in memory, moved in pieces of 16 bytes.
template <class T>
struct alignas(16) Items {
    T item[kItems];
};

template <class T>
__device__ __forceinline__ bool vector_access(const T* at, unsigned first, unsigned n) {
    return n - first >= kItems && reinterpret_cast<std::uintptr_t>(at + first) % 16 == 0;
}

// Positions first .. first + kItems - 1 of [n]; `beyond` stands for those that do not exist.
template <class T>
__device__ __forceinline__ Items<T> load_items(const T* from, unsigned first, unsigned n, T beyond) {
    if (first < n && vector_access(from, first, n)) return *reinterpret_cast<const Items<T>*>(from + first);
    Items<T> items;
#pragma unroll
    for (int i = 0; i < kItems; ++i) items.item[i] = first + i < n ? from[first + i] : beyond;
    return items;
}

// The tile of this block. All threads of the block call it.
__device__ __forceinline__ unsigned take_tile(Word* scratch, Shared& shared) {
    if (threadIdx.x == 0) shared.tile = static_cast<unsigned>(atomicAdd(scratch, Word{1}));
    __syncthreads();
    return shared.tile;
}

struct Rank {
    unsigned before;  // kept in this tile before the thread's first position
    unsigned tile;    // kept in this tile
};

// kept: how many of the thread's positions are kept. All threads of the block call it.
__device__ __forceinline__ Rank rank_in_tile(unsigned kept, Shared& shared) {
    const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    unsigned upto = kept;
#pragma unroll
    for (unsigned distance = 1; distance < kWarp; distance *= 2) {
        const unsigned below = __shfl_up_sync(kAllLanes, upto, distance);
        if (lane >= distance) upto += below;
    }
    if (lane == kWarp - 1) shared.warp[warp] = upto;
    __syncthreads();
    Rank rank{upto - kept, 0};
#pragma unroll
    for (unsigned other = 0; other < kWarps; ++other) {
        if (other < warp) rank.before += shared.warp[other];
        rank.tile += shared.warp[other];
    }
    return rank;
}

// Kept before the tile; publishes for the tiles behind. One whole warp calls it.
__device__ __forceinline__ unsigned look_back(Word* scratch, unsigned tile, unsigned kept) {
    const unsigned lane = threadIdx.x % kWarp;
    Word* const published = scratch + 1;
    unsigned before = 0;
    if (tile > 0) {
        if (lane == 0) atomicExch(published + tile, kTileCount | kept);
        // Lane 0 reads the nearest tile, lane 31 the farthest of a window; windows move towards tile 0.
        for (unsigned nearest = tile;; nearest -= kWarp) {
            Word word = kTotal;  // before tile 0 there is nothing
            if (lane < nearest) {
                do {
                    word = __ldcv(published + (nearest - 1 - lane));
                } while (word == 0);
            }
            const unsigned totals = __ballot_sync(kAllLanes, word >= kTotal);
            const unsigned last = totals != 0 ? __ffs(totals) - 1 : kWarp - 1;  // nothing beyond a total counts
            unsigned sum = lane <= last ? static_cast<unsigned>(word) : 0;
#pragma unroll
            for (unsigned distance = kWarp / 2; distance > 0; distance /= 2) {
                sum += __shfl_xor_sync(kAllLanes, sum, distance);
            }
            before += sum;
            if (totals != 0) break;
        }
    }
    if (lane == 0) atomicExch(published + tile, kTotal | (before + kept));
    return before;
}

}  // namespace kept_scan
}  // namespace sparsecodec
