// Tiles of 32 pixels x 32 channels in eight tile registers: four sums, two of pixels, two of weights. Included after
// igemm_zmm_finish.inl by a file that defines, for kTileConfig,
//     struct Tiles                                the tile registers of this thread, from construction to destruction
//         template <int T> void load(const void* rows, ptrdiff_t stride)     16 rows of 64 bytes, `stride` bytes apart
//         template <int T> void store(void* rows, ptrdiff_t stride) const
//         template <int Sum, int X, int W> void multiply_add()               TDPBF16PS

// Whether the next row of a tile is always as far away as the one before.
inline bool equidistant(const bf16* const* rows) {
    const auto step = [&](int i) {
        return reinterpret_cast<std::intptr_t>(rows[i + 1]) - reinterpret_cast<std::intptr_t>(rows[i]);
    };
    std::intptr_t different = 0;
    for (int i = 1; i < kTileRows - 1; ++i) different |= step(i) ^ step(0);
    return different == 0;
}

// Elements [k, k + length) of the first `count` of 16 rows, zeros around them.
inline void copy_tile(const bf16* const* rows, int count, int k, int length, bf16* to) {
    const __mmask32 mask = length >= kTileK ? ~__mmask32{0} : (__mmask32{1} << length) - 1;
    for (int i = 0; i < kTileRows; ++i) {
        const __m512i row = i < count ? _mm512_maskz_loadu_epi16(mask, rows[i] + k) : _mm512_setzero_si512();
        _mm512_store_si512(to + i * kTileK, row);
    }
}

// Sixteen pixels of one tap.
struct TileRows {
    const bf16* const* rows;
    int count;
    bool direct;

    TileRows(const bf16* const* from, int pixels)
        : rows(from), count(std::min(pixels, kTileRows)), direct(count == kTileRows && equidistant(from)) {}

    // Nothing is read past element k_end of a row.
    template <int T>
    void load(Tiles& tiles, int k, int k_end, bf16* staged) const {
        if (direct && k + kTileK <= k_end) {
            const char* const first = reinterpret_cast<const char*>(rows[0]);
            tiles.template load<T>(rows[0] + k, reinterpret_cast<const char*>(rows[1]) - first);
        } else {
            copy_tile(rows, count, k, k_end - k, staged);
            tiles.template load<T>(staged, kTileK * sizeof(bf16));
        }
    }
};

// `pixels` <= 16 P pixels from `first` on, V * 16 columns.
template <class Out, int P, int V>
void tile(Tiles& tiles, const BlockArgs<bf16, Out>& args, int first, int pixels) {
    alignas(64) float sums[P * kTileRows * kBlock + 16];
    alignas(64) bf16 staged[P][kTileRows * kTileK];
    tiles.template load<0>(args.bias, 0);
    if constexpr (V == 2) tiles.template load<1>(args.bias + 16, 0);
    if constexpr (P == 2) tiles.template load<2>(args.bias, 0);
    if constexpr (P == 2 && V == 2) tiles.template load<3>(args.bias + 16, 0);
    const bf16* w = args.weights;
    for (int tap = 0; tap < args.taps; ++tap) {
        const bf16* const* const rows = args.rows + tap * args.tap_step + first;
        const TileRows upper(rows, pixels), lower(rows + (P - 1) * kTileRows, pixels - (P - 1) * kTileRows);
        for (int k = 0; k < args.k; k += kTileK, w += kTileK * kBlock) {
            tiles.template load<6>(w, kBlock * 4);
            if constexpr (V == 2) tiles.template load<7>(w + 32, kBlock * 4);
            upper.template load<4>(tiles, k, args.k, staged[0]);
            tiles.template multiply_add<0, 4, 6>();
            if constexpr (V == 2) tiles.template multiply_add<1, 4, 7>();
            if constexpr (P == 2) {
                lower.template load<5>(tiles, k, args.k, staged[1]);
                tiles.template multiply_add<2, 5, 6>();
                if constexpr (V == 2) tiles.template multiply_add<3, 5, 7>();
            }
        }
    }
    tiles.template store<0>(sums, kBlock * 4);
    if constexpr (V == 2) tiles.template store<1>(sums + 16, kBlock * 4);
    if constexpr (P == 2) tiles.template store<2>(sums + kTileRows * kBlock, kBlock * 4);
    if constexpr (P == 2 && V == 2) tiles.template store<3>(sums + kTileRows * kBlock + 16, kBlock * 4);
    BlockArgs<bf16, Out> part = args;
    const Epilogue<Out> epilogue = args.epilogue->from(first);
    part.m = pixels;
    part.epilogue = &epilogue;
    finish_columns<bf16, Out, V>(part, sums);
}

template <class Out>
void block(const BlockArgs<bf16, Out>& args) {
    Tiles tiles;
    for_each_block(args, [&](const BlockArgs<bf16, Out>& one) {
        const bool wide = one.place->n > 16;
        for (int first = 0; first < one.m; first += 2 * kTileRows) {
            const int pixels = std::min(one.m - first, 2 * kTileRows);
            if (pixels > kTileRows) {
                wide ? tile<Out, 2, 2>(tiles, one, first, pixels) : tile<Out, 2, 1>(tiles, one, first, pixels);
            } else {
                wide ? tile<Out, 1, 2>(tiles, one, first, pixels) : tile<Out, 1, 1>(tiles, one, first, pixels);
            }
        }
    });
}
