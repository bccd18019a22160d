// entropy_parameters on the GPU. What it computes: sparsecodec/ops/entropy_parameters.py; the arithmetic is the CPU's.
#include <cstdint>
#include <cstring>

#include "common/spatial_prior.h"
#include "cuda/launch.cuh"

namespace sparsecodec {
namespace {

constexpr unsigned kSide = 32, kRows = 8;  // a block turns kSide positions x kSide channels, kRows of them at a time

struct Scales {
    const float* data;
    unsigned n, c, h, w;                                        // c: of one group
    std::int64_t stride_n, stride_g, stride_c, stride_h, stride_w;  // elements
};

struct EntropyShared {
    std::int16_t indexes[kSide][kSide + 2];  // [position][channel]; one more word, so that a column meets all banks
};

// One block: blockIdx.x counts runs of kSide of the n * h * w positions, blockIdx.y runs of kSide of the c channels.
// Networks keep channels innermost, streams run over positions: the block reads along one, writes along the other.
__global__ void __launch_bounds__(kSide* kRows)
    entropy_parameters_kernel(Scales scales, const __grid_constant__ Part part,
                              const float* __restrict__ thresholds, int count,
                              std::int16_t* __restrict__ indexes) {
    EntropyShared& shared = block_shared<EntropyShared>();
    const unsigned positions = scales.n * scales.h * scales.w;
    const unsigned first_position = blockIdx.x * kSide, first_channel = blockIdx.y * kSide;

    const unsigned channel = first_channel + threadIdx.x;
    for (unsigned row = threadIdx.y; row < kSide; row += kRows) {
        const unsigned position = first_position + row;
        if (position >= positions || channel >= scales.c) continue;
        const unsigned x = position % scales.w, y = position / scales.w % scales.h, n = position / scales.w / scales.h;
        const float scale = scales.data[n * scales.stride_n + part.at(y, x) * scales.stride_g +
                                        channel * scales.stride_c + y * scales.stride_h + x * scales.stride_w];
        shared.indexes[row][threadIdx.x] = static_cast<std::int16_t>(scale_index(scale, thresholds, count));
    }
    __syncthreads();

    const unsigned position = first_position + threadIdx.x, plane = scales.h * scales.w;
    if (position >= positions) return;
    const std::int64_t image = static_cast<std::int64_t>(position / plane) * scales.c;
    for (unsigned row = threadIdx.y; row < kSide && first_channel + row < scales.c; row += kRows) {
        indexes[(image + first_channel + row) * plane + position % plane] = shared.indexes[threadIdx.x][row];
    }
}

}  // namespace
}  // namespace sparsecodec

// scales: [n, groups of the part, c, h, w] float32 by strides (host, 5 values, elements); thresholds: [count] float32,
// ascending; part: host, a name of kParts; indexes: [n, c, h, w] int16 contiguous. n * h * w < 2^31 - 32.
SC_EXPORT int sparsecodec_entropy_parameters(const float* scales, unsigned n, unsigned c, unsigned h, unsigned w,
                                             const std::int64_t* strides, const char* part, const float* thresholds,
                                             int count, std::int16_t* indexes, void* stream) {
    using namespace sparsecodec;
    const Scales view{scales, n, c, h, w, strides[0], strides[1], strides[2], strides[3], strides[4]};
    for (const NamedPart& named : kParts) {
        if (std::strcmp(named.name, part) != 0) continue;
        if (n * h * w == 0 || c == 0) return cudaSuccess;
        const dim3 grid((n * h * w + kSide - 1) / kSide, (c + kSide - 1) / kSide);
        return launch(entropy_parameters_kernel, grid, dim3(kSide, kRows), stream, view, named.part, thresholds, count,
                      indexes);
    }
    return cudaErrorInvalidValue;
}
