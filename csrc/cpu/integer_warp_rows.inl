// Included by integer_warp.cpp under each target pragma, behind blend(samples, c, out) of that instruction set.

// Row y of image n.
void warp_row(const Image<const std::int16_t>& x, const Strided<std::int32_t>& flow, std::ptrdiff_t n,
              std::ptrdiff_t y, const Image<std::int16_t>& out) {
    const std::int32_t* by = flow.data + n * flow.stride_n + y * flow.stride_h;
    for (std::ptrdiff_t column = 0; column < x.w; ++column, by += flow.stride_w) {
        const Neighbours across(column, by[0], x.w), down(y, by[flow.stride_c], x.h);
        const Corners corners{{x.pixel(n, down.low, across.low), x.pixel(n, down.low, across.high),
                               x.pixel(n, down.high, across.low), x.pixel(n, down.high, across.high)},
                              across.weight, down.weight};
        blend(corners, x.c, out.pixel(n, y, column));
    }
}
