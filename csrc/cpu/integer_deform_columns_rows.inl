// Included by integer_deform_columns.cpp under each target pragma, behind blend() of that instruction set.

// Row `row` of image n.
void sample_row(const Row& from, ptrdiff_t n, ptrdiff_t row, Places& at, std::vector<int16_t>& last,
                const Image<int16_t>& out) {
    const Bordered& x = from.x;
    const Chunks& chunks = from.chunks;
    const ptrdiff_t count = static_cast<ptrdiff_t>(chunks.count()), columns = kColumnTaps * x.c;
    const int32_t h = static_cast<int32_t>(x.h), w = static_cast<int32_t>(x.w);
    const int32_t y = static_cast<int32_t>(row), pitch = w + 2 * static_cast<int32_t>(kBorder);
    constexpr int32_t first = -static_cast<int32_t>(kBorder);
    const ptrdiff_t step = from.offset.stride_c;
    for (int32_t z = 0; z < w; ++z) {
        const int32_t* const by =
            from.offset.data + n * from.offset.stride_n + row * from.offset.stride_h + z * from.offset.stride_w;
        for (ptrdiff_t k = 0; k < count; ++k) {
            at.rows[k] = by[2 * chunks.moved[k] * step];
            at.columns[k] = by[(2 * chunks.moved[k] + 1) * step];
        }
        for (ptrdiff_t k = 0; k < count; ++k) {
            const int32_t down = std::clamp(chunks.tap_row[k] + y + (at.rows[k] >> kPositionBits), first, h);
            const int32_t across = std::clamp(chunks.tap_column[k] + z + (at.columns[k] >> kPositionBits), first, w);
            at.pixel[k] = down * pitch + across;
            at.down[k] = weights(at.rows[k]);
            at.across[k] = weights(at.columns[k]);
        }
        if (from.mask) {
            const int16_t* const factors =
                from.mask->data + n * from.mask->stride_n + row * from.mask->stride_h + z * from.mask->stride_w;
            for (ptrdiff_t k = 0; k < count; ++k) {
                at.factor[k] = factors[chunks.moved[k] * from.mask->stride_c] & 0xffff;
            }
        }
        int16_t* const to = out.pixel(n, row, z);
        if (z + 1 < w && out.stride_w == columns) {  // what it writes behind the pixel is the next one's to write
            blend(x, chunks, at, from.mask != nullptr, to);
        } else {
            blend(x, chunks, at, from.mask != nullptr, last.data());
            std::copy_n(last.data(), columns, to);
        }
    }
}
