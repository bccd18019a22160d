#include "entropy/lanes.h"

#include <algorithm>
#include <cstdlib>
#include <sstream>
#include <string>

#include "check.h"

namespace sparsecodec::lanes {

namespace {

// Below so many symbols a call is done before another thread has woken.
constexpr std::int64_t kMinParallel = std::int64_t{1} << 15;

template <class... Parts>
[[noreturn, gnu::noinline, gnu::cold]] void damaged(const Parts&... parts) {
    std::ostringstream message;
    (message << ... << parts);
    throw BitstreamError(message.str());
}

// A varint below 2^32 in the fewest bytes; moves `next` behind it.
std::size_t read_size(const unsigned char*& next, const unsigned char* end, std::int64_t group) {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 35; shift += 7) {
        if (next == end) damaged("the payload ends inside the size of group ", group);
        const unsigned byte = *next++;
        value |= std::uint64_t{byte & 0x7f} << shift;
        if (byte >> 7 != 0) continue;
        if ((byte == 0 && shift > 0) || value >> 32 != 0) break;
        return value;
    }
    damaged("the size of group ", group, " is no varint below 2^32 in the fewest bytes");
}

template <int kLanes, class Index>
Fault decode_steps(Group& group, const TableRows& tables, std::int32_t* symbols, const Index* indexes,
                   std::int64_t count) {
    Group local = group;
    for (std::int64_t i = 0; i < count; i += kLanes) {
        const int step = static_cast<int>(std::min<std::int64_t>(kLanes, count - i));
        for (int lane = 0; lane < step; ++lane) {
            const auto index = static_cast<std::int32_t>(indexes[i + lane]);
            if (static_cast<std::uint32_t>(index) >= tables.row_count) return {Fault::kIndex, i + lane, index};
            std::int64_t value = 0;
            const Fault::Kind kind =
                decode_symbol(local.states[lane], local, tables, tables.rows[index], symbols[i + lane], value);
            if (kind != Fault::kNone) return {kind, i + lane, value};
        }
    }
    group = local;
    return {};
}

template <class Index>
Fault decode_share(Isa isa, Group& group, int lanes, const TableRows& tables, std::int32_t* symbols,
                   const Index* indexes, std::int64_t count) {
#if defined(__x86_64__)
    if (isa == Isa::kAvx512 && lanes >= 16) return decode_avx512(group, lanes, tables, symbols, indexes, count);
    if (isa >= Isa::kAvx2 && lanes >= 8) return decode_avx2(group, lanes, tables, symbols, indexes, count);
#endif
    return decode_scalar(group, lanes, tables, symbols, indexes, count);
}

}  // namespace

Isa isa() {
    Isa best = Isa::kScalar;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) best = Isa::kAvx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
        best = Isa::kAvx512;
    }
#endif
    const char* name = std::getenv("SPARSECODEC_CPU_ISA");
    if (name == nullptr) return best;
    const std::string wanted = name;
    if (wanted == "scalar") return Isa::kScalar;
    if (wanted != "avx2" && wanted != "avx512") return best;
    const Isa isa = wanted == "avx2" ? Isa::kAvx2 : Isa::kAvx512;
    SC_CHECK(isa <= best, "SPARSECODEC_CPU_ISA=", wanted, ": this CPU does not have it");
    return isa;
}

template <class Index>
Fault decode_scalar(Group& group, int lanes, const TableRows& tables, std::int32_t* symbols, const Index* indexes,
                    std::int64_t count) {
    switch (lanes) {
        case 1: return decode_steps<1>(group, tables, symbols, indexes, count);
        case 2: return decode_steps<2>(group, tables, symbols, indexes, count);
        case 4: return decode_steps<4>(group, tables, symbols, indexes, count);
        case 8: return decode_steps<8>(group, tables, symbols, indexes, count);
        case 16: return decode_steps<16>(group, tables, symbols, indexes, count);
        default: return decode_steps<32>(group, tables, symbols, indexes, count);
    }
}

