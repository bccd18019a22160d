// Marks functions that the CPU and the CUDA kernels compile from the same source.
#pragma once

#if defined(__CUDACC__)
#define SC_HOST_DEVICE __host__ __device__
#else
#define SC_HOST_DEVICE
#endif
