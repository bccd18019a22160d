// The processor's checksum, the portable one, and one continued at any place agree, at any alignment.
#include "entropy/crc32c.h"

#include "fuzz.h"

const char* const fuzz::kName = "crc32c";
const std::size_t fuzz::kMaxInput = 1 << 13;

std::vector<fuzz::Bytes> fuzz::corpus() {
    Bytes digits{0, 0};
    for (char c = '1'; c <= '9'; ++c) digits.push_back(static_cast<std::uint8_t>(c));
    return {{0, 0}, digits, Bytes(5000, 0xa5)};
}

bool fuzz::run(const Bytes& bytes) {
    Source source(bytes);
    const std::size_t cut = source.take<std::uint16_t>();
    const Bytes data = source.rest();
    const std::size_t middle = data.empty() ? 0 : cut % (data.size() + 1);
    const std::uint32_t whole = sparsecodec::crc32c(data.data(), data.size());
    const std::uint32_t first = sparsecodec::crc32c(data.data(), middle);
    require(whole == sparsecodec::crc32c_portable(data.data(), data.size()), "both ways to compute it agree");
    require(whole == sparsecodec::crc32c(data.data() + middle, data.size() - middle, first), "it can be continued");
    return true;
}
