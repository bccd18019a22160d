// What sparsecodec/_cuda.py asks before it launches anything.
#include "cuda/launch.cuh"

// Host only. The text of a cudaError_t.
SC_EXPORT const char* sparsecodec_error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

// Host only. The architectures that the library was built for, as setup.py was given them: "80;90".
SC_EXPORT const char* sparsecodec_architectures() { return SPARSECODEC_CUDA_ARCHS; }

// count: host. How many GPUs the driver offers. Needs no context.
SC_EXPORT int sparsecodec_device_count(int* count) { return cudaGetDeviceCount(count); }

// capability: host. Of GPU number `device`, 90 for 9.0. Needs no context.
SC_EXPORT int sparsecodec_device_capability(int device, int* capability) {
    int major = 0, minor = 0;
    cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    *capability = 10 * major + minor;
    return error;
}

// Makes GPU number `device` current for this thread, also in the runtime that this library carries.
SC_EXPORT int sparsecodec_set_device(int device) { return cudaSetDevice(device); }
