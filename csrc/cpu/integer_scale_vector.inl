// The kernel of integer_scale. Included behind requantize_<instruction set>.inl by a file that defines
//     Vec raised(Vec)  times 2^16

// Memory is read strictly forwards. Keeping the factors of some channels for four spans, and so reading four places in
// turns, took twice the time (Zen 4).
template <Kind kind, bool added, class Args>
void scale_spans(const Args& args) {
    const ResidualShift shift(args.residual_shift);
    for (std::ptrdiff_t i = 0; i < args.count; ++i) {
        const auto* const x = args.x + i * args.x_step;
        const auto* const residual = args.residual + i * args.residual_step;
        auto* const out = args.out + i * args.out_step;
        for (int c = 0; c < args.n; c += kLanes) {
            const int n = args.n - c;
            Vec v = load_wide(x + c, n);
            if constexpr (sizeof *x == sizeof(std::int16_t)) v = raised(v);
            v = requantize<kind>(v, Factors(args.rows, c));
            if constexpr (added) v = add(v, shift(load_wide(residual + c, n)));
            store_out(out + c, v, n);
        }
    }
}

template <Kind kind, class Args>
void scale_kind(const Args& args) {
    args.residual ? scale_spans<kind, true>(args) : scale_spans<kind, false>(args);
}

template <class Args>
void scale(const Args& args) {
    switch (args.kind) {
        case Kind::kAny: return scale_kind<Kind::kAny>(args);
        case Kind::kHigh: return scale_kind<Kind::kHigh>(args);
        case Kind::kHighLinear: return scale_kind<Kind::kHighLinear>(args);
    }
}
