// The depthwise row in plain loops, for the instruction set of the enclosing target pragma. Included in a namespace.

template <class T>
void row(const DepthwiseArgs& args, T* out, std::ptrdiff_t out_stride) {
    for (int p = 0; p < args.m; ++p) {
        for (int c = 0; c < args.channels; c += kLanes) {
            float acc[kLanes];
            for (int l = 0; l < kLanes; ++l) acc[l] = args.bias[c + l];
            for (int tap = 0; tap < 9; ++tap) {
                const float* const x = args.rows[tap / 3] + (p + tap % 3) * args.stride + c;
                const float* const w = args.weights + tap * args.stride + c;
                for (int l = 0; l < kLanes; ++l) acc[l] = std::fma(x[l], w[l], acc[l]);
            }
            for (int l = 0; l < kLanes; ++l) {
                const float scaled = args.slope == 0.0f ? 0.0f : acc[l] * args.slope;
                igemm::store(out + p * out_stride + c + l, acc[l] < 0.0f ? scaled : acc[l]);
            }
        }
    }
}
