// The kernels of integer_conv2d on vectors of kLanes int32: sums of a register tile, then what is made of them.
// Included behind requantize_<instruction set>.inl by a file that defines
//     constexpr int kPixels                                   of a tile of two vectors
//     Vec load_weights(const void* p)                         kLanes pairs, or fours of bytes, aligned
//     Vec splat(uint32_t pair)                                a pair of int16 or four bytes, in every lane
//     Vec load_pairs(const int16_t* a, const int16_t* b, int n)  lane c: (a[c], b[c]); n lanes are read
//     Vec multiply_add<bytes>(Vec sum, Vec x, Vec w)          sum += x0 w0 + x1 w1 (+ x2 w2 + x3 w3), modulo 2^32

#include "cpu/next_tile.inl"

// Sums of pixels [first, first + P), V vectors of columns from `column`, into sums [P][kBlock].
template <Products products, int P, int V, class Args>
void sum_tile(const Args& args, int first, int column, std::int32_t* sums) {
    const Block& block = *args.block;
    Vec acc[P][V];
#pragma GCC unroll 12
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) acc[p][v] = load(block.bias.data() + column + v * kLanes);
    }
    constexpr bool bytes = products == Products::kBytes;
    constexpr int kWord = sizeof(std::uint32_t);  // what a column of the weights takes, and a pixel at a time
    const auto* w = static_cast<const std::byte*>(block.weights) + column * kWord;
    const auto step = [&](const auto& word) {
        Vec wv[V];
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) wv[v] = load_weights(w + v * kLanes * kWord);
#pragma GCC unroll 12
        for (int p = 0; p < P; ++p) {
            const Vec x = splat(word(p));
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) acc[p][v] = multiply_add<bytes>(acc[p][v], x, wv[v]);
        }
        w += kBlock * kWord;
    };
    using X = std::conditional_t<bytes, std::uint8_t, std::int16_t>;
    constexpr int kEach = kWord / sizeof(X);
    const std::ptrdiff_t words = bytes ? (args.k + kEach - 1) / kEach : args.k / kEach;
    for (int tap = 0; tap < args.taps; ++tap) {
        const X* x[P];
#pragma GCC unroll 12
        for (int p = 0; p < P; ++p) {
            const std::ptrdiff_t row = tap * args.tap_step + first + p;
            if constexpr (bytes) {
                x[p] = args.bytes + row * words * kEach;
            } else {
                x[p] = args.rows[row];
            }
        }
        for (std::ptrdiff_t s = 0; s < words; ++s) {
            step([&](int p) {
                std::uint32_t word;
                std::memcpy(&word, x[p] + kEach * s, sizeof word);
                return word;
            });
        }
        if (!bytes && args.k % kEach) {
            step([&](int p) { return static_cast<std::uint32_t>(static_cast<std::uint16_t>(x[p][kEach * words])); });
        }
    }
#pragma GCC unroll 12
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) store(sums + p * kBlock + column + v * kLanes, acc[p][v]);
    }
}

// The same of a depthwise block: pairs of kernel rows of one channel instead of pairs of channels. The pixels are
// neighbours in one row, so that a pair is made once for all kernel columns that need it; with a stride they share too
// little to look for it.
template <int P, class Args>
void sum_depthwise(const Args& args, int first, std::int32_t* sums) {
    constexpr int kSpan = 4;  // kernel columns at a time
    const Block& block = *args.block;
    const int kh = args.taps / args.kw, together = args.stride == 1 ? kSpan : 1;
    for (int column = 0; column < block.n; column += kLanes) {
        const int n = block.n - column, channel = block.first_channel + column;
        Vec acc[P];
#pragma GCC unroll 12
        for (int p = 0; p < P; ++p) acc[p] = load(block.bias.data() + column);
        const auto* w = static_cast<const std::int16_t*>(block.weights) + column * 2;
        for (int ky = 0; ky < kh; ky += 2) {
            for (int kx = 0; kx < args.kw; kx += together) {
                const int span = args.kw - kx < together ? args.kw - kx : together;
                const std::int16_t* const* const top = args.rows + (ky * args.kw + kx) * args.tap_step + first;
                const std::ptrdiff_t below = ky + 1 < kh ? args.kw * args.tap_step : 0;  // 0: the weights are 0
                Vec pairs[P + kSpan - 1];
                const auto fill = [&](int i, const std::int16_t* const* at) {
                    pairs[i] = load_pairs(at[0] + channel, at[below] + channel, n);
                };
                for (int p = 0; p < P; ++p) fill(p, top + p);
                for (int i = 1; i < span; ++i) fill(P - 1 + i, top + i * args.tap_step + P - 1);
                for (int i = 0; i < span; ++i, w += kBlock * 2) {
                    const Vec wv = load_weights(w);
#pragma GCC unroll 12
                    for (int p = 0; p < P; ++p) acc[p] = multiply_add<false>(acc[p], pairs[p + i], wv);
                }
            }
        }
#pragma GCC unroll 12
        for (int p = 0; p < P; ++p) store(sums + p * kBlock + column, acc[p]);
    }
}

