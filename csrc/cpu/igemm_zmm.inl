// Register tiles of up to 12 pixels x 32 channels in 24 zmm registers. Included after igemm_zmm_finish.inl by a file
// that defines for its row type In:
//     int steps(int k)                                    how many times `multiply_add` runs over k elements
//     __m512 broadcast(const In* x, ptrdiff_t s)          step s of one pixel
//     __m512 broadcast_tail(const In* x, ptrdiff_t s)     the last step, when k is no multiple of a step
//     __m512 multiply_add(__m512 x, __m512 w, __m512 acc)

constexpr int kPixels = 12;

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
        for (int i = 0; i < P * V; ++i) _mm512_store_ps(sums + i * 16, gate<In>(_mm512_load_ps(sums + i * 16)));
#pragma GCC unroll 12
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) acc[p][v] = _mm512_load_ps(sums + (p * V + v) * 16);
        }
    } else if (activation.slope != 1.0f) {
        const auto apply = [&](auto function) {
#pragma GCC unroll 12
            for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
                for (int v = 0; v < V; ++v) acc[p][v] = function(acc[p][v]);
            }
        };
        const __m512 slope = splat(activation.slope);
        if (activation.slope == 0.0f) {
            apply([&](__m512 v) { return relu(v); });
        } else if (activation.slope > 0.0f && activation.slope < 1.0f) {
            apply([&](__m512 v) { return leaky_relu(v, slope); });
        } else {
            apply([&](__m512 v) { return steep_relu(v, slope); });
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
                shuffle_pixel(sums + p * kBlock, first + p, args);
            } else {
                scatter_pixel(sums + p * kBlock, first + p, args);
            }
        }
        return;
    }
    const Place::Segment& segment = place.segments[0];
    const std::ptrdiff_t at = segment.offset + segment.row * args.row_stride;
    Out* const* const out = args.epilogue->out + first;
    const __mmask16 mask[2] = {first_lanes(place.n), first_lanes(place.n - 16)};
    const auto add = [&](const Out* const* more) {
#pragma GCC unroll 12
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) {
                acc[p][v] = _mm512_add_ps(load_values(more[first + p] + at + v * 16, mask[v]), acc[p][v]);
            }
        }
    };
    if (args.epilogue->residual) add(args.epilogue->residual);
    if (args.epilogue->shortcut) add(args.epilogue->shortcut);
    if (const float* const scale = args.epilogue->scale) {
        __m512 factor[V];
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) factor[v] = load_values(scale + segment.offset + v * 16, mask[v]);
#pragma GCC unroll 12
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) acc[p][v] = _mm512_mul_ps(acc[p][v], factor[v]);
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
