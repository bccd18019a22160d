// Lanes decoded a vector at a time. Included in an anonymous namespace, after `Vector`, which has for one instruction
// set: kWidth, Int (kWidth x 32 bits), load, store, load_indexes, has_bad_index, lookup and refill.

// Looks lanes up in their rows, one by one.
template <int kLanes>
struct Search {
    alignas(64) std::uint32_t row[kLanes], state[kLanes], start[kLanes], frequency[kLanes], symbol[kLanes];

    void put(int v, Vector::Int rows, Vector::Int states, const Found& found) {
        const int first = v * Vector::kWidth;
        Vector::store(row + first, rows);
        Vector::store(state + first, states);
        Vector::store(start + first, found.start);
        Vector::store(frequency + first, found.frequency);
        Vector::store(symbol + first, found.symbol);
    }
    void get(int v, Found& found) const {
        const int first = v * Vector::kWidth;
        found = {Vector::load(start + first), Vector::load(frequency + first), Vector::load(symbol + first)};
    }

    // The lanes of `unclear`. False: one of them escapes.
    [[gnu::noinline]] bool run(const TableRows& tables, std::uint32_t unclear) {
        for (; unclear != 0; unclear &= unclear - 1) {
            const int lane = __builtin_ctz(unclear);
            const Row& place = tables.rows[row[lane]];
            const Interval interval = search_row(tables, place, slot_of(state[lane]));
            if (interval.symbol == place.escape) return false;
            start[lane] = interval.start;
            frequency[lane] = interval.frequency;
            symbol[lane] = static_cast<std::uint32_t>(place.offset) + interval.symbol;
        }
        return true;
    }
};

// A step: every lane decodes a symbol. Whatever is out of the ordinary (an index without a row, an escape, words that
// end) is left to decode_scalar, which does the step again from its beginning: nothing is written before it is certain.
template <int kVectors, class Index>
struct Step {
    static constexpr int kLanes = kVectors * Vector::kWidth;
    using Int = typename Vector::Int;

    Int states[kVectors], symbols[kVectors];
    const unsigned char* next;  // 2 * kLanes bytes can be read from here

    // False: the step is not an ordinary one, and the members have no meaning. `end`: of the words.
    [[gnu::always_inline]] bool run(const TableRows& tables, const Index* indexes, const unsigned char* end) {
        Found found[kVectors];
        Int rows[kVectors];
        std::uint32_t unclear = 0;
        bool bad = false;
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
            rows[v] = Vector::load_indexes(indexes + v * Vector::kWidth);
            bad |= Vector::has_bad_index(rows[v], tables.row_count);
        }
        if (__builtin_expect(bad, 0)) return false;
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
            unclear |= Vector::lookup(tables, rows[v], states[v], found[v]) << (v * Vector::kWidth);
        }
        if (__builtin_expect(unclear != 0, 0)) {
            // By way of a copy: what the search is given the address of would live in memory instead of registers.
            Search<kLanes> query;
            for (int v = 0; v < kVectors; ++v) query.put(v, rows[v], states[v], found[v]);
            if (!query.run(tables, unclear)) return false;
            for (int v = 0; v < kVectors; ++v) query.get(v, found[v]);
        }
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
            states[v] = Vector::without_symbol(states[v], found[v].start, found[v].frequency);
            symbols[v] = found[v].symbol;
            states[v] = Vector::refill(states[v], next);
        }
        return next <= end;
    }
};

template <int kVectors, class Index>
Fault decode_vectors(Group& group, const TableRows& tables, std::int32_t* symbols, const Index* indexes,
                     std::int64_t count) {
    constexpr int kLanes = kVectors * Vector::kWidth;
    // The last words, with room behind them for the loads of a step. `moved` is where they stand in the group.
    alignas(64) unsigned char last_words[4 * kLanes];
    const unsigned char* moved = nullptr;
    const unsigned char* end = group.end;

    Step<kVectors, Index> step;
    const auto load = [&] {
        for (int v = 0; v < kVectors; ++v) step.states[v] = Vector::load(group.states + v * Vector::kWidth);
        step.next = moved == nullptr ? group.next : last_words + (group.next - moved);
    };
    const auto save = [&](const Step<kVectors, Index>& from) {
        for (int v = 0; v < kVectors; ++v) Vector::store(group.states + v * Vector::kWidth, from.states[v]);
        group.next = moved == nullptr ? from.next : moved + (from.next - last_words);
    };

    load();
    std::int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        if (__builtin_expect(moved == nullptr && end - step.next < 2 * kLanes, 0)) {
            moved = step.next;
            std::memset(last_words, 0, sizeof last_words);
            std::memcpy(last_words, moved, static_cast<std::size_t>(end - moved));
            step.next = last_words;
            end = last_words + (end - moved);
        }
        const Step<kVectors, Index> before = step;
        if (__builtin_expect(step.run(tables, indexes + i, end), 1)) {
            for (int v = 0; v < kVectors; ++v) Vector::store(symbols + i + v * Vector::kWidth, step.symbols[v]);
            continue;
        }
        save(before);
        Fault fault = decode_scalar(group, kLanes, tables, symbols + i, indexes + i, kLanes);
        if (fault.kind != Fault::kNone) {
            fault.position += i;
            return fault;
        }
        load();
    }
    save(step);
    if (i == count) return {};
    Fault fault = decode_scalar(group, kLanes, tables, symbols + i, indexes + i, count - i);
    fault.position += i;
    return fault;
}
