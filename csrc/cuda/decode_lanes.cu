// The decoder of the lanes coder on the GPU: docs/bitstream.md, section 3b.
#include "common/lanes.h"
#include "cuda/launch.cuh"

namespace sparsecodec {
namespace {

using namespace lanes;

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kFaultFields = 3;  // kind, position, value

// The words of a group as the one lane sees them that reads an escape.
struct Words {
    const std::uint16_t* words;
    std::int64_t next, end;

    __device__ bool take(std::uint32_t& word) {
        if (next >= end) return false;
        word = words[next++];
        return true;
    }
};

// One block, which is one warp: a group's share of its picture's part of a call, a thread to a lane.
__global__ void __launch_bounds__(kMaxLanes)
    decode_lanes_kernel(const std::uint16_t* __restrict__ words, const std::int64_t* __restrict__ ends,
                        std::int64_t* cursors, std::uint32_t* states, std::int64_t* faults,
                        unsigned groups, unsigned lane_count, TableRows tables, const std::int16_t* __restrict__ indexes,
                        unsigned count, std::int32_t* __restrict__ symbols) {
    const unsigned group = blockIdx.x, lane = threadIdx.x, before = (1u << lane) - 1;
    const Share share = share_of(count, groups, group % groups);
    if (share.size == 0) return;
    const std::int64_t begin = static_cast<std::int64_t>(group / groups) * count + share.begin;
    indexes += begin;
    symbols += begin;
    const std::int64_t end = ends[group];
    std::int64_t next = cursors[group];
    std::uint32_t state = states[group * kMaxLanes + lane];
    bool damaged = faults[group * kFaultFields] != Fault::kNone;

    std::int64_t step = 0;  // its first symbol
    for (; !damaged && step < share.size; step += lane_count) {
        const std::int64_t at = step + lane;
        const bool active = lane < lane_count && at < share.size;
        Fault::Kind kind = Fault::kNone;
        std::int64_t fault_value = 0;
        Row row{};
        std::int32_t symbol = 0;
        bool escapes = false;
        if (active) {
            const std::int32_t index = indexes[at];
            if (static_cast<std::uint32_t>(index) < tables.row_count) {
                row = tables.rows[index];
                const Interval interval = find_interval(tables, row, slot_of(state));
                state = without_symbol(state, interval.start, interval.frequency);
                symbol = row.offset + static_cast<std::int32_t>(interval.symbol);
                escapes = interval.symbol == row.escape;
            } else {
                kind = Fault::kIndex;
                fault_value = index;
            }
        }

        // Words go to the lanes in ascending order. Up to the first escape each lane takes at most one, all at once; then
        // the digits of that escape have their turn, then the lanes behind it.
        for (unsigned first = 0; first < kMaxLanes;) {
            const unsigned escaping = __ballot_sync(kAllLanes, escapes && lane >= first);
            const unsigned last = escaping != 0 ? __ffs(escaping) - 1 : kMaxLanes - 1;
            const bool takes =
                active && kind == Fault::kNone && lane >= first && lane <= last && needs_word(state);
            const unsigned taking = __ballot_sync(kAllLanes, takes);
            if (takes) {
                const std::int64_t place = next + __popc(taking & before);
                if (place < end) {
                    state = with_word(state, words[place]);
                } else {
                    kind = Fault::kShort;
                }
            }
            next += __popc(taking);
            if (escaping != 0) {
                if (lane == last && kind == Fault::kNone) {
                    Words rest{words, next, end};
                    kind = decode_escape(state, rest, row, symbol, fault_value);
                    next = rest.next;
                }
                next = __shfl_sync(kAllLanes, next, static_cast<int>(last));
            }
            first = last + 1;
        }

        // Of a step's faults that of the lowest lane counts: no lane below it has seen anything of it.
        const unsigned faulty = __ballot_sync(kAllLanes, kind != Fault::kNone);
        damaged = faulty != 0;
        if (damaged) {
            if (lane == __ffs(faulty) - 1u) {
                faults[group * kFaultFields] = kind;
                faults[group * kFaultFields + 1] = share.begin + at;
                faults[group * kFaultFields + 2] = fault_value;
            }
            break;
        }
        if (active) symbols[at] = symbol;
    }

    for (std::int64_t at = step + lane; at < share.size; at += kMaxLanes) symbols[at] = 0;
    states[group * kMaxLanes + lane] = state;
    if (lane == 0 && !damaged) cursors[group] = next;
}

}  // namespace
}  // namespace sparsecodec

// The next coding call of `pictures` payloads of `groups` groups of 1 to 32 lanes each.
//
// words: uint16, those of all groups; group g of all reads up to place ends[g] and no farther. cursors: [pictures, groups],
// the place of its next word, updated. states: [pictures, groups, 32], those of its lanes, 65536 or more, updated. faults:
// [pictures, groups, 3], zeros at first: a group writes there what went wrong, lanes::Fault, the place within its picture's
// part, and then gives zeros in this call and in later ones. rows, buckets, cdf: the arrays of lanes::TableRows. indexes:
// [pictures, count] int16; symbols: [pictures, count] int32; count < 2^31.
SC_EXPORT int sparsecodec_decode_lanes(const std::uint16_t* words, const std::int64_t* ends, std::int64_t* cursors,
                                       std::uint32_t* states, std::int64_t* faults, unsigned pictures,
                                       unsigned groups, unsigned lane_count, const void* rows, const void* buckets,
                                       const std::uint32_t* cdf, unsigned row_count, const std::int16_t* indexes,
                                       unsigned count, std::int32_t* symbols, void* stream) {
    using namespace sparsecodec;
    const std::uint64_t blocks = static_cast<std::uint64_t>(pictures) * groups;
    if (lane_count == 0 || lane_count > lanes::kMaxLanes || blocks == 0 || blocks >> 31 != 0) return cudaErrorInvalidValue;
    const TableRows tables{static_cast<const Row*>(rows), static_cast<const Bucket*>(buckets), cdf, row_count};
    return launch(decode_lanes_kernel, static_cast<unsigned>(blocks), lanes::kMaxLanes, stream, words, ends, cursors, states,
                  faults, groups, lane_count, tables, indexes, count, symbols);
}
