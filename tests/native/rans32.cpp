// The coder with a 32-bit state.
#include "rans_streams.h"

const char* const fuzz::kName = "rans32";
const std::size_t fuzz::kMaxInput = 1 << 15;

std::vector<fuzz::Bytes> fuzz::corpus() { return Streams<sparsecodec::rans::Rans32>::corpus(); }
bool fuzz::run(const Bytes& bytes) { return Streams<sparsecodec::rans::Rans32>::run(bytes); }
