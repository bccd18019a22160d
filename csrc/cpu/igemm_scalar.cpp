// Portable kernels: plain C++, std::fma. The judge of the other instruction sets, and what runs where there is none.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/igemm_isa.h"

namespace sparsecodec::igemm {
namespace {
#include "cpu/igemm_epilogue.inl"
#include "cpu/igemm_generic.inl"
}  // namespace

template <class In, class Out>
void block_scalar(const BlockArgs<In, Out>& args) {
    block_generic(args);
}

template void block_scalar(const BlockArgs<float, float>&);
template void block_scalar(const BlockArgs<bf16, bf16>&);
template void block_scalar(const BlockArgs<bf16, float>&);

}  // namespace sparsecodec::igemm
