#include "cpu/integer_deform_columns.h"

#include <algorithm>
#include <vector>

#include "common/parallel.h"

#if defined(__x86_64__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12 on its own intrinsics headers (its bug 105593)
#include <immintrin.h>
#endif

namespace sparsecodec {
namespace {

using std::int16_t;
using std::int32_t;
using std::ptrdiff_t;

constexpr int kPositionBits = 16, kWeightBits = 14;
constexpr int32_t kOne = 1 << kWeightBits, kHalf = kOne / 2;
constexpr ptrdiff_t kBorder = 2;  // zeros around a picture: no sample beyond them is asked for
constexpr ptrdiff_t kChunk = 8;   // channels of a vector's 128 bits
constexpr std::size_t kAtOnce = 4;

// A chunk is up to kChunk channels of one group at one tap, and the order is that of the result. A vector's channels
// beyond its group's are written, too, by the chunk behind it a second time: only the last chunk of a pixel leaves
// kChunk - 1 wrong ones behind the pixel at most.
struct Chunks {
    std::vector<int32_t> moved, tap_row, tap_column;  // channel of the offsets in pairs; the tap's place
    std::vector<ptrdiff_t> from, to;                  // channels of the input and of the result
    ptrdiff_t width;                                  // channels of a chunk

    Chunks(ptrdiff_t c, ptrdiff_t groups, ptrdiff_t widest) : width(std::min(widest, c / groups)) {
        const ptrdiff_t each = c / groups;
        for (int t = 0; t < kColumnTaps; ++t) {
            for (ptrdiff_t g = 0; g < groups; ++g) {
                for (ptrdiff_t i = 0; i < each; i += widest) add(t, g, g * each + i, c);
            }
        }
        while (moved.size() % kAtOnce) add(kColumnTaps - 1, groups - 1, from.back(), c);  // the last one once more
    }
    std::size_t count() const { return moved.size(); }

  private:
    void add(int t, ptrdiff_t g, ptrdiff_t channel, ptrdiff_t c) {
        moved.push_back(static_cast<int32_t>(g * kColumnTaps + t));
        tap_row.push_back(t / 3 - 1);
        tap_column.push_back(t % 3 - 1);
        from.push_back(channel);
        to.push_back(t * c + channel);
    }
};

// A picture between zeros, dense, and a chunk behind it.
struct Bordered {
    std::vector<int16_t> values;
    ptrdiff_t c, h, w, stride_h;

    Bordered(ptrdiff_t c, ptrdiff_t h, ptrdiff_t w)
        : values((h + 2 * kBorder) * (w + 2 * kBorder) * c + kChunk), c(c), h(h), w(w), stride_h((w + 2 * kBorder) * c) {}

    const int16_t* data() const { return values.data() + kBorder * stride_h + kBorder * c; }
    void copy_row(const Image<const int16_t>& x, ptrdiff_t n, ptrdiff_t row) {
        int16_t* to = values.data() + (row + kBorder) * stride_h + kBorder * c;
        const int16_t* from = x.pixel(n, row, 0);
        if (x.stride_w == c) {
            std::copy_n(from, w * c, to);
            return;
        }
        for (ptrdiff_t column = 0; column < w; ++column) std::copy_n(from + column * x.stride_w, c, to + column * c);
    }
};

// Of each chunk of a pixel: the upper left sample as a pixel of the bordered picture, and pairs of weights, the next
// one's in the upper half.
struct Places {
    std::vector<int32_t> rows, columns, pixel, down, across, factor;

    explicit Places(std::size_t chunks)
        : rows(chunks), columns(chunks), pixel(chunks), down(chunks), across(chunks), factor(chunks) {}
};

inline int32_t weights(int32_t position) {
    const int32_t second = ((position & ((1 << kPositionBits) - 1)) + 2) >> (kPositionBits - kWeightBits);
    return second << 16 | (kOne - second);
}

inline int32_t between(int32_t first, int32_t second, int32_t weights) {
    return (first * (weights & 0xffff) + second * (weights >> 16) + kHalf) >> kWeightBits;
}

struct Row {
    const Bordered& x;
    const Chunks& chunks;
    const Strided<int32_t>& offset;
    const Strided<int16_t>* mask;
};

namespace scalar {
constexpr ptrdiff_t kWidest = 1 << 30;  // a chunk is a whole group

void blend(const Bordered& x, const Chunks& chunks, const Places& at, bool masked, int16_t* out) {
    for (std::size_t k = 0; k < chunks.count(); ++k) {
        const int16_t* const upper = x.data() + at.pixel[k] * x.c + chunks.from[k];
        const int16_t* const lower = upper + x.stride_h;
        int16_t* const to = out + chunks.to[k];
        for (ptrdiff_t i = 0; i < chunks.width; ++i) {
            const int32_t top = between(upper[i], upper[i + x.c], at.across[k]);
            const int32_t bottom = between(lower[i], lower[i + x.c], at.across[k]);
            int32_t y = between(top, bottom, at.down[k]);
            if (masked) y = (y * static_cast<int16_t>(at.factor[k]) + kHalf) >> kWeightBits;
            to[i] = static_cast<int16_t>(std::clamp(y, -32768, 32767));
        }
    }
}
#include "cpu/integer_deform_columns_rows.inl"
}  // namespace scalar

#if defined(__x86_64__)
// As integer_warp.cpp blends two samples, with another chunk in each 128 bits.
#pragma GCC push_options
#pragma GCC target("avx2")
namespace avx2 {
constexpr ptrdiff_t kWidest = kChunk;
using Vec = __m256i;

inline Vec pairs(const int32_t* of) {  // a chunk's in each of its lanes
    const Vec lanes = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    return _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(of))),
                                       lanes);
}
inline Vec sums(Vec pairs, Vec weights) {
    const Vec sum = _mm256_add_epi32(_mm256_madd_epi16(pairs, weights), _mm256_set1_epi32(kHalf));
    return _mm256_srai_epi32(sum, kWeightBits);
}
inline Vec between(Vec first, Vec second, Vec weights) {
    return _mm256_packs_epi32(sums(_mm256_unpacklo_epi16(first, second), weights),
                              sums(_mm256_unpackhi_epi16(first, second), weights));
}

