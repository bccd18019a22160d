// Stands in for CUDA's header, so that g++ (C++20) compiles the files of csrc/cuda and runs their kernels on the CPU:
// something that runs (turns.h) for each CUDA thread, real barriers, and several blocks at a time, so that
// ThreadSanitizer sees races and AddressSanitizer overruns, those of shared memory included. Holds what our kernels use,
// no more.
//
// Not modelled: speed, the memory model's weaker orders between blocks, warps that run in lockstep, the limits of a GPU.
//
// SC_PLANT_RACE=n drops the n-th __syncthreads of every kernel, from 1: a race for ThreadSanitizer to find.
#pragma once

#include <atomic>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __restrict__ __restrict

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    unsigned volume() const { return x * y * z; }
};

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor };
using cudaStream_t = void*;
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    std::size_t dynamicSmemBytes = 0;
    cudaStream_t stream = nullptr;
};

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

struct Slot;
inline thread_local Slot* slot = nullptr;
inline thread_local unsigned thread = 0, syncs = 0, exchanges = 0;

}  // namespace emulator

#include "turns.h"

namespace emulator {

constexpr unsigned kWarp = 32;
// Kernels run on this many blocks at a time; a block that waits for another needs two.
inline unsigned resident_blocks = 3;

struct Warp {
    explicit Warp(unsigned threads) : barrier(threads) {}
    Barrier barrier;
    std::uint64_t lane[2][kWarp] = {};  // in turn: who is ahead writes what nobody reads any more
};

// The threads that run blocks one after another, and what the block at hand shares.
struct Slot {
    explicit Slot(unsigned threads) : barrier(threads), between(threads) {
        for (unsigned first = 0; first < threads; first += kWarp) {
            warps.push_back(std::make_unique<Warp>(std::min(kWarp, threads - first)));
        }
    }
    Barrier barrier;
    Barrier between;  // apart from __syncthreads, so that a dropped one stays dropped
    std::vector<std::unique_ptr<Warp>> warps;
    std::unique_ptr<std::once_flag> allocate;
    std::shared_ptr<void> shared;
};

inline Warp& warp() { return *slot->warps[thread / kWarp]; }
inline unsigned lane() { return thread % kWarp; }

// Every lane gives a value and sees all: f(values of the 32 lanes).
template <class T, class F>
auto exchange(T value, F f) {
    static_assert(sizeof(T) <= sizeof(std::uint64_t));
    Warp& mine = warp();
    std::uint64_t* const values = mine.lane[++exchanges % 2];
    std::memcpy(&values[lane()], &value, sizeof value);
    mine.barrier.arrive_and_wait();
    return f([&](unsigned from) {
        T other;
        std::memcpy(&other, &values[from], sizeof other);
        return other;
    });
}

template <class... Parameters>
void run(void (*kernel)(Parameters...), dim3 grid, dim3 block, Parameters... arguments) {
    const unsigned blocks = grid.volume(), threads = block.volume();
    const unsigned slots = blocks < resident_blocks ? blocks : resident_blocks;
    std::vector<std::unique_ptr<Slot>> owned;
    for (unsigned s = 0; s < slots; ++s) owned.push_back(std::make_unique<Slot>(threads));
    side_by_side(slots * threads, [&](unsigned at) {
        const unsigned first = at / threads, t = at % threads;
        Slot* const mine = owned[first].get();
        slot = mine;
        thread = t;
        exchanges = 0;
        gridDim = grid;
        blockDim = block;
        threadIdx = dim3(t % block.x, t / block.x % block.y, t / block.x / block.y);
        for (unsigned b = first; b < blocks; b += slots) {
            if (t == 0) {
                mine->allocate = std::make_unique<std::once_flag>();
                mine->shared.reset();
            }
            mine->between.arrive_and_wait();
            blockIdx = dim3(b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y);
            syncs = 0;
            kernel(arguments...);
            mine->between.arrive_and_wait();
        }
    });
}

}  // namespace emulator

namespace sparsecodec {

// In place of the function of the same name in cuda/launch.cuh: exactly sizeof(T) bytes, different for every block, and
// full of values that no kernel has written.
template <class T>
T& block_shared() {
    std::call_once(*emulator::slot->allocate, [] {
        void* const memory = ::operator new(sizeof(T), std::align_val_t{alignof(T)});
        std::memset(memory, 0xcd, sizeof(T));
        emulator::slot->shared = std::shared_ptr<void>(memory, [](void* m) {
            ::operator delete(m, std::align_val_t{alignof(T)});
        });
    });
    return *static_cast<T*>(emulator::slot->shared.get());
}

}  // namespace sparsecodec

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments... arguments) {
    emulator::run<Parameters...>(kernel, config->gridDim, config->blockDim, Parameters(arguments)...);
    return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t) {
    std::memset(memory, value, bytes);
    return cudaSuccess;
}

inline const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "invalid argument"; }

inline cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9 : 0;
    return cudaSuccess;
}

inline cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidValue; }

inline void __syncthreads() {
    ++emulator::syncs;
#if defined(SC_PLANT_RACE)
    if (emulator::syncs == SC_PLANT_RACE) return;
#endif
    emulator::slot->barrier.arrive_and_wait();
}

template <class T>
T __shfl_up_sync(unsigned, T value, unsigned distance) {
    const unsigned lane = emulator::lane();
    return emulator::exchange(value, [&](auto of) { return of(lane >= distance ? lane - distance : lane); });
}

template <class T>
T __shfl_sync(unsigned, T value, int from) {
    return emulator::exchange(value, [&](auto of) { return of(static_cast<unsigned>(from)); });
}

template <class T>
T __shfl_xor_sync(unsigned, T value, unsigned mask) {
    return emulator::exchange(value, [&](auto of) { return of(emulator::lane() ^ mask); });
}

inline unsigned __ballot_sync(unsigned, bool predicate) {
    return emulator::exchange(predicate, [](auto of) {
        unsigned votes = 0;
        for (unsigned lane = 0; lane < emulator::kWarp; ++lane) votes |= static_cast<unsigned>(of(lane)) << lane;
        return votes;
    });
}

inline int __ffs(unsigned value) { return value == 0 ? 0 : std::countr_zero(value) + 1; }
inline int __popc(unsigned value) { return std::popcount(value); }

template <class T>
T atomicAdd(T* at, T value) {
    return std::atomic_ref<T>(*at).fetch_add(value, std::memory_order_relaxed);
}

template <class T>
T atomicExch(T* at, T value) {
    return std::atomic_ref<T>(*at).exchange(value, std::memory_order_relaxed);
}

// A thread that polls gives way, or the one that it waits for would not run.
template <class T>
T __ldcv(const T* at) {
    const T value = std::atomic_ref<T>(*const_cast<T*>(at)).load(std::memory_order_relaxed);
    if (value == T{}) emulator::give_way();
    return value;
}
