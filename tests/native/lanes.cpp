// Payloads of lanes, of any bytes: every instruction set refuses them or gives the same symbols, for the same reason.
#include "entropy/lanes.h"

#include "fuzz.h"
#include "rans_tables.h"

namespace lanes = sparsecodec::lanes;
using sparsecodec::rans::Tables;

const char* const fuzz::kName = "lanes";
const std::size_t fuzz::kMaxInput = 1 << 15;

namespace {

const fuzz::Distributions kRows = fuzz::distributions();
const auto kTables = std::make_shared<const Tables>(kRows.tables());

// Enough for one lane up to several groups; the totals are what makes lanes, not the symbols coded.
constexpr std::int64_t kTotals[] = {0, 1, 100, 16384, 33000, 66000, 140000, 270000};

// which total, type of the indexes, their seed, where the second call begins (in 256ths), the payload
fuzz::Bytes input(std::uint8_t which, std::uint8_t type, std::uint8_t seed, std::uint8_t cut, std::size_t rarity) {
    const auto total = static_cast<std::size_t>(kTotals[which]);
    const auto indexes = fuzz::row_numbers(total, kTables->rows(), seed);
    const auto symbols = fuzz::symbols_for(indexes, kRows, seed, rarity);
    lanes::Encoder encoder(kTotals[which]);
    const std::size_t first = total * cut / 256;
    encoder.push(symbols.data(), indexes.data(), static_cast<std::int64_t>(first), kTables);
    encoder.push(symbols.data() + first, indexes.data() + first, static_cast<std::int64_t>(total - first), kTables);
    fuzz::Bytes bytes{which, type, seed, cut};
    const std::vector<unsigned char> payload = encoder.finish();
    bytes.insert(bytes.end(), payload.begin(), payload.end());
    return bytes;
}

template <class Index>
void decode(lanes::Decoder& decoder, std::vector<std::int32_t>& symbols, const std::vector<std::int32_t>& rows,
            std::size_t first) {
    const std::vector<Index> indexes(rows.begin(), rows.end());
    const std::size_t count = rows.size() - first;
    decoder.decode(symbols.data(), indexes.data(), static_cast<std::int64_t>(first), *kTables);
    decoder.decode(symbols.data() + first, indexes.data() + first, static_cast<std::int64_t>(count), *kTables);
}

// What came of it: the symbols, or the complaint.
struct Result {
    std::vector<std::int32_t> symbols;
    std::string complaint;
};

Result decode_with(const char* isa, const fuzz::Bytes& payload, const std::vector<std::int32_t>& rows,
                   std::uint8_t type, std::size_t first) {
    ::setenv("SPARSECODEC_CPU_ISA", isa, 1);
    Result result{std::vector<std::int32_t>(rows.size()), ""};
    try {
        lanes::Decoder decoder(payload.data(), payload.size(), static_cast<std::int64_t>(rows.size()));
        if (type == 0) decode<std::uint8_t>(decoder, result.symbols, rows, first);
        if (type == 1) decode<std::int16_t>(decoder, result.symbols, rows, first);
        if (type == 2) decode<std::int32_t>(decoder, result.symbols, rows, first);
        decoder.finish();
    } catch (const sparsecodec::BitstreamError& error) {
        result = {{}, error.what()};
    }
    return result;
}

}  // namespace

std::vector<fuzz::Bytes> fuzz::corpus() {
    return {input(0, 0, 0, 0, 9),  input(1, 1, 1, 9, 9),    input(2, 2, 2, 99, 3),   input(3, 0, 3, 0, 4000),
            input(2, 0, 4, 0, 40), input(4, 1, 5, 70, 900), input(5, 2, 6, 128, 50), input(6, 0, 7, 3, 9000)};
}

bool fuzz::run(const Bytes& bytes) {
    Source source(bytes);
    const std::int64_t total = kTotals[source.take<std::uint8_t>() % std::size(kTotals)];
    const std::uint8_t type = source.take<std::uint8_t>() % 3, seed = source.take<std::uint8_t>();
    const std::size_t first = static_cast<std::size_t>(total) * source.take<std::uint8_t>() / 256;
    const Bytes payload = source.rest();
    const auto indexes = row_numbers(static_cast<std::size_t>(total), kTables->rows(), seed);
    const Result scalar = decode_with("scalar", payload, indexes, type, first);
    for (const char* isa : {"avx2", "avx512"}) {
        const Result other = decode_with(isa, payload, indexes, type, first);
        require(other.complaint == scalar.complaint, "every instruction set gives the same complaint");
        require(other.symbols == scalar.symbols, "every instruction set gives the same symbols");
    }
    return scalar.complaint.empty();
}
