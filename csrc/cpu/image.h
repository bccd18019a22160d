// A borrowed NHWC image batch in host memory.
#pragma once

#include <cstddef>

namespace sparsecodec {

template <class T>
struct Image {
    T* data = nullptr;  // host, borrowed
    std::ptrdiff_t n = 0, c = 0, h = 0, w = 0;
    std::ptrdiff_t stride_n = 0, stride_h = 0, stride_w = 0;  // elements; channels are innermost, stride 1

    T* pixel(std::ptrdiff_t in, std::ptrdiff_t iy, std::ptrdiff_t ix) const {
        return data + in * stride_n + iy * stride_h + ix * stride_w;
    }
    operator Image<const T>() const { return {data, n, c, h, w, stride_n, stride_h, stride_w}; }
};

}  // namespace sparsecodec
