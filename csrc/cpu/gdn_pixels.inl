// The elementwise parts of gdn, for the instruction set of the enclosing target pragma. Included in a namespace. Plain
// IEEE operations, so the compiler may vectorise them without changing a bit.

inline void store(float* out, float value) { *out = value; }
inline void store(igemm::bf16* out, float value) { *out = igemm::to_bf16(value); }

template <class T>
void square(const T* __restrict x, int c, T* __restrict squares) {
    for (int i = 0; i < c; ++i) {
        const float value = igemm::to_float(x[i]);
        store(squares + i, value * value);
    }
}

// out may be x.
template <class T>
void normalise(const T* x, const float* __restrict norm, int c, bool inverse, T* out) {
    if (inverse) {
#pragma GCC ivdep
        for (int i = 0; i < c; ++i) store(out + i, igemm::to_float(x[i]) * std::sqrt(norm[i]));
    } else {
#pragma GCC ivdep
        for (int i = 0; i < c; ++i) store(out + i, igemm::to_float(x[i]) / std::sqrt(norm[i]));
    }
}

template <class T>
constexpr GdnPixels<T> pixels() {
    return {square<T>, normalise<T>};
}
