// Tables of any integers: either refused, or every symbol survives the coder with them. The encoder's arguments too.
#include "entropy/rans.h"
#include "fuzz.h"

using sparsecodec::rans::Reader;
using sparsecodec::rans::Tables;
using sparsecodec::rans::Writer;

const char* const fuzz::kName = "tables";
const std::size_t fuzz::kMaxInput = 1 << 14;

namespace {

// rows, columns, then per row length, offset and the values, then a pair (symbol, index) per symbol.
fuzz::Bytes input(const std::vector<std::vector<std::int32_t>>& rows, std::int32_t offset, std::size_t symbols) {
    std::size_t columns = 0;
    for (const auto& row : rows) columns = std::max(columns, row.size());
    fuzz::Bytes bytes;
    fuzz::append(bytes, static_cast<std::uint8_t>(rows.size()));
    fuzz::append(bytes, static_cast<std::uint16_t>(columns));
    for (auto row : rows) {
        fuzz::append(bytes, static_cast<std::int32_t>(row.size()));
        fuzz::append(bytes, offset);
        row.resize(columns);
        for (const std::int32_t value : row) fuzz::append(bytes, value);
    }
    fuzz::Random random(symbols);
    for (std::size_t i = 0; i < symbols; ++i) {
        const bool far = random.below(5) == 0;
        const auto symbol = static_cast<std::int32_t>(far ? random.next() >> random.below(64) : random.below(6));
        fuzz::append(bytes, symbol);
        fuzz::append(bytes, static_cast<std::int32_t>(random.below(rows.size())));
    }
    return bytes;
}

}  // namespace

std::vector<fuzz::Bytes> fuzz::corpus() {
    std::vector<std::int32_t> fine(65537), steep{0, 1, 2, 65535, 65536};
    for (std::int32_t i = 0; i <= 65536; ++i) fine[static_cast<std::size_t>(i)] = i;
    return {input({{0, 65536}}, 0, 9), input({{0, 30000, 65535, 65536}}, -1, 40), input({steep, {0, 5, 65536}}, 3, 60),
            input({{0, 65535, 65536}}, 1 << 30, 5), input({{0, 1, 65536}}, -(1 << 30), 5), input({fine}, 0, 30)};
}

bool fuzz::run(const Bytes& bytes) {
    Source source(bytes);
    const std::size_t rows = source.take<std::uint8_t>(), columns = source.take<std::uint16_t>();
    // As large as they say, so that reading past a row would be found; a few bytes may not ask for gigabytes.
    if (rows * columns > 1 << 18) return false;
    std::vector<std::int32_t> cdf, lengths, offsets;
    for (std::size_t r = 0; r < rows; ++r) {
        lengths.push_back(source.take<std::int32_t>());
        offsets.push_back(source.take<std::int32_t>());
        for (std::size_t c = 0; c < columns; ++c) cdf.push_back(source.take<std::int32_t>());
    }
    cdf.shrink_to_fit();
    lengths.shrink_to_fit();
    offsets.shrink_to_fit();
    const Tables tables(cdf.data(), rows, columns, lengths.data(), offsets.data());

    std::vector<std::int32_t> symbols, indexes;
    while (source.left() > 0) {
        symbols.push_back(source.take<std::int32_t>());
        indexes.push_back(source.take<std::int32_t>());
    }
    std::vector<Writer> writers(1 + symbols.size() % 4);
    sparsecodec::rans::encode(writers, symbols.data(), indexes.data(), symbols.size(), tables);
    std::vector<Bytes> streams;
    std::vector<Reader> readers;
    for (const Writer& writer : writers) {
        writer.flush_to(streams.emplace_back(writer.size()).data());
        readers.emplace_back(streams.back().data(), streams.back().size());
    }
    std::vector<std::int32_t> decoded(symbols.size());
    sparsecodec::rans::decode(readers, decoded.data(), indexes.data(), symbols.size(), tables);
    for (const Reader& reader : readers) reader.finish();
    require(decoded == symbols, "what was coded is decoded");
    return true;
}
