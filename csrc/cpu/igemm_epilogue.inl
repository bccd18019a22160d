// What happens to a finished tile of sums: activation, residual, and the way to its place. Included by every igemm_*.cpp
// inside an anonymous namespace and under that file's target pragma, so each instruction set has its own copy and the
// linker cannot hand AVX-512 code to a CPU without it. Only IEEE operations and explicit fma: the same bits everywhere.

// x * sigmoid(4 x) = x / (1 + exp(-4 x)); exp by range reduction and its Taylor series to r^7, relative error < 2e-7.
inline float sigmoid_gate(float x) {
    constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which stands in the low bits
    constexpr std::uint32_t kMagicBits = 0x4b400000u;
    float t = x * -4.0f;
    t = t < -87.0f ? -87.0f : t;
    t = t > 88.0f ? 88.0f : t;
    const float z = std::fma(t, 1.44269502f, kMagic);
    const float n = z - kMagic;
    float r = std::fma(n, -0.693145752f, t);  // ln 2 in two parts; the first has 12 zero bits at its end
    r = std::fma(n, -1.42860677e-06f, r);
    float p = 1.98412698e-4f;
    p = std::fma(p, r, 1.38888889e-3f);
    p = std::fma(p, r, 8.33333333e-3f);
    p = std::fma(p, r, 4.16666667e-2f);
    p = std::fma(p, r, 1.66666667e-1f);
    p = std::fma(p, r, 0.5f);
    p = std::fma(p, r, 1.0f);
    p = std::fma(p, r, 1.0f);
    std::uint32_t bits;
    std::memcpy(&bits, &z, sizeof bits);
    bits = (bits - kMagicBits + 127u) << 23;
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return x / (1.0f + p * scale);
}

inline void activate(float* values, int n, const Activation& activation) {
    if (activation.sigmoid_gate) {
        for (int i = 0; i < n; ++i) values[i] = sigmoid_gate(values[i]);
        return;
    }
    const float slope = activation.slope;
    if (slope == 1.0f) return;
    if (slope == 0.0f) {  // apart, because -inf * 0 is not 0
        for (int i = 0; i < n; ++i) values[i] = values[i] < 0.0f ? 0.0f : values[i];
    } else {
        for (int i = 0; i < n; ++i) values[i] = values[i] < 0.0f ? values[i] * slope : values[i];
    }
}

// What the result holds where a column adds `value` to a residual of `old`; c: channel of the result.
template <class Out>
float finished(float value, const Epilogue<Out>& epilogue, int i, std::ptrdiff_t at, std::ptrdiff_t c) {
    if (epilogue.shortcut) value += to_float(epilogue.shortcut[i][at]);
    return epilogue.scale ? value * epilogue.scale[c] : value;
}

// values [n], activated sums of pixel i.
template <class In, class Out>
void place_pixel(const float* values, int i, const BlockArgs<In, Out>& args) {
    const Place& place = *args.place;
    const Epilogue<Out>& epilogue = *args.epilogue;
    Out* const out = epilogue.out[i];
    const Out* const residual = epilogue.residual ? epilogue.residual[i] : nullptr;
    if (!place.index.empty()) {
        int column = 0;
        for (std::int32_t at = place.begin; at < place.end; ++at) {
            float value = to_float(residual[at]);
            if (column < place.n && place.index[column] == at) value += values[column++];
            store(out + at, finished(value, epilogue, i, at, at));
        }
        return;
    }
    for (const Place::Segment& segment : place.segments) {
        const std::ptrdiff_t at = segment.offset + segment.row * args.row_stride;
        const int n = segment.end - segment.begin;
        const float* from = values + segment.begin;
        if (!residual && !epilogue.shortcut && !epilogue.scale) {
            for (int c = 0; c < n; ++c) store(out + at + c, from[c]);
            continue;
        }
        for (int c = 0; c < n; ++c) {
            const float value = residual ? to_float(residual[at + c]) + from[c] : from[c];
            store(out + at + c, finished(value, epilogue, i, at + c, segment.offset + c));
        }
    }
}

template <class In, class Out>
void finish_pixel(float* values, int i, const BlockArgs<In, Out>& args) {
    activate(values, args.place->n, args.epilogue->activation);
    place_pixel(values, i, args);
}

template <class In, class Out>
void finish_pixels(const BlockArgs<In, Out>& args, float* sums) {
    for (int i = 0; i < args.m; ++i) finish_pixel(sums + i * kBlock, i, args);
}

// Calls f(the arguments of one block) for each.
template <class In, class Out, class F>
void for_each_block(BlockArgs<In, Out> args, F f) {
    const int blocks = args.blocks;
    args.blocks = 1;
    for (int b = 0; b < blocks; ++b, args.weights += args.block_size, args.bias += kBlock, ++args.place) f(args);
}

#include "cpu/next_tile.inl"
