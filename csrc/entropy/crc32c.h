// CRC-32C (Castagnoli): reflected polynomial 0x82f63b78, start and final complement 0xffffffff. Not the CRC of zlib.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sparsecodec {

// data: host, `size` bytes, any alignment, borrowed. `crc` is the result for the bytes before, 0 at the start.
std::uint32_t crc32c(const unsigned char* data, std::size_t size, std::uint32_t crc = 0);

// The same without the processor's CRC instruction; the other one's judge and its stand-in.
std::uint32_t crc32c_portable(const unsigned char* data, std::size_t size, std::uint32_t crc = 0);

}  // namespace sparsecodec
