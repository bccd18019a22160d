// decode_lanes of csrc/cuda on what csrc/entropy encodes, and on damage against the same arithmetic symbol by symbol.
#include <algorithm>
#include <numeric>

#include "check.h"
#include "cuda/decode_lanes.cu"
#include "entropy/lanes_encode.cpp"
#include "entropy/rans_tables.cpp"

using namespace sparsecodec;

namespace {

constexpr std::int64_t kGroup = lanes::kSymbolsPerLane * lanes::kMaxLanes;
using Tables = std::shared_ptr<const rans::Tables>;

// Rows of 1 to 60 plain symbols, the same for the same number; in every fourth one most symbols escape.
Tables make_tables(std::size_t rows, std::int32_t shift = 0) {
    constexpr std::size_t kColumns = 62;
    std::mt19937 engine(static_cast<unsigned>(rows));
    std::vector<std::int32_t> cdf(rows * kColumns), lengths(rows), offsets(rows);
    for (std::size_t r = 0; r < rows; ++r) {
        const std::size_t plain = 1 + engine() % 60;
        std::vector<std::int32_t> cuts(plain);
        const int top = r % 4 == 0 ? 20000 : 65000;
        for (std::size_t i = 0; i < plain; ++i) cuts[i] = 1 + static_cast<int>((i + 1) * top / plain) - r % 3;
        std::copy(cuts.begin(), cuts.end(), cdf.begin() + r * kColumns + 1);
        cdf[r * kColumns + plain + 1] = 65536;
        lengths[r] = static_cast<std::int32_t>(plain) + 2;
        offsets[r] = static_cast<std::int32_t>(engine() % 9) - 40 + shift;
    }
    return std::make_shared<rans::Tables>(cdf.data(), rows, kColumns, lengths.data(), offsets.data());
}

struct Call {
    std::vector<std::int32_t> symbols;
    std::vector<std::int16_t> indexes;
    Tables tables;
};

Call make_call(std::size_t count, Tables tables) {
    Call call{std::vector<std::int32_t>(count), std::vector<std::int16_t>(count), std::move(tables)};
    for (std::size_t i = 0; i < count; ++i) {
        call.indexes[i] = static_cast<std::int16_t>(check::generator()() % call.tables->rows());
        const bool far = check::generator()() % 16 == 0;
        call.symbols[i] = static_cast<std::int32_t>(far ? check::generator()() % 2147480000u
                                                : check::generator()() % 60 - 40);
    }
    return call;
}

// What the launches of one payload share, as the launcher wants it.
struct State {
    check::Buffer<std::int64_t> ends, cursors, faults;
    check::Buffer<std::uint32_t> states;

    explicit State(std::size_t groups) : ends(groups), cursors(groups), faults(3 * groups), states(32 * groups) {}
    bool operator==(const State& o) const { return cursors == o.cursors && faults == o.faults && states == o.states; }
};

struct Payload {
    lanes::Layout layout;
    std::vector<Call> calls;
    std::vector<std::uint16_t> words;

    // `front` small calls, one that fills the total up, and a small one.
    Payload(std::int64_t total, const std::vector<std::size_t>& front, std::size_t last)
        : layout(lanes::layout_of(total)) {
        const Tables tables[] = {make_tables(7), make_tables(90)};
        for (std::size_t count : front) calls.push_back(make_call(count, tables[calls.size() % 2]));
        const auto used = std::accumulate(front.begin(), front.end(), last);
        calls.push_back(make_call(total - used, tables[0]));
        calls.push_back(make_call(last, tables[1]));
        lanes::Encoder encoder(total);
        for (const Call& call : calls) {
            encoder.push(call.symbols.data(), call.indexes.data(), call.symbols.size(), call.tables);
        }
        bytes = encoder.finish();
    }

    // The groups' words from the bytes of the payload, their places in `state`.
    State open() {
        State state(layout.groups);
        const unsigned char* next = bytes.data();
        std::int64_t place = 0;
        for (std::int64_t g = 0; g < layout.groups; ++g) {
            std::int64_t size = 0;
            if (g + 1 < layout.groups) {
                unsigned shift = 0;
                do size |= std::int64_t{*next & 0x7f} << shift, shift += 7;
                while (*next++ >> 7 != 0);
            }
            state.cursors[g] = place;
            state.ends[g] = place += size;
        }
        words.clear();
        for (; next < bytes.data() + bytes.size(); next += 2) words.push_back(next[0] | next[1] << 8);
        state.ends[layout.groups - 1] = words.size();
        std::fill_n(state.faults.data(), state.faults.size(), 0);
        std::fill_n(state.states.data(), state.states.size(), lanes::kLowerBound);
        for (std::int64_t g = 0; g < layout.groups; ++g) {
            for (int lane = 0; lane < layout.lanes; ++lane, state.cursors[g] += 2) {
                state.states[32 * g + lane] = words[state.cursors[g]] | words[state.cursors[g] + 1] << 16;
            }
        }
        return state;
    }

