// The transforms of minimal filtering, for the instruction set of the enclosing target pragma. Included in a namespace
// that has kBytes, the size of its vectors. Additions in one order, lane by lane: the bits are the same in all of them.

constexpr int kLanes = kBytes / 4;
typedef float Vec __attribute__((vector_size(kBytes)));

template <class T>
struct Memory;  // load: `count` >= 1 values, at most kLanes, zeros behind them; store: all lanes

template <>
struct Memory<float> {
    static Vec load(const float* p, int count) {
        Vec v{};
        if (count >= kLanes) {
            std::memcpy(&v, p, sizeof v);
        } else {
            for (int i = 0; i < count; ++i) v[i] = p[i];
        }
        return v;
    }
    static void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
};

inline Vec whole(const float* p) { return Memory<float>::load(p, kLanes); }

// Some channels of one column of four inputs, transformed downwards.
struct Column {
    Vec v[4];
};

template <class T>
inline Column transformed_column(const TileRun<T>& run, std::ptrdiff_t column, int k, int count) {
    Vec d[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const bool here = run.rows[i] && column >= 0 && column < run.width;
        d[i] = here ? Memory<T>::load(run.rows[i] + column * run.stride + k, count) : Vec{};
    }
    return {{d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]}};
}

// `count` tiles beside each other: cell (i, j) of tile t to cells[(i * 4 + j) * cell_step + t * row_step], k channels
// rounded up to sixteen.
template <class T>
void transform_inputs(const TileRun<T>& run, std::ptrdiff_t count, int k, T* cells, std::ptrdiff_t cell_step,
                      std::ptrdiff_t row_step) {
    for (int c = 0; c < k; c += kLanes) {
        Column first = transformed_column(run, run.column, c, k - c);
        Column second = transformed_column(run, run.column + 1, c, k - c);
        T* to = cells + c;
        for (std::ptrdiff_t t = 0; t < count; ++t, to += row_step) {
            const Column third = transformed_column(run, run.column + 2 * t + 2, c, k - c);
            const Column fourth = transformed_column(run, run.column + 2 * t + 3, c, k - c);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                T* const row = to + i * 4 * cell_step;
                Memory<T>::store(row, first.v[i] - third.v[i]);
                Memory<T>::store(row + cell_step, second.v[i] + third.v[i]);
                Memory<T>::store(row + 2 * cell_step, third.v[i] - second.v[i]);
                Memory<T>::store(row + 3 * cell_step, second.v[i] - fourth.v[i]);
            }
            first = third;
            second = fourth;
        }
    }
}

// The products of `count` tiles, `width` channels of 32, to the sums of their pixels: pixel (i, j) of tile t at
// sums + place[t * 4 + i * 2 + j] * 32. Above, Left: whether there are products of the first row, the first column.
template <bool Above, bool Left>
void transform_products(const float* products, std::ptrdiff_t cell_step, std::ptrdiff_t count, const int* place,
                        int width, float* sums) {
    for (std::ptrdiff_t t = 0; t < count; ++t, products += kBlock, place += 4) {
        for (int v = 0; v < width; v += kLanes) {
            Vec upper[4], lower[4];
#pragma GCC unroll 4
            for (int j = Left ? 0 : 1; j < 4; ++j) {
                const float* const from = products + j * cell_step + v;
                const Vec b = whole(from + 4 * cell_step), c = whole(from + 8 * cell_step);
                const Vec d = whole(from + 12 * cell_step);
                upper[j] = (Above ? whole(from) + b : b) + c;
                lower[j] = b - c - d;
            }
            const auto put = [&](const int* pixel, const Vec(&m)[4]) {
                Memory<float>::store(sums + pixel[0] * kBlock + v, (Left ? m[0] + m[1] : m[1]) + m[2]);
                Memory<float>::store(sums + pixel[1] * kBlock + v, m[1] - m[2] - m[3]);
            };
            put(place, upper);
            put(place + 2, lower);
        }
    }
}

template <class T>
constexpr Transforms<T> transforms() {
    return {transform_inputs<T>,
            {{transform_products<false, false>, transform_products<false, true>},
             {transform_products<true, false>, transform_products<true, true>}}};
}
