// Sums to their places, sixteen columns at a time. Included like igemm_epilogue.inl, after it, by a file that defines
//     void store_values(bf16* p, __m512 v)                    rounded to nearest; sixteen values
//     void store_values(bf16* p, __mmask16 mask, __m512 v)
// if it stores bf16.

inline __m512 load_values(const float* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
inline __m512 load_values(const bf16* p, __mmask16 mask) {
    const __m512i bits = _mm512_maskz_cvtepu16_epi32(mask, _mm256_maskz_loadu_epi16(mask, p));
    return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(mask, bits, 16));
}
inline void store_values(float* p, __mmask16 mask, __m512 v) { _mm512_mask_storeu_ps(p, mask, v); }
inline void store_values(float* p, __m512 v) { _mm512_storeu_ps(p, v); }

inline __mmask16 first_lanes(int n) { return n >= 16 ? 0xffff : static_cast<__mmask16>((1u << (n < 0 ? 0 : n)) - 1u); }

inline __m512 splat(float value) { return _mm512_set1_ps(value); }

// The parts of the loop `activate`, bit for bit. The maximum is its second operand if both are zeros or one is NaN.
inline __m512 relu(__m512 v) { return _mm512_max_ps(_mm512_setzero_ps(), v); }
inline __m512 leaky_relu(__m512 v, __m512 slope) {  // 0 < slope < 1: the product is larger where v is negative
    return _mm512_max_ps(_mm512_mul_ps(v, slope), v);
}
inline __m512 steep_relu(__m512 v, __m512 slope) {
    return _mm512_mask_mul_ps(v, _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_LT_OQ), v, slope);
}

// The scalar sigmoid_gate, sixteen at a time, operation by operation.
inline __m512 sigmoid_gate(__m512 x) {
    __m512 t = _mm512_mul_ps(x, splat(-4.0f));
    t = _mm512_min_ps(splat(88.0f), _mm512_max_ps(splat(-87.0f), t));  // t stands second: NaN passes
    const __m512 z = _mm512_fmadd_ps(t, splat(1.44269502f), splat(12582912.0f));
    const __m512 n = _mm512_sub_ps(z, splat(12582912.0f));
    __m512 r = _mm512_fmadd_ps(n, splat(-0.693145752f), t);
    r = _mm512_fmadd_ps(n, splat(-1.42860677e-06f), r);
    __m512 p = _mm512_fmadd_ps(splat(1.98412698e-4f), r, splat(1.38888889e-3f));
    p = _mm512_fmadd_ps(p, r, splat(8.33333333e-3f));
    p = _mm512_fmadd_ps(p, r, splat(4.16666667e-2f));
    p = _mm512_fmadd_ps(p, r, splat(1.66666667e-1f));
    p = _mm512_fmadd_ps(p, r, splat(0.5f));
    p = _mm512_fmadd_ps(p, r, splat(1.0f));
    p = _mm512_fmadd_ps(p, r, splat(1.0f));
    const __m512i exponent = _mm512_sub_epi32(_mm512_castps_si512(z), _mm512_set1_epi32(0x4b400000 - 127));
    const __m512 scale = _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23));
    return _mm512_div_ps(x, _mm512_add_ps(splat(1.0f), _mm512_mul_ps(p, scale)));
}