// kLanes columns, from `c`, of one segment of all pixels; value(p): those of pixel p.
template <class Out, class Residual, class Value>
inline void place(const BlockArgs<Out, Residual>& args, const Segment& segment, int c, int first, int pixels,
                  const ResidualShift& shift, const Value& value) {
    const auto offset = [&](const Places& p) {
        return segment.row * p.stride_h + segment.column * p.stride_w + segment.channel + c;
    };
    const int n = segment.end - segment.begin - c;
    const std::ptrdiff_t to = offset(args.out_places);
    Out* const* const out = args.out + first;
    if (!args.residual) {
        for (int p = 0; p < pixels; ++p) store_out(out[p] + to, value(p), n);
        return;
    }
    const std::ptrdiff_t from = offset(args.residual_places);
    const Residual* const* const residual = args.residual + first;
    for (int p = 0; p < pixels; ++p) {
        store_out(out[p] + to, add(value(p), shift(load_wide(residual[p] + from, n))), n);
    }
}

template <class Out, class Residual>
void place_values(const BlockArgs<Out, Residual>& args, const std::int32_t* values, std::ptrdiff_t stride, int n) {
    const ResidualShift shift(args.residual_shift);
    for (int p = 0; p < args.m; ++p, values += stride) {
        for (int c = 0; c < n; c += kLanes) {
            Vec v = load(values + c);
            if (args.residual) v = add(v, shift(load_wide(args.residual[p] + c, n - c)));
            store_out(args.out[p] + c, v, n - c);
        }
    }
}

template <Kind kind, class Out, class Residual>
void finish_tile(const BlockArgs<Out, Residual>& args, int first, int pixels, std::int32_t* sums) {
    const Block& block = *args.block;
    const ResidualShift shift(args.residual_shift);
    const bool together = block.segments.size() == 1;
    for (int column = 0; column < block.n; column += kLanes) {
        const Factors factors(block.factors(), column);
        const auto value = [&](int p) { return requantize<kind>(load(sums + p * kBlock + column), factors); };
        if (together) {
            place(args, block.segments[0], column, first, pixels, shift, value);
        } else {
            for (int p = 0; p < pixels; ++p) store(sums + p * kBlock + column, value(p));
        }
    }
    if (together) return;
    for (const Segment& segment : block.segments) {
        for (int c = 0; c < segment.end - segment.begin; c += kLanes) {
            place(args, segment, c, first, pixels, shift,
                  [&](int p) { return load(sums + p * kBlock + segment.begin + c); });
        }
    }
}

template <Products products, int P, class Args>
void tile(const Args& args, int first) {
    alignas(64) std::int32_t sums[P * kBlock + kLanes];  // segments are read in whole vectors
    const Block& block = *args.block;
    if constexpr (products == Products::kDepthwise) {
        sum_depthwise<P>(args, first, sums);
    } else {
        for (int column = 0; column < block.n; column += 2 * kLanes) {
            block.n - column > kLanes ? sum_tile<products, P, 2>(args, first, column, sums)
                                      : sum_tile<products, P, 1>(args, first, column, sums);
        }
    }
    switch (block.kind) {
        case Kind::kAny: return finish_tile<Kind::kAny>(args, first, P, sums);
        case Kind::kHigh: return finish_tile<Kind::kHigh>(args, first, P, sums);
        case Kind::kHighLinear: return finish_tile<Kind::kHighLinear>(args, first, P, sums);
    }
}

template <Products products, class Args, int... P>
void tiles(const Args& args, std::integer_sequence<int, P...>) {
    using Tile = void (*)(const Args&, int);
    static constexpr Tile kTile[kPixels] = {tile<products, P + 1, Args>...};
    for (int first = 0; first < args.m;) {
        const int in_row = products == Products::kDepthwise ? args.width - (args.column + first) % args.width : args.m;
        const int pixels = next_tile(std::min(args.m - first, in_row), kPixels);
        kTile[pixels - 1](args, first);
        first += pixels;
    }
}

template <Products products, class Out, class Residual>
void run(const BlockArgs<Out, Residual>& args) {
    tiles<products>(args, std::make_integer_sequence<int, kPixels>{});
}
