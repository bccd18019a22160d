#include "cpu/integer_gdn.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "check.h"
#include "common/parallel.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sparsecodec {
namespace {

using integer::kGdnColumns;
using integer::kGdnPixels;

constexpr std::ptrdiff_t kTask = 64;  // pixels of a task

namespace scalar {
constexpr int kLanes = 2, kRows = 2;
typedef double Doubles __attribute__((vector_size(16)));
inline Doubles fused(Doubles a, Doubles b, Doubles sum) { return a * b + sum; }
inline Doubles root(Doubles v) { return Doubles{std::sqrt(v[0]), std::sqrt(v[1])}; }
inline Doubles below(Doubles v) { return Doubles{std::floor(v[0]), std::floor(v[1])}; }
#include "cpu/integer_gdn_pixels.inl"
}  // namespace scalar

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
constexpr int kLanes = 4, kRows = 4;
typedef __m256d Doubles;
inline Doubles fused(Doubles a, Doubles b, Doubles sum) { return _mm256_fmadd_pd(a, b, sum); }
inline Doubles root(Doubles v) { return _mm256_sqrt_pd(v); }
inline Doubles below(Doubles v) { return _mm256_floor_pd(v); }
#include "cpu/integer_gdn_pixels.inl"
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
namespace avx512 {
constexpr int kLanes = 8, kRows = 8;
typedef __m512d Doubles;
inline Doubles fused(Doubles a, Doubles b, Doubles sum) { return _mm512_fmadd_pd(a, b, sum); }
inline Doubles root(Doubles v) { return _mm512_maskz_sqrt_pd(0xff, v); }
inline Doubles below(Doubles v) {
    return _mm512_maskz_roundscale_pd(0xff, v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}
#include "cpu/integer_gdn_pixels.inl"
}  // namespace avx512
#pragma GCC pop_options
#endif

integer::GdnSums sums_for(igemm::Isa isa) {
#if defined(__x86_64__)
    if (isa >= igemm::Isa::kAvx512) return avx512::sums;
    if (isa >= igemm::Isa::kAvx2) return avx2::sums;
#endif
    return scalar::sums;
}

template <class Out>
integer::GdnFinish<Out> finish_for(igemm::Isa isa) {
#if defined(__x86_64__)
    if (isa >= igemm::Isa::kAvx512) return avx512::finish<Out>;
    if (isa >= igemm::Isa::kAvx2) return avx2::finish<Out>;
#endif
    return scalar::finish<Out>;
}

}  // namespace

IntegerGdn::IntegerGdn(const std::vector<std::int64_t>& beta, const std::vector<std::int32_t>& gamma,
                       const std::vector<std::int32_t>& shift, bool inverse)
    : channels_(static_cast<int>(beta.size())), inverse_(inverse), isa_(igemm::isa()) {
    constexpr std::int64_t kLimit = std::int64_t{1} << 52;
    const std::ptrdiff_t c = channels_, blocks = (c + kGdnColumns - 1) / kGdnColumns;
    const int low = inverse ? 1 : 0, high = inverse ? 48 : 35;
    gamma_.assign(blocks * c * kGdnColumns, 0.0);
    beta_.assign(blocks * kGdnColumns, 0.0);
    scale_.assign(blocks * kGdnColumns, 1.0);
    for (std::ptrdiff_t i = 0; i < c; ++i) {
        const std::int32_t* const row = gamma.data() + i * c;
        const std::ptrdiff_t block = i / kGdnColumns, column = i % kGdnColumns;
        bool fits = beta[i] >= 0 && beta[i] <= kLimit;
        std::int64_t weights = 0;  // below 2^54 for any int32 and up to 2^23 channels
        for (std::ptrdiff_t j = 0; j < c; ++j) {
            fits = fits && row[j] >= 0;
            weights += row[j];
            gamma_[(block * c + j) * kGdnColumns + column] = row[j];
        }
        fits = fits && weights <= (kLimit - beta[i]) >> 30;
        SC_CHECK(fits, "beta, gamma of channel ", i, ": not in 0 <= beta + 2^30 sum gamma <= 2^52");
        SC_CHECK(shift[i] >= low && shift[i] <= high, "shift holds ", shift[i], " (needs ", low, " to ", high, ")");
        beta_[i] = static_cast<double>(beta[i]);
        scale_[i] = std::ldexp(1.0, inverse ? -shift[i] : shift[i] + 1);
    }
}

template <class Out>
void IntegerGdn::run(const Image<const std::int16_t>& x, const Image<Out>& out) const {
    const auto sums = sums_for(isa_);
    const auto finish = finish_for<Out>(isa_);
    const std::ptrdiff_t c = channels_, total = x.n * x.h * x.w;
    in_parallel((total + kTask - 1) / kTask, [&](Tasks& tasks) {
        std::vector<double> squares(kTask * c);
        double norms[kGdnPixels * kGdnColumns];
        const std::int16_t* from[kTask];
        Out* to[kTask];
        for (std::ptrdiff_t task; tasks.take(task);) {
            const std::ptrdiff_t count = std::min(kTask, total - task * kTask);
            for (std::ptrdiff_t i = 0; i < count; ++i) {
                const std::ptrdiff_t at = task * kTask + i, n = at / (x.h * x.w), y = at / x.w % x.h, column = at % x.w;
                from[i] = x.pixel(n, y, column);
                to[i] = out.pixel(n, y, column);
                for (std::ptrdiff_t j = 0; j < c; ++j) {
                    squares[i * c + j] = std::int32_t{from[i][j]} * std::int32_t{from[i][j]};
                }
            }
            for (std::ptrdiff_t start = 0; start < c; start += kGdnColumns) {
                const integer::GdnBlock block{gamma_.data() + start * c, beta_.data() + start, scale_.data() + start};
                const int width = static_cast<int>(std::min<std::ptrdiff_t>(kGdnColumns, c - start));
                // Behind the last pixel squares are those of an earlier task, and their norms are not read.
                for (std::ptrdiff_t i = 0; i < count; i += kGdnPixels) {
                    sums(squares.data() + i * c, static_cast<int>(c), block, norms);
                    for (std::ptrdiff_t k = i; k < std::min(count, i + kGdnPixels); ++k) {
                        const double* const norm = norms + (k - i) * kGdnColumns;
                        finish(from[k] + start, norm, block.scale, width, inverse_, to[k] + start);
                    }
                }
            }
        }
    });
}

template void IntegerGdn::run(const Image<const std::int16_t>&, const Image<std::int16_t>&) const;
template void IntegerGdn::run(const Image<const std::int16_t>&, const Image<std::int32_t>&) const;

}  // namespace sparsecodec
