// Register tiles of up to 12 pixels x 32 channels in 24 zmm registers. Included like igemm_epilogue.inl, after it, by a
// file that defines for its row type In:
//     int steps(int k)                                    how many times `multiply_add` runs over k elements
//     __m512 broadcast(const In* x, ptrdiff_t s)          step s of one pixel
//     __m512 broadcast_tail(const In* x, ptrdiff_t s)     the last step, when k is no multiple of a step
//     __m512 multiply_add(__m512 x, __m512 w, __m512 acc)

constexpr int kPixels = 12;

inline __m512 load_values(const float* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
inline __m512 load_values(const bf16* p, __mmask16 mask) {
    const __m512i bits = _mm512_maskz_cvtepu16_epi32(mask, _mm256_maskz_loadu_epi16(mask, p));
    return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(mask, bits, 16));
}
inline void store_values(float* p, __mmask16 mask, __m512 v) { _mm512_mask_storeu_ps(p, mask, v); }
inline void store_values(float* p, __m512 v) { _mm512_storeu_ps(p, v); }

inline __mmask16 first_lanes(int n) { return n >= 16 ? 0xffff : static_cast<__mmask16>((1u << (n < 0 ? 0 : n)) - 1u); }

// As the loop `activate`. keep_product: all ones, or zero if slope is 0, because -inf * 0 is not 0.
inline __m512 activate(__m512 v, __m512 slope, __m512i keep_product) {
    const __mmask16 negative = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_LT_OQ);
    const __m512i product = _mm512_castps_si512(_mm512_mul_ps(v, slope));
    return _mm512_mask_mov_ps(v, negative, _mm512_castsi512_ps(_mm512_and_si512(product, keep_product)));
}

inline __m512 splat(float value) { return _mm512_set1_ps(value); }

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

// As `place_pixel` for a scattered block: sixteen channels of the result at a time, the columns expanded into theirs.
template <class In, class Out>
void scatter_pixel(const float* values, int i, const BlockArgs<In, Out>& args) {  // values: [32 + 16 readable]
    const Place& place = *args.place;
    Out* const out = args.epilogue->out[i];
    const Out* const residual = args.epilogue->residual[i];
    std::size_t chunk = 0;
    for (std::int32_t c = place.begin; c < place.end; c += 16, ++chunk) {
        const __mmask16 here = first_lanes(place.end - c), added = place.masks[chunk];
        const __m512 old = load_values(residual + c, here);
        const __m512 sums = _mm512_maskz_expand_ps(added, _mm512_loadu_ps(values));
        store_values(out + c, here, _mm512_mask_add_ps(old, added, old, sums));
        values += __builtin_popcount(added);
    }
}

// Pixels [first, first + P), V * 16 columns. The last register tile of a block may be partly padding.
template <class In, class Out, int P, int V>
void tile(const BlockArgs<In, Out>& args, int first) {
    __m512 acc[P][V];  // [P, 16 V]
#pragma GCC unroll 12
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) acc[p][v] = _mm512_loadu_ps(args.bias + v * 16);
    }
    const std::ptrdiff_t whole = steps(args.k);
    const char* w = reinterpret_cast<const char*>(args.weights);
    for (int tap = 0; tap < args.taps; ++tap) {
        const In* x[P];
#pragma GCC unroll 12
        for (int p = 0; p < P; ++p) x[p] = args.rows[tap * args.tap_step + first + p];
        for (std::ptrdiff_t s = 0; s < whole; ++s, w += kBlock * 4) {
            __m512 wv[V];
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) wv[v] = _mm512_load_ps(w + v * 64);
#pragma GCC unroll 12
            for (int p = 0; p < P; ++p) {
                const __m512 xs = broadcast(x[p], s);
#pragma GCC unroll 2
                for (int v = 0; v < V; ++v) acc[p][v] = multiply_add(xs, wv[v], acc[p][v]);
            }
        }
        if (has_tail<In>(args.k)) {
#pragma GCC unroll 12
            for (int p = 0; p < P; ++p) {
                const __m512 xs = broadcast_tail(x[p], whole);
#pragma GCC unroll 2
                for (int v = 0; v < V; ++v) acc[p][v] = multiply_add(xs, _mm512_load_ps(w + v * 64), acc[p][v]);
            }
            w += kBlock * 4;
        }
    }

    const Place& place = *args.place;
    const Activation activation = args.epilogue->activation;
    if (activation.sigmoid_gate) {  // through memory: its temporaries need the registers
        alignas(64) float sums[P * V * 16];
#pragma GCC unroll 12
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) _mm512_store_ps(sums + (p * V + v) * 16, acc[p][v]);
        }
        for (int i = 0; i < P * V; ++i) _mm512_store_ps(sums + i * 16, sigmoid_gate(_mm512_load_ps(sums + i * 16)));
#pragma GCC unroll 12
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) acc[p][v] = _mm512_load_ps(sums + (p * V + v) * 16);
        }
    } else if (activation.slope != 1.0f) {
        const __m512 slope = _mm512_set1_ps(activation.slope);
        const __m512i keep_product = _mm512_set1_epi32(activation.slope == 0.0f ? 0 : -1);
#pragma GCC unroll 12
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) acc[p][v] = activate(acc[p][v], slope, keep_product);
        }
    }
    if (place.segments.size() != 1) {
        alignas(64) float sums[P * kBlock + 16];
#pragma GCC unroll 12
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) _mm512_store_ps(sums + p * kBlock + v * 16, acc[p][v]);
        }
        _mm512_store_ps(sums + P * kBlock, _mm512_setzero_ps());
        for (int p = 0; p < P; ++p) {
            if (place.index.empty()) {
                place_pixel(sums + p * kBlock, first + p, args);
            } else {
                scatter_pixel(sums + p * kBlock, first + p, args);
            }
        }
        return;
    }
    const std::ptrdiff_t at = place.segments[0].offset + place.segments[0].row * args.row_stride;
    Out* const* const out = args.epilogue->out + first;
    const __mmask16 mask[2] = {first_lanes(place.n), first_lanes(place.n - 16)};
    if (args.epilogue->residual) {
        const Out* const* const residual = args.epilogue->residual + first;
#pragma GCC unroll 12
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) {
                acc[p][v] = _mm512_add_ps(load_values(residual[p] + at + v * 16, mask[v]), acc[p][v]);
            }
        }
    }
    if (place.n == V * 16) {  // apart: masked stores of 16-bit values are slow
#pragma GCC unroll 12
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) store_values(out[p] + at + v * 16, acc[p][v]);
        }
    } else {
#pragma GCC unroll 12
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) store_values(out[p] + at + v * 16, mask[v], acc[p][v]);
        }
    }
}

template <class In, class Out, int V, int... P>
void tiles(const BlockArgs<In, Out>& args, std::integer_sequence<int, P...>) {
    using Tile = void (*)(const BlockArgs<In, Out>&, int);
    static constexpr Tile kTile[kPixels] = {tile<In, Out, P + 1, V>...};
    for (int first = 0; first < args.m;) {
        const int pixels = next_tile(args.m - first, kPixels);
        kTile[pixels - 1](args, first);
        first += pixels;
    }
}

template <class In, class Out>
void block(const BlockArgs<In, Out>& args) {
    using Pixels = std::make_integer_sequence<int, kPixels>;
    args.place->n > 16 ? tiles<In, Out, 2>(args, Pixels{}) : tiles<In, Out, 1>(args, Pixels{});
}
