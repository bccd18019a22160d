"""Where the DCVC family's table index changes, for each of its rules, as float32 numbers."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

# Entry k: bits of the largest float32 that EVC's rule maps to index k or less, found by bisection on
#     trunc(clamp((log(max(s, 1e-5)) - log(0.11)) / ((log(64) - log(0.11)) / 255), 0, 255))
# as torch 2.13 computes it in float32 on x86-64 (AVX-512, AVX2 and plain builds agree; the index never decreases).
# Another build's logarithm may move an entry by one unit in the last place; the stream is defined by these numbers.
# SHA-256 over the little-endian bytes begins with 78fc4a4a7ef9cfff.
_EVC_BITS = """
3de6f9993decd05e3df2ccec3df8f0383dff3b3d3e02d77e3e0626403e098a683e0d04823e10951d3e143cca3e17fc1e3e1bd3b3
3e1fc4253e23ce143e27f2283e2c31083e308b613e3501e73e39954d3e3e46513e4315b23e4804323e4d129d3e5241c33e579274
3e5d058a3e629be53e68566a3e6e36003e743b993e7a682c3e805e593e839d173e86f0d73e8a5a1e3e8dd9793e916f773e951ca8
3e98e1a53e9cbf083ea0b56c3ea4c5753ea8efcb3ead35133eb195ff3eb613423ebaad923ebf65ab3ec43c503ec932443ece4851
3ed37f4a3ed8d8023ede53533ee3f21e3ee9b54b3eef9dc03ef5ac713efbe2563f0120353f0463db3f07bca13f0b2b0f3f0eafb2
3f124b193f15fdd93f19c8873f1dabbe3f21a8203f25be4c3f29eeea3f2e3aa73f32a2303f3726393f3bc77e3f4086b83f4564aa
3f4a621c3f4f7fd83f54beb03f5a1f7e3f5fa3163f654a5e3f6b163c3f71079d3f771f743f7d5ebd3f81e3383f852bcb3f88899e
3f8bfd3b3f8f872d3f9328093f96e05e3f9ab0c63f9e99dd3fa29c423fa6b89a3faaef8f3faf41c73fb3aff73fb83ad23fbce313
3fc1a9783fc68ec43fcb93c13fd0b9373fd5fffb3fdb68e53fe0f4d13fe6a4a23fec79463ff273a13ff894ab3ffedd5f4002a75f
4005f4e8400957d2400cd0a540105ff0401406444017c437401b9a62401f8963402391d74027b464402bf1b440304a734034bf53
4039510b403e00544042cdf14047baa1404cc7304051f46c40574328405cb43d4062488f406800f7406dde644073e1c6407a0c12
40802f2240836caf4086bf35408a273b408da54c409139f84094e5cf4098a969409c856240a07a5140a488dc40a8b1a740acf55e
40b154ae40b5d04b40ba68e940bf1f4640c3f42140c8e84140cdfc7040d3318240d8884240de018f40e39e4940e95f5540ef459d
40f5521340fb85ae4100f0b64104332841078ab2410af7dc410e7b3a4112154e4115c6b141198ffa411d71c341216cad41258158
4129b06b412dfa934132607d4136e2dd413b826c41403fea41451c12414a17ad414f3388415470724159cf42415f50d44164f607
416abfc34170aef44176c48d417d01864181b3754184fad341885769418bc9c1418f52664192f1ea4196a8e1419a77e2419e5f88
41a2607441a67b4941aab0ae41af015041b36de141b7f71141bc9d9b41c1623f41c645bd41cb48df41d06c7141d5b14441db1830
41e0a21241e64fcc41ec224641f21a7941f8394241fe7fa7420277544205c3a64209254f420c9cdb42102ad74213cfd442178c67
421b6128421f4eb4422355af422776b6422bb2774230099d42347cd942390ce3423dba734242864a4247712a424c7bde4251a732
4256f3fb425c63184261f5574267aba5426d86ea427388154279b01d427ffffc
"""


@functools.cache
def evc_scale_thresholds() -> Tensor:
    """Thresholds of EVC, DCVC-HEM-I, DCVC-DC-I and DCVC-FM-I: 256 Gaussians, scales 0.11 to 64. ``[255]`` float32."""
    text = "".join(_EVC_BITS.split())
    bits = [int(text[start : start + 8], 16) for start in range(0, len(text), 8)]
    return torch.tensor(bits, dtype=torch.int32).view(torch.float32)


def scale_table_thresholds(scale_table: Tensor, lower_bound: float = 0.0) -> Tensor:
    """Thresholds of CompressAI's rule: a scale, at least `lower_bound`, gets the first table that is not below it.

    Args:
        scale_table: ``[L]`` float32, ascending.
        lower_bound: ``lower_bound_scale`` of the model.

    Returns:
        ``[L - 1]`` float32.
    """
    thresholds = scale_table.detach()[:-1].float().clone()
    thresholds[thresholds < torch.tensor(lower_bound, dtype=torch.float32)] = float("-inf")
    return thresholds