    std::vector<unsigned char> bytes;
};

// The kernel, on copies of everything in memory of the exact size. `payload` may be several pictures' joined.
std::vector<std::int32_t> run_kernel(const Payload& payload, State& state, const Call& call, unsigned pictures = 1) {
    const TableRows view = call.tables->view();
    check::Buffer<std::uint16_t> words(payload.words.size());
    check::Buffer<Row> rows(view.row_count);
    check::Buffer<Bucket> buckets(call.tables->bucket_count());
    check::Buffer<std::uint32_t> cdf(call.tables->cdf_count());
    check::Buffer<std::int16_t> indexes(call.indexes.size());
    check::Buffer<std::int32_t> symbols(call.indexes.size());
    std::copy(payload.words.begin(), payload.words.end(), words.data());
    std::copy_n(view.rows, rows.size(), rows.data());
    std::copy_n(view.buckets, buckets.size(), buckets.data());
    std::copy_n(view.cdf, cdf.size(), cdf.data());
    std::copy(call.indexes.begin(), call.indexes.end(), indexes.data());
    const int error = sparsecodec_decode_lanes(
        words.data(), state.ends.data(), state.cursors.data(), state.states.data(), state.faults.data(),
        pictures, payload.layout.groups, payload.layout.lanes, rows.data(), buckets.data(), cdf.data(), view.row_count,
        indexes.data(), indexes.size() / pictures, symbols.data(), nullptr);
    if (error != cudaSuccess) return {};
    return {symbols.data(), symbols.data() + symbols.size()};
}

// The same, symbol by symbol. `symbols` of a group are zeros from the step on in which it fails.
std::vector<std::int32_t> run_by_hand(const Payload& payload, State& state, const Call& call) {
    const auto count = static_cast<std::int64_t>(call.indexes.size());
    std::vector<std::int32_t> symbols(call.indexes.size());
    for (std::int64_t g = 0; g < payload.layout.groups; ++g) {
        const lanes::Share share = lanes::share_of(count, payload.layout.groups, g);
        std::int64_t* const fault = &state.faults[3 * g];
        if (fault[0] != 0) continue;
        Words words{payload.words.data(), state.cursors[g], state.ends[g]};
        const TableRows view = call.tables->view();
        for (std::int64_t j = 0; j < share.size && fault[0] == 0; ++j) {
            const std::int32_t index = call.indexes[share.begin + j];
            std::uint32_t& lane = state.states[32 * g + j % payload.layout.lanes];
            fault[2] = index;
            fault[0] = lanes::Fault::kIndex;
            if (static_cast<std::uint32_t>(index) < view.row_count) {
                fault[2] = 0;
                fault[0] = lanes::decode_symbol(lane, words, view, view.rows[index], symbols[share.begin + j], fault[2]);
            }
            fault[1] = fault[0] == 0 ? 0 : share.begin + j;
            const std::int64_t step = j / payload.layout.lanes * payload.layout.lanes;
            if (fault[0] != 0) std::fill(&symbols[share.begin + step], &symbols[share.begin + j] + 1, 0);
        }
        if (fault[0] == 0) state.cursors[g] = words.next;
    }
    return symbols;
}

void round_trip(check::Report& report, std::int64_t total, const std::vector<std::size_t>& front, std::size_t last) {
    Payload payload(total, front, last);
    State state = payload.open(), expected = payload.open();
    const std::string name = std::to_string(total) + " symbols, call ";
    for (std::size_t c = 0; c < payload.calls.size(); ++c) {
        const Call& call = payload.calls[c];
        run_by_hand(payload, expected, call);
        if (c == front.size()) {  // the long one: too many barriers for threads
            std::copy_n(expected.cursors.data(), expected.cursors.size(), state.cursors.data());
            std::copy_n(expected.states.data(), expected.states.size(), state.states.data());
            continue;
        }
        report.expect(run_kernel(payload, state, call) == call.symbols && state == expected, name + std::to_string(c));
    }
    bool finished = state.cursors == state.ends;
    for (std::size_t i = 0; i < state.states.size(); ++i) finished &= state.states[i] == lanes::kLowerBound;
    report.expect(finished, name + "all: words or states at the end");
}

template <class T>
void append(std::vector<T>& to, const std::vector<T>& from) {
    to.insert(to.end(), from.begin(), from.end());
}

// Three pictures in one launch, of which the second's last group ends early: it alone gives zeros.
void batch(check::Report& report, std::int64_t total, const std::vector<std::size_t>& front, std::int64_t left) {
    std::vector<Payload> each;
    std::vector<State> expected;
    for (int p = 0; p < 3; ++p) expected.push_back(each.emplace_back(total, front, 1).open());
    const std::int64_t groups = each[0].layout.groups;
    const std::int64_t cut = expected[1].ends[groups - 1] - expected[1].cursors[groups - 1] - left;
    each[1].words.resize(each[1].words.size() - cut);
    expected[1].ends[groups - 1] -= cut;

    Payload joined = each[0];
    joined.words.clear();
    State state(3 * groups);
    for (std::int64_t p = 0; p < 3; ++p) {
        const auto base = static_cast<std::int64_t>(joined.words.size());
        for (std::int64_t g = 0; g < groups; ++g) {
            state.ends[p * groups + g] = base + expected[p].ends[g];
            state.cursors[p * groups + g] = base + expected[p].cursors[g];
        }
        std::copy_n(expected[p].states.data(), 32 * groups, &state.states[32 * groups * p]);
        append(joined.words, each[p].words);
    }
    std::fill_n(state.faults.data(), state.faults.size(), 0);
    for (std::size_t c = 0; c < front.size(); ++c) {
        Call call{{}, {}, each[0].calls[c].tables};
        std::vector<std::int32_t> by_hand;
        for (std::int64_t p = 0; p < 3; ++p) {
            append(call.indexes, each[p].calls[c].indexes);
            append(by_hand, run_by_hand(each[p], expected[p], each[p].calls[c]));
        }
        bool equal = run_kernel(joined, state, call, 3) == by_hand;
        for (std::int64_t p = 0; p < 3; ++p) {
            equal &= std::equal(expected[p].faults.data(), expected[p].faults.data() + 3 * groups, &state.faults[3 * groups * p]);
        }
        report.expect(equal, "batch of " + std::to_string(total) + " symbols, call " + std::to_string(c));
    }
    bool only = state.faults[3 * (2 * groups - 1)] == lanes::Fault::kShort;
    for (std::int64_t g = 0; g < 3 * groups; ++g) only &= g == 2 * groups - 1 || state.faults[3 * g] == 0;
    report.expect(only, "batch of " + std::to_string(total) + " symbols: the damaged group");
}

int met[5] = {};  // how often each kind of fault was

// Bits of the words are flipped, group `group` ends early, one index has no row, or the tables are others; then the next
// call, which gives zeros.
void damage(check::Report& report, Payload& payload, int flips, std::int64_t group, std::int64_t left, int bad_index,
            std::int32_t shift = 0) {
    State state = payload.open(), expected = payload.open();
    if (group >= 0) {
        state.ends[group] = expected.ends[group] = state.cursors[group] + left;
        if (group + 1 == payload.layout.groups) payload.words.resize(state.ends[group]);
    }
    for (int i = 0; i < flips; ++i) {
        payload.words[check::generator()() % payload.words.size()] ^= 1 << check::generator()() % 16;
    }
    for (std::size_t c = 0; c + 2 < payload.calls.size(); ++c) {
        Call call = payload.calls[c];
        if (bad_index != 0 && !call.indexes.empty()) call.indexes[call.indexes.size() / 2] = bad_index;
        if (shift != 0) call.tables = make_tables(call.tables->rows(), shift);
        const std::vector<std::int32_t> by_hand = run_by_hand(payload, expected, call);
        bool equal = run_kernel(payload, state, call) == by_hand && state.faults == expected.faults;
        for (std::int64_t g = 0; g < payload.layout.groups; ++g) {
            ++met[state.faults[3 * g]];
            if (state.faults[3 * g] != 0) continue;
            equal &= state.cursors[g] == expected.cursors[g] &&
                     std::equal(&state.states[32 * g], &state.states[32 * g] + 32, &expected.states[32 * g]);
        }
        report.expect(equal, "damage: " + std::to_string(flips) + " flips, group " + std::to_string(group) + " of " +
                                 std::to_string(left) + " words, index " + std::to_string(bad_index) + ", call " +
                                 std::to_string(c));
    }
}

}  // namespace

