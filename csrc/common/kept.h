// Which positions of a latent have a symbol in the stream, once for CPU and GPU.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace sparsecodec {

inline constexpr std::int16_t kSkipped = -1;  // table index of a position whose symbol is not in the stream

SC_HOST_DEVICE inline bool is_kept(std::int16_t index) { return index >= 0; }

}  // namespace sparsecodec