Decoder::Decoder(const unsigned char* payload, std::size_t size, std::int64_t total)
    : total_(total), layout_(layout_of(total)), isa_(isa()) {
    SC_CHECK(total >= 0 && total <= kMaxTotal, "total=", total, " (needs 0 to 2^40 symbols)");
    const std::size_t states = 4 * static_cast<std::size_t>(layout_.lanes);
    const auto groups = static_cast<std::size_t>(layout_.groups);
    if (size < groups * states) {
        damaged("a payload of ", size, " bytes for ", groups, " groups of ", layout_.lanes, " lanes (needs ",
                groups * states, " at least)");
    }
    groups_.resize(groups);
    const unsigned char *next = payload, *end = payload + size;
    std::vector<std::size_t> sizes(groups);
    for (std::size_t g = 0; g + 1 < groups; ++g) sizes[g] = 2 * read_size(next, end, g);
    for (std::size_t g = 0; g < groups; ++g) {
        Group& group = groups_[g];
        const auto left = static_cast<std::size_t>(end - next);
        if (g + 1 == groups) sizes[g] = left;
        if (sizes[g] > left || sizes[g] < states || sizes[g] % 2 != 0) {
            damaged("group ", g, " of ", groups, ": ", sizes[g], " bytes with ", left, " left (needs ", states,
                    " or more, in words of 2)");
        }
        group.end = next + sizes[g];
        for (int lane = 0; lane < kMaxLanes; ++lane) {
            group.states[lane] = kLowerBound;
            if (lane >= layout_.lanes) continue;
            group.states[lane] = next[0] | next[1] << 8 | next[2] << 16 | std::uint32_t{next[3]} << 24;
            next += 4;
            if (needs_word(group.states[lane])) {
                damaged("group ", g, " of ", groups, ": lane ", lane, " starts with the state ", group.states[lane],
                        " (needs 65536 or more)");
            }
        }
        group.next = next;
        next = group.end;
    }
}

template <class Index>
void Decoder::decode(std::int32_t* symbols, const Index* indexes, std::int64_t count, const rans::Tables& tables) {
    check_usable();
    SC_CHECK(count <= total_ - decoded_, count, " indexes behind ", decoded_, " symbols (total=", total_, ")");
    check_order(tables);
    failed_ = true;
    const TableRows rows = tables.view();
    const auto groups = static_cast<std::int64_t>(groups_.size());
    // Exceptions must not leave a parallel region: faults are data until the first group's is known.
    std::int64_t first_bad = groups;
    Fault first_fault;
    const auto decode_group = [&](std::int64_t g) {
        const Share share = share_of(count, groups, g);
        Fault fault = decode_share(isa_, groups_[g], layout_.lanes, rows, symbols + share.begin, indexes + share.begin,
                                   share.size);
        fault.position += share.begin;
        return fault;
    };
    if (groups == 1 || count < kMinParallel) {
        for (std::int64_t g = 0; g < first_bad; ++g) {
            first_fault = decode_group(g);
            if (first_fault.kind != Fault::kNone) first_bad = g;
        }
    } else {
#pragma omp parallel for schedule(dynamic)
        for (std::int64_t g = 0; g < groups; ++g) {
            const Fault fault = decode_group(g);
            if (fault.kind == Fault::kNone) continue;
#pragma omp critical(sparsecodec_lanes_fault)
            if (g < first_bad) {
                first_bad = g;
                first_fault = fault;
            }
        }
    }
    if (first_bad < groups) raise(first_fault, static_cast<std::size_t>(first_bad), rows.row_count);
    decoded_ += count;
    failed_ = false;
}

void Decoder::finish() const {
    check_usable();
    SC_CHECK(decoded_ == total_, decoded_, " symbols were decoded (total=", total_, ")");
    for (std::size_t g = 0; g < groups_.size(); ++g) {
        const Group& group = groups_[g];
        if (group.next != group.end) {
            damaged("group ", g, " of ", groups_.size(), ": ", group.end - group.next,
                    " bytes are left after its last symbol");
        }
        for (int lane = 0; lane < layout_.lanes; ++lane) {
            if (group.states[lane] == kLowerBound) continue;
            damaged("group ", g, " of ", groups_.size(), ": lane ", lane,
                    " does not end in the state in which its encoder began");
        }
    }
}

void Decoder::check_usable() const {
    if (failed_) throw BitstreamError("an earlier decoding call failed; the lanes have no defined position");
}

void Decoder::raise(const Fault& fault, std::size_t group, std::size_t rows) const {
    switch (fault.kind) {
        case Fault::kIndex:
            refuse("indexes[", fault.position, "] = ", fault.value, " (the tables have rows 0 to ", rows - 1, ")");
        case Fault::kShort:
            damaged("group ", group, " of ", groups_.size(), " ends before symbol ", fault.position);
        case Fault::kDigits:
            damaged("group ", group, " of ", groups_.size(), ", symbol ", fault.position, ": an escape of ",
                    fault.value, " digits (of ", kMaxDigits, ")");
        default:
            damaged("group ", group, " of ", groups_.size(), ", symbol ", fault.position, ": escaped value ",
                    fault.value, " exceeds 32 bits");
    }
}

#define SC_INSTANTIATE(Index)                                                                                   \
    template Fault decode_scalar(Group&, int, const TableRows&, std::int32_t*, const Index*, std::int64_t);     \
    template void Decoder::decode(std::int32_t*, const Index*, std::int64_t, const rans::Tables&);
SC_INSTANTIATE(std::uint8_t)
SC_INSTANTIATE(std::int16_t)
SC_INSTANTIATE(std::int32_t)

}  // namespace sparsecodec::lanes
