// Memory that runs out at any allocation: std::bad_alloc, nothing leaked, and what was there before still works.
#include <new>

#include "entropy/rans.h"
#include "fuzz.h"
#include "rans_tables.h"

using sparsecodec::rans::Reader;
using sparsecodec::rans::Tables;
using sparsecodec::rans::Writer;

const char* const fuzz::kName = "allocation";
const std::size_t fuzz::kMaxInput = 8;

namespace {

bool armed = false;
std::int64_t until_failure = 0, live = 0;

void* allocate(std::size_t size) {
    if (armed && until_failure-- <= 0) throw std::bad_alloc();
    void* const memory = std::malloc(size != 0 ? size : 1);
    if (memory == nullptr) throw std::bad_alloc();
    ++live;
    return memory;
}

void release(void* memory) noexcept {
    live -= memory != nullptr;
    std::free(memory);
}

const fuzz::Distributions kRows = fuzz::distributions();
const Tables kTables = kRows.tables();
const std::vector<std::int32_t> kIndexes = fuzz::row_numbers(3000, kTables.rows(), 1);
const std::vector<std::int32_t> kSymbols = fuzz::symbols_for(kIndexes, kRows, 1, 20);

std::vector<fuzz::Bytes> encode() {
    std::vector<Writer> writers(3);
    sparsecodec::rans::encode(writers, kSymbols.data(), kIndexes.data(), kIndexes.size(), kTables);
    std::vector<fuzz::Bytes> streams;
    for (const Writer& writer : writers) writer.flush_to(streams.emplace_back(writer.size()).data());
    return streams;
}

const std::vector<fuzz::Bytes> kStreams = encode();

void decode(std::size_t missing) {
    std::vector<Reader> readers;
    for (const fuzz::Bytes& stream : kStreams) readers.emplace_back(stream.data(), stream.size() - missing);
    std::vector<std::int32_t> symbols(kIndexes.size());
    sparsecodec::rans::decode(readers, symbols.data(), kIndexes.data(), kIndexes.size(), kTables);
    for (const Reader& reader : readers) reader.finish();
    fuzz::require(symbols == kSymbols, "what was coded is decoded");
}

void scenario(unsigned number) {
    if (number == 0) kRows.tables();
    if (number == 1) fuzz::require(encode() == kStreams, "the same symbols give the same bytes");
    if (number == 2) decode(0);
    if (number == 3) decode(400);  // ends too early: BitstreamError, whose message needs memory as well
}
constexpr unsigned kScenarios = 4;

}  // namespace

void* operator new(std::size_t size) { return allocate(size); }
void* operator new[](std::size_t size) { return allocate(size); }
void operator delete(void* memory) noexcept { release(memory); }
void operator delete[](void* memory) noexcept { release(memory); }
void operator delete(void* memory, std::size_t) noexcept { release(memory); }
void operator delete[](void* memory, std::size_t) noexcept { release(memory); }

// Which scenario, and at which of its allocations memory runs out.
std::vector<fuzz::Bytes> fuzz::corpus() {
    std::vector<Bytes> inputs;
    for (std::uint8_t number = 0; number < kScenarios; ++number) {
        for (std::uint16_t k = 0; k < 150; ++k) {
            append(inputs.emplace_back(Bytes{number}), k);
        }
    }
    return inputs;
}

bool fuzz::run(const Bytes& bytes) {
    Source source(bytes);
    const unsigned number = source.take<std::uint8_t>() % kScenarios;
    until_failure = source.take<std::uint16_t>() % 4096;
    const std::int64_t before = live;
    bool failed = false, damaged = false;
    armed = true;
    try {
        scenario(number);
    } catch (const std::bad_alloc&) {
        failed = true;
    } catch (const sparsecodec::BitstreamError&) {
        damaged = true;
    }
    armed = false;
    require(failed || damaged == (number == 3), "damaged bytes, and no others, are called damaged");
    require(live == before, "a call that fails gives all its memory back");
    // The text of a message may fall victim to it, not the error.
    require(failed || damaged || until_failure >= 0, "a failed allocation is reported");
    return !failed;
}
