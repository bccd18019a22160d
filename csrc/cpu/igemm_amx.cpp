// AMX kernels for bf16: TDPBF16PS multiplies 16 pixels x 32 input channels with 32 x 16 weights. Compiled twice: for
// the instructions, and for plain loops that do the same, with which any AVX-512 machine tests the kernel.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/igemm_isa.h"

#if defined(__x86_64__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12 on its own intrinsics headers (its bug 105593)
#include <immintrin.h>

namespace sparsecodec::igemm {
namespace {

constexpr int kTileRows = 16;  // pixels, or pairs of input channels
constexpr int kTileK = 32;     // input channels in a row of 64 bytes

struct TileConfig {  // what LDTILECFG reads: eight registers of 16 rows of 64 bytes
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
alignas(64) constexpr TileConfig kTileConfig;
static_assert(sizeof(TileConfig) == 64 && kTileRows == 16 && kTileK * sizeof(bf16) == 64);

}  // namespace
}  // namespace sparsecodec::igemm

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,prefer-vector-width=512")
namespace sparsecodec::igemm {
namespace hardware {
namespace {
#include "cpu/igemm_epilogue.inl"

inline void store_values(bf16* p, __mmask16 mask, __m512 v) {
    _mm256_mask_storeu_epi16(p, mask, (__m256i)_mm512_cvtneps_pbh(v));
}
inline void store_values(bf16* p, __m512 v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(v));
}

#include "cpu/igemm_zmm_finish.inl"

// Assembly, because the intrinsics of gcc 12 do not say that they read and write memory. The registers are given back
// at the end: other libraries configure them for themselves, and a thread that holds them is slower to switch.
struct Tiles {
    Tiles() { asm volatile("ldtilecfg %0" ::"m"(kTileConfig)); }
    ~Tiles() { asm volatile("tilerelease"); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;

    template <int T>
    void load(const void* rows, std::ptrdiff_t stride) {
        asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(stride), "i"(T) : "memory");
    }
    template <int T>
    void store(void* rows, std::ptrdiff_t stride) const {
        asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(rows), "r"(stride), "i"(T) : "memory");
    }
    template <int Sum, int X, int W>
    void multiply_add() {
        asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(X), "i"(W));
    }
};

#include "cpu/igemm_amx.inl"
}  // namespace
}  // namespace hardware

template <class In, class Out>
void block_amx(const BlockArgs<In, Out>& args) {
    hardware::block(args);
}

template <class In, class Out>
void finish_amx(const BlockArgs<In, Out>& args, float* sums) {
    hardware::finish(args, sums);
}

template void block_amx(const BlockArgs<bf16, bf16>&);
template void finish_amx(const BlockArgs<bf16, bf16>&, float*);
template void block_amx(const BlockArgs<bf16, float>&);
template void finish_amx(const BlockArgs<bf16, float>&, float*);

}  // namespace sparsecodec::igemm
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
namespace sparsecodec::igemm {
namespace emulated {
namespace {
#include "cpu/igemm_epilogue.inl"

inline void store_values(bf16* p, __mmask16 mask, __m512 v) {
    alignas(64) float values[16];
    _mm512_store_ps(values, v);
    for (int i = 0; i < 16; ++i) {
        if (mask >> i & 1) p[i] = to_bf16(values[i]);
    }
}
inline void store_values(bf16* p, __m512 v) { store_values(p, 0xffff, v); }

#include "cpu/igemm_zmm_finish.inl"

inline float flushed(float value) { return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value; }

// The operations of Intel's Software Developer's Manual, volume 2, "TDPBF16PS": even and odd channels are summed apart,
// by fma from zero, then added to each other and to the destination; denormal inputs and results are zeros.
struct Tiles {
    alignas(64) char registers[8][kTileRows * 64] = {};

    static std::uint16_t row_bytes(int t) { return kTileConfig.row_bytes[t]; }
    static std::uint8_t rows(int t) { return kTileConfig.rows[t]; }

    template <int T>
    void load(const void* from, std::ptrdiff_t stride) {
        std::memset(registers[T], 0, sizeof registers[T]);
        for (int row = 0; row < rows(T); ++row) {
            std::memcpy(registers[T] + row * 64, static_cast<const char*>(from) + row * stride, row_bytes(T));
        }
    }
    template <int T>
    void store(void* to, std::ptrdiff_t stride) const {
        for (int row = 0; row < rows(T); ++row) {
            std::memcpy(static_cast<char*>(to) + row * stride, registers[T] + row * 64, row_bytes(T));
        }
    }
    template <int Sum, int X, int W>
    void multiply_add() {
        float* const sums = reinterpret_cast<float*>(registers[Sum]);
        const bf16* const x = reinterpret_cast<const bf16*>(registers[X]);
        const bf16* const w = reinterpret_cast<const bf16*>(registers[W]);
        const int columns = row_bytes(Sum) / 4, pairs = row_bytes(X) / 4;
        for (int m = 0; m < rows(Sum); ++m) {
            float even[16] = {}, odd[16] = {};
            for (int k = 0; k < pairs; ++k) {
                const float x0 = flushed(to_float(x[m * 32 + 2 * k])), x1 = flushed(to_float(x[m * 32 + 2 * k + 1]));
                for (int n = 0; n < columns; ++n) {
                    even[n] = flushed(std::fma(x0, flushed(to_float(w[k * 32 + 2 * n])), even[n]));
                    odd[n] = flushed(std::fma(x1, flushed(to_float(w[k * 32 + 2 * n + 1])), odd[n]));
                }
            }
            for (int n = 0; n < columns; ++n) {
                sums[m * 16 + n] = flushed(flushed(sums[m * 16 + n]) + flushed(even[n] + odd[n]));
            }
        }
    }
};

#include "cpu/igemm_amx.inl"
}  // namespace
}  // namespace emulated

template <class In, class Out>
void block_amx_emulated(const BlockArgs<In, Out>& args) {
    emulated::block(args);
}

template <class In, class Out>
void finish_amx_emulated(const BlockArgs<In, Out>& args, float* sums) {
    emulated::finish(args, sums);
}

template void block_amx_emulated(const BlockArgs<bf16, bf16>&);
template void finish_amx_emulated(const BlockArgs<bf16, bf16>&, float*);
template void block_amx_emulated(const BlockArgs<bf16, float>&);
template void finish_amx_emulated(const BlockArgs<bf16, float>&, float*);

}  // namespace sparsecodec::igemm
#pragma GCC pop_options
#endif