void blend(const Bordered& x, const Chunks& chunks, const Places& at, bool masked, int16_t* out) {
    const int16_t* const data = x.data();
    for (std::size_t k = 0; k < chunks.count(); k += 2) {
        const int16_t* const a = data + at.pixel[k] * x.c + chunks.from[k];
        const int16_t* const b = data + at.pixel[k + 1] * x.c + chunks.from[k + 1];
        const auto load = [&](ptrdiff_t i) {
            const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(a + i));
            return _mm256_inserti128_si256(_mm256_castsi128_si256(low),
                                           _mm_loadu_si128(reinterpret_cast<const __m128i*>(b + i)), 1);
        };
        const Vec across = pairs(&at.across[k]);
        const Vec top = between(load(0), load(x.c), across);
        const Vec bottom = between(load(x.stride_h), load(x.stride_h + x.c), across);
        Vec y = between(top, bottom, pairs(&at.down[k]));
        if (masked) y = between(y, _mm256_setzero_si256(), pairs(&at.factor[k]));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + chunks.to[k]), _mm256_castsi256_si128(y));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + chunks.to[k + 1]), _mm256_extracti128_si256(y, 1));
    }
}
#include "cpu/integer_deform_columns_rows.inl"
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
namespace avx512 {
constexpr ptrdiff_t kWidest = kChunk;
using Vec = __m512i;

inline Vec pairs(const int32_t* of) {
    const Vec lanes = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    return _mm512_permutexvar_epi32(lanes,
                                    _mm512_castsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(of))));
}
inline Vec sums(Vec pairs, Vec weights) {
    const Vec sum = _mm512_add_epi32(_mm512_madd_epi16(pairs, weights), _mm512_set1_epi32(kHalf));
    return _mm512_srai_epi32(sum, kWeightBits);
}
inline Vec between(Vec first, Vec second, Vec weights) {
    return _mm512_packs_epi32(sums(_mm512_unpacklo_epi16(first, second), weights),
                              sums(_mm512_unpackhi_epi16(first, second), weights));
}

void blend(const Bordered& x, const Chunks& chunks, const Places& at, bool masked, int16_t* out) {
    const int16_t* const data = x.data();
    for (std::size_t k = 0; k < chunks.count(); k += kAtOnce) {
        const int16_t* from[kAtOnce];
        for (std::size_t i = 0; i < kAtOnce; ++i) from[i] = data + at.pixel[k + i] * x.c + chunks.from[k + i];
        const auto load = [&](ptrdiff_t i) {
            const auto part = [&](int at) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from[at] + i)); };
            const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(part(0)), part(1), 1);
            const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(part(2)), part(3), 1);
            return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
        };
        const Vec across = pairs(&at.across[k]);
        const Vec top = between(load(0), load(x.c), across);
        const Vec bottom = between(load(x.stride_h), load(x.stride_h + x.c), across);
        Vec y = between(top, bottom, pairs(&at.down[k]));
        if (masked) y = between(y, _mm512_setzero_si512(), pairs(&at.factor[k]));
        const auto store = [&](std::size_t i, __m128i part) {
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out + chunks.to[k + i]), part);
        };
        store(0, _mm512_castsi512_si128(y));
        store(1, _mm512_extracti32x4_epi32(y, 1));
        store(2, _mm512_extracti32x4_epi32(y, 2));
        store(3, _mm512_extracti32x4_epi32(y, 3));
    }
}
#include "cpu/integer_deform_columns_rows.inl"
}  // namespace avx512
#pragma GCC pop_options
#endif

struct Kernel {
    decltype(&scalar::sample_row) row;
    ptrdiff_t widest;
};

Kernel kernel() {
    [[maybe_unused]] const igemm::Isa isa = igemm::isa();
#if defined(__x86_64__)
    if (isa >= igemm::Isa::kAvx512) return {avx512::sample_row, avx512::kWidest};
    if (isa >= igemm::Isa::kAvx2) return {avx2::sample_row, avx2::kWidest};
#endif
    return {scalar::sample_row, scalar::kWidest};
}

}  // namespace

void integer_deform_columns(const Image<const int16_t>& x, const Strided<int32_t>& offset, const Strided<int16_t>* mask,
                            int groups, const Image<int16_t>& out) {
    if (x.n * x.c * x.h * x.w == 0) return;
    const Kernel chosen = kernel();
    const Chunks chunks(x.c, groups, chosen.widest);
    Bordered bordered(x.c, x.h, x.w);
    for (ptrdiff_t n = 0; n < x.n; ++n) {
        in_parallel(x.h, [&](Tasks& tasks) {
            for (ptrdiff_t row; tasks.take(row);) bordered.copy_row(x, n, row);
        });
        in_parallel(x.h, [&](Tasks& tasks) {
            Places places(chunks.count());
            std::vector<int16_t> last(kColumnTaps * x.c + kChunk);
            for (ptrdiff_t row; tasks.take(row);) {
                chosen.row({bordered, chunks, offset, mask}, n, row, places, last, out);
            }
        });
    }
}

}  // namespace sparsecodec
