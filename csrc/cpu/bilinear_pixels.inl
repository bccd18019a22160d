// Included by bilinear.cpp under each target pragma.

// out[i] = the weighted sum of four samples, i < c.
template <class T>
void blend(const Samples<T>& samples, std::ptrdiff_t c, T* __restrict out) {
    const T *const __restrict a = samples.at[0], *const __restrict b = samples.at[1];
    const T *const __restrict d = samples.at[2], *const __restrict e = samples.at[3];
    const float *const w = samples.weight, wa = w[0], wb = w[1], wd = w[2], we = w[3];
    for (std::ptrdiff_t i = 0; i < c; ++i) {
        const float upper = igemm::to_float(a[i]) * wa + igemm::to_float(b[i]) * wb;
        igemm::store(out + i, (upper + igemm::to_float(d[i]) * wd) + igemm::to_float(e[i]) * we);
    }
}
