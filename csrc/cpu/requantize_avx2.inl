// Requantisation of integers on AVX2 vectors of 8 int32: csrc/common/requantize.h with even and odd lanes apart.
// Included in an anonymous namespace of sparsecodec::integer, under a target pragma. It defines
//     constexpr int kLanes; Vec                               kLanes int32
//     Vec load(const int32_t* p); void store(int32_t* p, Vec)
//     Vec add(Vec, Vec)
//     Vec load_wide(const T* p, int n)                        n lanes are read, of int16_t or int32_t
//     void store_out(T* p, Vec v, int n)                      n lanes are written, saturated to T
//     Factors(const FactorRows&, int column)                  of kLanes columns
//     Vec requantize<kind>(Vec sum, const Factors&)           of columns of this kind
//     struct ResidualShift { ResidualShift(int left); Vec operator()(Vec) const; }

using Vec = __m256i;
constexpr int kLanes = 8;

inline Vec load(const std::int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const Vec*>(p)); }
inline void store(std::int32_t* p, Vec v) { _mm256_storeu_si256(reinterpret_cast<Vec*>(p), v); }
inline Vec add(Vec a, Vec b) { return _mm256_add_epi32(a, b); }

// n of kLanes values, zeros behind them.
inline __m128i load_values(const std::int16_t* p, int n) {
    if (n >= kLanes) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    std::int16_t values[kLanes] = {};
    std::memcpy(values, p, n * sizeof *p);
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
}

struct Factors {  // even lanes and odd lanes apart, because products have 64 bits
    Vec positive, negative, odd_positive, even_shift, odd_shift, even_round, odd_round, high_shift, high_round;

    Factors(const FactorRows& rows, int column)
        : positive(load(rows.positive + column)),
          negative(load(rows.negative + column)),
          odd_positive(_mm256_srli_epi64(positive, 32)) {
        const Vec shift = load(rows.shift + column), one = _mm256_set1_epi64x(1);
        even_shift = _mm256_and_si256(shift, _mm256_set1_epi64x(0xffffffff));
        odd_shift = _mm256_srli_epi64(shift, 32);
        even_round = _mm256_sllv_epi64(one, _mm256_sub_epi64(even_shift, one));
        odd_round = _mm256_sllv_epi64(one, _mm256_sub_epi64(odd_shift, one));
        high_shift = _mm256_sub_epi32(shift, _mm256_set1_epi32(32));
        high_round = _mm256_sllv_epi32(_mm256_set1_epi32(1), _mm256_sub_epi32(shift, _mm256_set1_epi32(33)));
    }
};

// v >> shift of |v| < 2^62, clipped. AVX2 shifts 64 bits by lanes only logically, hence the offset, which becomes
// 2^(62 - shift).
inline Vec shift_and_clip(Vec v, Vec shift) {
    const Vec offset = _mm256_set1_epi64x(std::int64_t{1} << 62);
    v = _mm256_sub_epi64(_mm256_srlv_epi64(_mm256_add_epi64(v, offset), shift), _mm256_srlv_epi64(offset, shift));
    const Vec bottom = _mm256_set1_epi64x(-(1 << 30)), top = _mm256_set1_epi64x((1 << 30) - 1);
    v = _mm256_blendv_epi8(v, top, _mm256_cmpgt_epi64(v, top));
    return _mm256_blendv_epi8(v, bottom, _mm256_cmpgt_epi64(bottom, v));
}

template <Kind kind>
inline Vec requantize(Vec sum, const Factors& f) {
    constexpr int odd_lanes = 0xaa;
    Vec factor = f.positive, odd_factor = f.odd_positive;
    if constexpr (kind != Kind::kHighLinear) {
        factor = _mm256_blendv_epi8(f.positive, f.negative, _mm256_srai_epi32(sum, 31));
        odd_factor = _mm256_srli_epi64(factor, 32);
    }
    Vec even = _mm256_mul_epi32(sum, factor), odd = _mm256_mul_epi32(_mm256_srli_epi64(sum, 32), odd_factor);
    if constexpr (kind != Kind::kAny) {  // the rounding constant is a multiple of 2^32
        const Vec upper = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, odd_lanes);
        return _mm256_srav_epi32(_mm256_add_epi32(upper, f.high_round), f.high_shift);
    }
    even = _mm256_add_epi64(even, f.even_round);
    odd = _mm256_add_epi64(odd, f.odd_round);
    even = shift_and_clip(even, f.even_shift);
    odd = shift_and_clip(odd, f.odd_shift);
    return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), odd_lanes);
}

inline Vec load_wide(const std::int16_t* p, int n) { return _mm256_cvtepi16_epi32(load_values(p, n)); }
inline Vec load_wide(const std::int32_t* p, int n) {
    if (n >= kLanes) return load(p);
    std::int32_t values[kLanes] = {};
    std::memcpy(values, p, n * sizeof *p);
    return load(values);
}

struct ResidualShift {
    bool right;
    __m128i count;
    Vec least, most;  // of what is shifted to the left

    explicit ResidualShift(int left)
        : right(left < 0),
          count(_mm_cvtsi32_si128(right ? -left - 1 : left)),
          least(_mm256_set1_epi32(right ? -(1 << 30) : -((1 << 30) >> left))),
          most(_mm256_set1_epi32(right ? 1 << 30 : (1 << 30) >> left)) {}

    Vec operator()(Vec x) const {
        if (right) {  // (q + 1) >> 1 without the overflow of q + 1
            const Vec q = _mm256_sra_epi32(x, count);
            x = _mm256_add_epi32(_mm256_srai_epi32(q, 1), _mm256_and_si256(q, _mm256_set1_epi32(1)));
        } else {
            x = _mm256_sll_epi32(_mm256_max_epi32(_mm256_min_epi32(x, most), least), count);
        }
        return _mm256_min_epi32(x, _mm256_set1_epi32((1 << 30) - 1));
    }
};

inline void store_out(std::int32_t* p, Vec v, int n) {
    if (n >= kLanes) return store(p, v);
    std::int32_t values[kLanes];
    store(values, v);
    std::memcpy(p, values, n * sizeof *p);
}
inline void store_out(std::int16_t* p, Vec v, int n) {
    const __m128i narrow = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    std::int16_t values[kLanes];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(n >= kLanes ? p : values), narrow);
    if (n < kLanes) std::memcpy(p, values, n * sizeof *p);
}
