// Requantisation of integers on AVX-512 vectors of 16 int32: csrc/common/requantize.h with even and odd lanes apart.
// Included in an anonymous namespace of sparsecodec::integer, under a target pragma. It defines
//     constexpr int kLanes; Vec                               kLanes int32
//     Vec load(const int32_t* p); void store(int32_t* p, Vec)
//     Vec add(Vec, Vec)
//     Vec load_wide(const T* p, int n)                        n lanes are read, of int16_t or int32_t
//     void store_out(T* p, Vec v, int n)                      n lanes are written, saturated to T
//     Factors(const FactorRows&, int column)                  of kLanes columns
//     Vec requantize<kind>(Vec sum, const Factors&)           of columns of this kind
//     struct ResidualShift { ResidualShift(int left); Vec operator()(Vec) const; }

using Vec = __m512i;
constexpr int kLanes = 16;

inline __mmask16 first_lanes(int n) { return n >= kLanes ? 0xffff : static_cast<__mmask16>((1u << n) - 1u); }

inline Vec load(const std::int32_t* p) { return _mm512_loadu_si512(p); }
inline void store(std::int32_t* p, Vec v) { _mm512_storeu_si512(p, v); }
inline Vec add(Vec a, Vec b) { return _mm512_add_epi32(a, b); }

inline __m256i load_values(const std::int16_t* p, int n) {
    if (n >= kLanes) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm256_maskz_loadu_epi16(first_lanes(n), p);
}

struct Factors {  // even lanes and odd lanes apart, because products have 64 bits
    Vec positive, negative, odd_positive, even_shift, odd_shift, even_round, odd_round, high_shift, high_round;

    Factors(const FactorRows& rows, int column)
        : positive(load(rows.positive + column)),
          negative(load(rows.negative + column)),
          odd_positive(_mm512_srli_epi64(positive, 32)) {
        const Vec shift = load(rows.shift + column), one = _mm512_set1_epi64(1);
        even_shift = _mm512_and_si512(shift, _mm512_set1_epi64(0xffffffff));
        odd_shift = _mm512_srli_epi64(shift, 32);
        even_round = _mm512_sllv_epi64(one, _mm512_sub_epi64(even_shift, one));
        odd_round = _mm512_sllv_epi64(one, _mm512_sub_epi64(odd_shift, one));
        high_shift = _mm512_sub_epi32(shift, _mm512_set1_epi32(32));
        high_round = _mm512_sllv_epi32(_mm512_set1_epi32(1), _mm512_sub_epi32(shift, _mm512_set1_epi32(33)));
    }
};

template <Kind kind>
inline Vec requantize(Vec sum, const Factors& f) {
    constexpr __mmask16 odd_lanes = 0xaaaa;
    Vec factor = f.positive, odd_factor = f.odd_positive;
    if constexpr (kind != Kind::kHighLinear) {
        factor = _mm512_mask_blend_epi32(_mm512_movepi32_mask(sum), f.positive, f.negative);
        odd_factor = _mm512_srli_epi64(factor, 32);
    }
    Vec even = _mm512_mul_epi32(sum, factor), odd = _mm512_mul_epi32(_mm512_srli_epi64(sum, 32), odd_factor);
    if constexpr (kind != Kind::kAny) {  // the rounding constant is a multiple of 2^32
        const Vec upper = _mm512_mask_blend_epi32(odd_lanes, _mm512_srli_epi64(even, 32), odd);
        return _mm512_srav_epi32(_mm512_add_epi32(upper, f.high_round), f.high_shift);
    }
    even = _mm512_add_epi64(even, f.even_round);
    odd = _mm512_add_epi64(odd, f.odd_round);
    const Vec bottom = _mm512_set1_epi64(-(1 << 30)), top = _mm512_set1_epi64((1 << 30) - 1);
    const auto clip = [&](Vec v) { return _mm512_max_epi64(_mm512_min_epi64(v, top), bottom); };
    even = clip(_mm512_srav_epi64(even, f.even_shift));
    odd = clip(_mm512_srav_epi64(odd, f.odd_shift));
    return _mm512_mask_blend_epi32(odd_lanes, even, _mm512_slli_epi64(odd, 32));
}

inline Vec load_wide(const std::int32_t* p, int n) { return _mm512_maskz_loadu_epi32(first_lanes(n), p); }
inline Vec load_wide(const std::int16_t* p, int n) {
    return _mm512_cvtepi16_epi32(load_values(p, n));
}

struct ResidualShift {
    bool right;
    __m128i count;
    Vec least, most;  // of what is shifted to the left

    explicit ResidualShift(int left)
        : right(left < 0),
          count(_mm_cvtsi32_si128(right ? -left - 1 : left)),
          least(_mm512_set1_epi32(right ? -(1 << 30) : -((1 << 30) >> left))),
          most(_mm512_set1_epi32(right ? 1 << 30 : (1 << 30) >> left)) {}

    Vec operator()(Vec x) const {
        if (right) {  // (q + 1) >> 1 without the overflow of q + 1
            const Vec q = _mm512_sra_epi32(x, count);
            x = _mm512_add_epi32(_mm512_srai_epi32(q, 1), _mm512_and_si512(q, _mm512_set1_epi32(1)));
        } else {
            x = _mm512_sll_epi32(_mm512_max_epi32(_mm512_min_epi32(x, most), least), count);
        }
        return _mm512_min_epi32(x, _mm512_set1_epi32((1 << 30) - 1));
    }
};

inline void store_out(std::int32_t* p, Vec v, int n) {
    n >= kLanes ? _mm512_storeu_si512(p, v) : _mm512_mask_storeu_epi32(p, first_lanes(n), v);
}
inline void store_out(std::int16_t* p, Vec v, int n) {
    const __m256i narrow = _mm512_cvtsepi32_epi16(v);
    if (n >= kLanes) {  // apart: masked stores of 16-bit values are slow
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow);
    } else {
        _mm256_mask_storeu_epi16(p, first_lanes(n), narrow);
    }
}
