// The coder with a 64-bit state.
#include "rans_streams.h"

const char* const fuzz::kName = "rans";
const std::size_t fuzz::kMaxInput = 1 << 15;

std::vector<fuzz::Bytes> fuzz::corpus() { return Streams<sparsecodec::rans::Rans64>::corpus(); }
bool fuzz::run(const Bytes& bytes) { return Streams<sparsecodec::rans::Rans64>::run(bytes); }
