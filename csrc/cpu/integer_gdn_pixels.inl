// The parts of integer_gdn, for the instruction set of the enclosing target pragma. Included in a namespace with
//     kLanes, kRows  doubles of a vector; pixels whose sums, two vectors each, fit its registers
//     Doubles        a vector of GCC's
//     fused(a, b, sum), root(v), below(v)  a b + sum, the square root, the floor
// Plain IEEE operations whose results are exact integers, so no instruction changes a bit. A number less a vector of
// zeros is a vector of that number.

inline Doubles load(const double* p) {
    Doubles v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline void sums(const double* squares, int c, const integer::GdnBlock& block, double* norms) {
    constexpr int kPair = 2 * kLanes;
    for (int start = 0; start < integer::kGdnColumns; start += kPair) {
        for (int row = 0; row < integer::kGdnPixels; row += kRows) {
            Doubles first[kRows], second[kRows];
#pragma GCC unroll 8
            for (int p = 0; p < kRows; ++p) {
                first[p] = load(block.beta + start);
                second[p] = load(block.beta + start + kLanes);
            }
            const double* const from = squares + row * c;
            for (int j = 0; j < c; ++j) {
                const double* const gamma = block.gamma + j * integer::kGdnColumns + start;
                const Doubles left = load(gamma), right = load(gamma + kLanes);
#pragma GCC unroll 8
                for (int p = 0; p < kRows; ++p) {
                    const Doubles square = from[p * c + j] - Doubles{};
                    first[p] = fused(square, left, first[p]);
                    second[p] = fused(square, right, second[p]);
                }
            }
            double* const to = norms + row * integer::kGdnColumns + start;
#pragma GCC unroll 8
            for (int p = 0; p < kRows; ++p) {
                std::memcpy(to + p * integer::kGdnColumns, &first[p], sizeof(Doubles));
                std::memcpy(to + p * integer::kGdnColumns + kLanes, &second[p], sizeof(Doubles));
            }
        }
    }
}

template <class Out>
void finish(const std::int16_t* x, const double* norms, const double* scale, int n, bool inverse, Out* out) {
    typedef std::int16_t Shorts __attribute__((vector_size(2 * kLanes)));
    typedef std::int32_t Ints __attribute__((vector_size(4 * kLanes)));
    typedef Out Outs __attribute__((vector_size(sizeof(Out) * kLanes)));
    constexpr double top = sizeof(Out) == 2 ? 32767.0 : 1073741823.0;
    for (int i = 0; i < n; i += kLanes) {
        const std::size_t lanes = std::min(kLanes, n - i);
        Shorts shorts{};
        if (lanes == kLanes) {
            std::memcpy(&shorts, x + i, sizeof shorts);
        } else {
            std::memcpy(&shorts, x + i, lanes * sizeof *x);
        }
        Doubles value = __builtin_convertvector(__builtin_convertvector(shorts, Ints), Doubles) * load(scale + i);
        Doubles norm = load(norms + i);
        if (inverse) {
            value = below(value * below(root(norm)) + 0.5);
        } else {
            norm = below(root(norm < 1.0 ? 1.0 - Doubles{} : norm));
            value = below((value + norm) / (norm + norm));
        }
        value = value < -top - 1 ? -top - 1 - Doubles{} : value;
        value = value > top ? top - Doubles{} : value;
        const Outs result = __builtin_convertvector(__builtin_convertvector(value, Ints), Outs);
        if (lanes == kLanes) {
            std::memcpy(out + i, &result, sizeof result);
        } else {
            std::memcpy(out + i, &result, lanes * sizeof *out);
        }
    }
}
