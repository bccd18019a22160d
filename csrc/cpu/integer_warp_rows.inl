// Included by integer_warp.cpp under each target pragma, behind blend(corners, c, out) of that instruction set.

// Row y of image n. A pixel's samples are asked for kAhead pixels before they are blended: no processor guesses where
// the rows are that a flow has bent. 64 channels of 256x128, flows of some pixels, one thread of an AMD EPYC,
// 2026-11-23: 0.51 instead of 0.81 ms; 4 or 16 ahead made no clear difference.
void warp_row(const Image<const std::int16_t>& x, const Strided<std::int32_t>& flow, std::ptrdiff_t n,
              std::ptrdiff_t y, const Image<std::int16_t>& out) {
    constexpr std::ptrdiff_t kAhead = 8, kCacheLine = 64 / sizeof(std::int16_t);
    Corners waiting[kAhead];
    const std::int32_t* const moved = flow.data + n * flow.stride_n + y * flow.stride_h;
    for (std::ptrdiff_t column = 0; column < x.w + kAhead; ++column) {
        Corners& corners = waiting[column % kAhead];
        if (column >= kAhead) blend(corners, x.c, out.pixel(n, y, column - kAhead));
        if (column >= x.w) continue;
        const std::int32_t* const by = moved + column * flow.stride_w;
        const Neighbours across(column, by[0], x.w), down(y, by[flow.stride_c], x.h);
        corners = {{x.pixel(n, down.low, across.low), x.pixel(n, down.low, across.high),
                    x.pixel(n, down.high, across.low), x.pixel(n, down.high, across.high)},
                   across.weight, down.weight};
        for (std::ptrdiff_t i = 0; i < x.c; i += kCacheLine) {  // what is to the left was asked for by the pixel before
            __builtin_prefetch(corners.at[1] + i);
            __builtin_prefetch(corners.at[3] + i);
        }
    }
}
