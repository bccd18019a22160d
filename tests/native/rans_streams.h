// Streams of any bytes: refused, or the symbols are those that make these very bytes. A program includes this, and
// defines the functions of fuzz.h by those of Streams<Coder>.
#pragma once

#include "entropy/rans.h"
#include "fuzz.h"
#include "rans_tables.h"

namespace fuzz {

struct Rows {
    Distributions values;
    sparsecodec::rans::Tables tables = values.tables();
};

inline const Rows kOrders[] = {{distributions()}, {zigzag_distributions()}};

// number of streams - 1, type of the indexes + 3 times the order of the rows, their seed, number of symbols, the sizes of
// all streams but the last, the streams.
constexpr std::size_t kMaxSymbols = 4096;

#ifdef SC_PLANT_OVERRUN  // room for one symbol too few: what the sanitizers are worth
constexpr bool kPlantedOverrun = true;
#else
constexpr bool kPlantedOverrun = false;
#endif

template <class Coder>
struct Streams {
    using Writer = sparsecodec::rans::BasicWriter<Coder>;
    using Reader = sparsecodec::rans::BasicReader<Coder>;

    static Bytes input(std::size_t streams, std::uint8_t type, std::uint8_t seed, std::size_t count,
                       std::size_t rarity) {
        const Rows& rows = kOrders[type / 3];
        const auto indexes = row_numbers(count, rows.tables.rows(), seed);
        const auto symbols = symbols_for(indexes, rows.values, seed, rarity);
        std::vector<Writer> writers(streams);
        sparsecodec::rans::encode(writers, symbols.data(), indexes.data(), count, rows.tables);
        Bytes bytes{static_cast<std::uint8_t>(streams - 1), type, seed};
        append(bytes, static_cast<std::uint16_t>(count));
        for (std::size_t k = 0; k + 1 < streams; ++k) append(bytes, static_cast<std::uint16_t>(writers[k].size()));
        for (const Writer& writer : writers) {
            bytes.resize(bytes.size() + writer.size());
            writer.flush_to(bytes.data() + bytes.size() - writer.size());
        }
        return bytes;
    }

    static std::vector<Bytes> corpus() {
        return {input(1, 0, 0, 0, 9),   input(1, 3, 1, 1, 9),      input(1, 1, 2, 50, 2),   input(2, 5, 3, 301, 20),
                input(3, 0, 4, 64, 99), input(16, 4, 5, 1000, 50), input(1, 2, 6, 900, 1),  input(2, 3, 7, 2000, 4000),
                input(4, 1, 8, 3, 9),   input(1, 4, 9, 4000, 400), input(5, 2, 10, 777, 7), input(1, 3, 11, 900, 1)};
    }

    template <class Index>
    static void decode(std::vector<Reader>& readers, std::vector<std::int32_t>& symbols,
                       const std::vector<std::int32_t>& numbers, const Rows& rows) {
        const std::vector<Index> indexes(numbers.begin(), numbers.end());
        sparsecodec::rans::decode(readers, symbols.data(), indexes.data(), indexes.size(), rows.tables);
    }

    static bool run(const Bytes& bytes) {
        Source source(bytes);
        const std::size_t streams = source.take<std::uint8_t>() % 16 + 1;
        const std::uint8_t type = source.take<std::uint8_t>() % 6, seed = source.take<std::uint8_t>();
        const std::size_t count = source.take<std::uint16_t>() % (kMaxSymbols + 1);
        std::vector<std::size_t> sizes;
        for (std::size_t k = 0; k + 1 < streams; ++k) sizes.push_back(source.take<std::uint16_t>());
        const Bytes rest = source.rest();
        std::vector<Bytes> parts;  // each in memory of its own: what follows is not theirs to read
        std::size_t start = 0;
        for (std::size_t k = 0; k < streams; ++k) {
            const std::size_t size = std::min(k + 1 < streams ? sizes[k] : rest.size(), rest.size() - start);
            parts.emplace_back(rest.begin() + static_cast<std::ptrdiff_t>(start),
                               rest.begin() + static_cast<std::ptrdiff_t>(start + size));
            start += size;
        }
        std::vector<Reader> readers;
        for (const Bytes& part : parts) readers.emplace_back(part.data(), part.size());
        const Rows& rows = kOrders[type / 3];
        const auto indexes = row_numbers(count, rows.tables.rows(), seed);
        std::vector<std::int32_t> symbols(count - (kPlantedOverrun && count > 1));
        if (type % 3 == 0) decode<std::uint8_t>(readers, symbols, indexes, rows);
        if (type % 3 == 1) decode<std::int16_t>(readers, symbols, indexes, rows);
        if (type % 3 == 2) decode<std::int32_t>(readers, symbols, indexes, rows);
        for (const Reader& reader : readers) reader.finish();

        bool escapes = false;  // their digits may have zeros in front: then there are shorter bytes for the symbols
        for (std::size_t i = 0; i < count; ++i) {
            const std::size_t row = static_cast<std::size_t>(indexes[i]);
            const std::int64_t place = rows.values.place(symbols[i], row);
            escapes |= place < 0 || place >= rows.values.lengths[row] - 2;
        }
        std::vector<Writer> writers(streams);
        sparsecodec::rans::encode(writers, symbols.data(), indexes.data(), count, rows.tables);
        for (std::size_t k = 0; k < streams; ++k) {
            Bytes again(writers[k].size());
            writers[k].flush_to(again.data());
            require(escapes ? again.size() <= parts[k].size() : again == parts[k],
                    "accepted bytes are those of the symbols");
        }
        return true;
    }
};

}  // namespace fuzz
