// Vectors of 16 floats to and from rows of float or bf16. Included inside a namespace and under a target pragma with
// AVX-512. Masked forms throughout: those without a mask make GCC 12 warn.

inline __mmask16 first_lanes(int n) { return n >= 16 ? 0xffff : static_cast<__mmask16>((1u << (n < 0 ? 0 : n)) - 1u); }

inline __m512 load(const float* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
inline __m512 load(const igemm::bf16* p, __mmask16 mask) {
    const __m512i bits = _mm512_maskz_cvtepu16_epi32(mask, _mm256_maskz_loadu_epi16(mask, p));
    return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(mask, bits, 16));
}

inline void store(float* p, __mmask16 mask, __m512 v) { _mm512_mask_storeu_ps(p, mask, v); }

// Rounds as igemm::to_bf16 does.
inline void store(igemm::bf16* p, __mmask16 mask, __m512 v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_maskz_srli_epi32(mask, _mm512_maskz_slli_epi32(mask, bits, 15), 31);
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __m512i quiet = _mm512_or_epi32(bits, _mm512_set1_epi32(0x400000));
    const __m512i either = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), quiet);
    _mm256_mask_storeu_epi16(p, mask, _mm512_maskz_cvtepi32_epi16(mask, _mm512_maskz_srli_epi32(mask, either, 16)));
}
