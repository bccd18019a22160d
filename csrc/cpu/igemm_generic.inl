// Block kernels in plain loops. Included like igemm_epilogue.inl, after it.

// One pixel of a float block: sums [n], pinned order.
inline void sum_pixel(const BlockArgs<float, float>& args, int i, float* sums) {
    const int n = args.place->n;
    for (int c = 0; c < n; ++c) sums[c] = args.bias[c];
    const float* w = args.weights;
    for (int tap = 0; tap < args.taps; ++tap) {
        const float* x = args.rows[tap * args.tap_step + i];
        for (int k = 0; k < args.k; ++k, w += kBlock) {
            for (int c = 0; c < n; ++c) sums[c] = std::fma(x[k], w[c], sums[c]);
        }
    }
}

// One pixel of a bf16 block.
template <class Out>
void sum_pixel(const BlockArgs<bf16, Out>& args, int i, float* sums) {
    for (int c = 0; c < kBlock; ++c) sums[c] = args.bias[c];
    const bf16* w = args.weights;
    for (int tap = 0; tap < args.taps; ++tap) {
        const bf16* x = args.rows[tap * args.tap_step + i];
        for (int k = 0; k < args.k; k += 2, w += 2 * kBlock) {
            const float x0 = to_float(x[k]);
            const float x1 = k + 1 < args.k ? to_float(x[k + 1]) : 0.0f;
            for (int c = 0; c < kBlock; ++c) sums[c] += x0 * to_float(w[2 * c]) + x1 * to_float(w[2 * c + 1]);
        }
    }
}

template <class In, class Out>
void block_generic(const BlockArgs<In, Out>& args) {
    for (int i = 0; i < args.m; ++i) {
        float sums[kBlock];
        sum_pixel(args, i, sums);
        finish_pixel(sums, i, args);
    }
}
