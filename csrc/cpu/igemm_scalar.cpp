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
    for_each_block(args, block_generic<In, Out>);
}

template <class In, class Out>
void finish_scalar(const BlockArgs<In, Out>& args, float* sums) {
    finish_pixels(args, sums);
}

template void block_scalar(const BlockArgs<float, float>&);
template void finish_scalar(const BlockArgs<float, float>&, float*);
template void block_scalar(const BlockArgs<bf16, bf16>&);
template void finish_scalar(const BlockArgs<bf16, bf16>&, float*);
template void block_scalar(const BlockArgs<bf16, float>&);
template void finish_scalar(const BlockArgs<bf16, float>&, float*);

}  // namespace sparsecodec::igemm
