// Launching kernels, and the shared memory of a block. Kernels are launched by a function of the CUDA runtime instead of
// <<<>>>, so that plain C++ compilers read these files too (tests/cuda_emulator).
#pragma once

#include <cuda_runtime.h>

// What the library offers to sparsecodec/_cuda.py; everything else in it is hidden. Pointers are device memory unless
// they say otherwise, of the device that the caller has made current; launchers return a cudaError_t.
#define SC_EXPORT extern "C" __attribute__((visibility("default")))

namespace sparsecodec {

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, void* stream, Arguments... arguments) {
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.stream = static_cast<cudaStream_t>(stream);
    return cudaLaunchKernelEx(&config, kernel, arguments...);
}

#if defined(__CUDACC__)
// The block's one T in shared memory, uninitialised.
template <class T>
__device__ __forceinline__ T& block_shared() {
    __shared__ T storage;
    return storage;
}
#endif

}  // namespace sparsecodec