// For rows of bf16, which keep 8 bits: powers of two by their Taylor series to r^4 and the reciprocal to 14 bits,
// relative error < 2e-4. 1024 channels of 48 pixels, one core of a busy Zen 4 machine, 2026-11: 13.5 -> 7.3 us.
inline __m512 rough_sigmoid_gate(__m512 x) {
    __m512 z = _mm512_mul_ps(x, splat(-5.77078016f));  // -4 / ln 2
    z = _mm512_min_ps(splat(126.0f), _mm512_max_ps(splat(-126.0f), z));  // z stands second: NaN passes
    const __m512 n = _mm512_roundscale_ps(z, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = _mm512_sub_ps(z, n);
    __m512 p = _mm512_fmadd_ps(splat(9.61812911e-3f), r, splat(5.55041087e-2f));
    p = _mm512_fmadd_ps(p, r, splat(2.40226507e-1f));
    p = _mm512_fmadd_ps(p, r, splat(6.93147181e-1f));
    p = _mm512_fmadd_ps(p, r, splat(1.0f));
    return _mm512_mul_ps(x, _mm512_rcp14_ps(_mm512_add_ps(splat(1.0f), _mm512_scalef_ps(p, n))));
}

template <class In>
__m512 gate(__m512 x) {
    return std::is_same_v<In, bf16> ? rough_sigmoid_gate(x) : sigmoid_gate(x);
}

// As `place_pixel` for a scattered block: sixteen channels of the result at a time, the columns expanded into theirs.
template <class In, class Out>
void scatter_pixel(const float* values, int i, const BlockArgs<In, Out>& args) {  // values: [32 + 16 readable]
    const Place& place = *args.place;
    const Epilogue<Out>& epilogue = *args.epilogue;
    Out* const out = epilogue.out[i];
    const Out* const residual = epilogue.residual[i];
    const Out* const shortcut = epilogue.shortcut ? epilogue.shortcut[i] : nullptr;
    const float* const scale = epilogue.scale;
    const std::int32_t end = place.end;
    const std::uint16_t* mask = place.masks.data();
    for (std::int32_t c = place.begin; c < end; c += 16, ++mask) {
        const __mmask16 here = first_lanes(end - c), added = *mask;
        const __m512 old = load_values(residual + c, here);
        __m512 sum = _mm512_mask_add_ps(old, added, old, _mm512_maskz_expand_ps(added, _mm512_loadu_ps(values)));
        if (shortcut) sum = _mm512_add_ps(load_values(shortcut + c, here), sum);
        if (scale) sum = _mm512_mul_ps(sum, load_values(scale + c, here));
        store_values(out + c, here, sum);
        values += __builtin_popcount(added);
    }
}

// As `place_pixel` for a block in several segments.
template <class In, class Out>
void shuffle_pixel(const float* values, int i, const BlockArgs<In, Out>& args) {  // values: [32 + 16 readable]
    const Epilogue<Out>& epilogue = *args.epilogue;
    Out* const out = epilogue.out[i];
    const Out* const residual = epilogue.residual ? epilogue.residual[i] : nullptr;
    const Out* const shortcut = epilogue.shortcut ? epilogue.shortcut[i] : nullptr;
    const float* const scale = epilogue.scale;
    for (const Place::Segment& segment : args.place->segments) {
        const std::ptrdiff_t at = segment.offset + segment.row * args.row_stride;
        for (int c = 0; c < segment.end - segment.begin; c += 16) {
            const __mmask16 here = first_lanes(segment.end - segment.begin - c);
            __m512 sum = _mm512_loadu_ps(values + segment.begin + c);
            if (residual) sum = _mm512_add_ps(load_values(residual + at + c, here), sum);
            if (shortcut) sum = _mm512_add_ps(load_values(shortcut + at + c, here), sum);
            if (scale) sum = _mm512_mul_ps(sum, load_values(scale + segment.offset + c, here));
            store_values(out + at + c, here, sum);
        }
    }
}

// `FinishKernel` for V * 16 columns.
template <class In, class Out, int V>
void finish_columns(const BlockArgs<In, Out>& args, float* sums) {
    const Place& place = *args.place;
    const Epilogue<Out>& epilogue = *args.epilogue;
    const Activation& activation = epilogue.activation;
    const __m512 slope = splat(activation.slope);
    const auto activated = [&](__m512 v) {
        if (activation.sigmoid_gate) return gate<In>(v);
        if (activation.slope == 1.0f) return v;
        if (activation.slope == 0.0f) return relu(v);
        return activation.slope > 0.0f && activation.slope < 1.0f ? leaky_relu(v, slope) : steep_relu(v, slope);
    };
    if (place.segments.size() != 1) {
        for (int i = 0; i < args.m; ++i) {
            float* const row = sums + i * kBlock;
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) _mm512_storeu_ps(row + v * 16, activated(_mm512_loadu_ps(row + v * 16)));
            if (place.index.empty()) {
                shuffle_pixel(row, i, args);
            } else {
                scatter_pixel(row, i, args);
            }
        }
        return;
    }
    const Place::Segment& segment = place.segments[0];
    const std::ptrdiff_t at = segment.offset + segment.row * args.row_stride;
    const __mmask16 mask[2] = {first_lanes(place.n), first_lanes(place.n - 16)};
    const bool whole = place.n == V * 16;
    for (int i = 0; i < args.m; ++i) {
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
            const std::ptrdiff_t c = at + v * 16;
            __m512 sum = activated(_mm512_loadu_ps(sums + i * kBlock + v * 16));
            if (epilogue.residual) sum = _mm512_add_ps(load_values(epilogue.residual[i] + c, mask[v]), sum);
            if (epilogue.shortcut) sum = _mm512_add_ps(load_values(epilogue.shortcut[i] + c, mask[v]), sum);
            if (epilogue.scale) {
                sum = _mm512_mul_ps(sum, load_values(epilogue.scale + segment.offset + v * 16, mask[v]));
            }
            if (whole) {  // apart: masked stores of 16-bit values are slow
                store_values(epilogue.out[i] + c, sum);
            } else {
                store_values(epilogue.out[i] + c, mask[v], sum);
            }
        }
    }
}

template <class In, class Out>
void finish(const BlockArgs<In, Out>& args, float* sums) {
    args.place->n > 16 ? finish_columns<In, Out, 2>(args, sums) : finish_columns<In, Out, 1>(args, sums);
}
