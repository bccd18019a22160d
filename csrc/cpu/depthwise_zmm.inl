// The depthwise row in 512-bit vectors. Included in a namespace, under a target pragma with AVX-512, by a file that
// defines
//     void put(T* p, __m512 v)        sixteen values of T, for float and bf16

// P neighbouring pixels, 16 channels from c: each input is loaded once per row for all of them.
template <int P, class T, class F>
inline void tile(const DepthwiseArgs& args, const __m512 (&w)[9], __m512 bias, F activate, int first, int c, T* out,
                 std::ptrdiff_t out_stride) {
    __m512 acc[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) acc[p] = bias;
#pragma GCC unroll 3
    for (int r = 0; r < 3; ++r) {
        const float* const x = args.rows[r] + first * args.stride + c;
        __m512 column[P + 2];
#pragma GCC unroll 8
        for (int i = 0; i < P + 2; ++i) column[i] = _mm512_load_ps(x + i * args.stride);
#pragma GCC unroll 3
        for (int k = 0; k < 3; ++k) {
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) acc[p] = _mm512_fmadd_ps(column[p + k], w[r * 3 + k], acc[p]);
        }
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) put(out + (first + p) * out_stride + c, activate(acc[p]));
}

template <class T, class F>
inline void activated_row(const DepthwiseArgs& args, F activate, T* out, std::ptrdiff_t out_stride) {
    for (int c = 0; c < args.channels; c += kLanes) {
        __m512 w[9];
#pragma GCC unroll 9
        for (int tap = 0; tap < 9; ++tap) w[tap] = _mm512_load_ps(args.weights + tap * args.stride + c);
        const __m512 bias = _mm512_load_ps(args.bias + c);
        int p = 0;
        for (; p + 6 <= args.m; p += 6) tile<6>(args, w, bias, activate, p, c, out, out_stride);
        for (; p + 2 <= args.m; p += 2) tile<2>(args, w, bias, activate, p, c, out, out_stride);
        for (; p < args.m; ++p) tile<1>(args, w, bias, activate, p, c, out, out_stride);
    }
}

// The activations of igemm_zmm_finish.inl.
struct Identity {
    __m512 operator()(__m512 v) const { return v; }
};
struct Relu {
    __m512 operator()(__m512 v) const { return _mm512_max_ps(_mm512_setzero_ps(), v); }
};
struct LeakyRelu {
    __m512 slope;
    __m512 operator()(__m512 v) const { return _mm512_max_ps(_mm512_mul_ps(v, slope), v); }
};
struct SteepRelu {
    __m512 slope;
    __m512 operator()(__m512 v) const {
        return _mm512_mask_mul_ps(v, _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_LT_OQ), v, slope);
    }
};

template <class T>
void row(const DepthwiseArgs& args, T* out, std::ptrdiff_t out_stride) {
    if (args.slope == 1.0f) {
        activated_row(args, Identity{}, out, out_stride);
    } else if (args.slope == 0.0f) {
        activated_row(args, Relu{}, out, out_stride);
    } else if (args.slope > 0.0f && args.slope < 1.0f) {
        activated_row(args, LeakyRelu{_mm512_set1_ps(args.slope)}, out, out_stride);
    } else {
        activated_row(args, SteepRelu{_mm512_set1_ps(args.slope)}, out, out_stride);
    }
}