int main(int argc, char**) {
    check::Report report("decode_lanes");
    if (argc > 1) {  // as many as ThreadSanitizer needs
        round_trip(report, 2 * kGroup, {70, 0}, 5);
        batch(report, 2 * kGroup, {70}, 1);
        return report.finish();
    }
    round_trip(report, 0, {}, 0);
    round_trip(report, 40, {20, 0}, 20);
    for (std::int64_t lanes = 2; lanes <= 32; lanes *= 2) round_trip(report, kSymbolsPerLane * lanes, {1, 0, 33, 90}, 37);
    round_trip(report, 4 * kGroup, {3, 400, 259}, 130);

    batch(report, 40, {10, 20}, 2);
    batch(report, 2 * kGroup, {330, 0, 100}, 40);

    Payload one(kGroup, {300, 40}, 1), two(2 * kGroup, {400, 40}, 1);
    for (int left : {0, 1, 40}) {
        damage(report, one, 0, 0, left, 0);
        damage(report, two, 0, 1, left, 0);
        damage(report, two, 0, 0, left, 0);
    }
    for (int index : {-1, 7, 90}) damage(report, two, 0, -1, 0, index);
    for (int round = 0; round < 4; ++round) damage(report, two, 40000, -1, 0, 0);
    damage(report, one, 0, -1, 0, 0, 1 << 30);
    for (int kind = 0; kind < 5; ++kind) report.expect(met[kind] != 0, "fault " + std::to_string(kind) + ": never met, what");
    return report.finish();
}
