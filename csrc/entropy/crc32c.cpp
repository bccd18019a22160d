#include "entropy/crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace sparsecodec {
namespace {

constexpr std::array<std::uint32_t, 256> make_table() {
    std::array<std::uint32_t, 256> table{};
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
        std::uint32_t value = byte;
        for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (value & 1 ? 0x82f63b78u : 0u);
        table[byte] = value;
    }
    return table;
}

constexpr std::array<std::uint32_t, 256> kTable = make_table();

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) std::uint32_t crc32c_sse42(const unsigned char* data, std::size_t size,
                                                             std::uint32_t crc) {
    std::uint64_t state = ~crc;
    for (; size >= 8; data += 8, size -= 8) {
        std::uint64_t word;
        std::memcpy(&word, data, 8);
        state = _mm_crc32_u64(state, word);
    }
    std::uint32_t rest = static_cast<std::uint32_t>(state);
    for (; size > 0; ++data, --size) rest = _mm_crc32_u8(rest, *data);
    return ~rest;
}
#endif

}  // namespace

std::uint32_t crc32c_portable(const unsigned char* data, std::size_t size, std::uint32_t crc) {
    crc = ~crc;
    for (; size > 0; ++data, --size) crc = (crc >> 8) ^ kTable[(crc ^ *data) & 0xff];
    return ~crc;
}

std::uint32_t crc32c(const unsigned char* data, std::size_t size, std::uint32_t crc) {
#if defined(__x86_64__)
    static const bool has_sse42 = __builtin_cpu_supports("sse4.2");
    if (has_sse42) return crc32c_sse42(data, size, crc);
#endif
    return crc32c_portable(data, size, crc);
}

}  // namespace sparsecodec
