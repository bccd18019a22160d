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

# The same for 256 Laplace distributions: EVC's rule with log(0.01) in the place of log(0.11). SHA-256 begins with
# d2100907bb5d8cd9.
_LAPLACE64_BITS = """
3c2991a03c2f7f813c35a2753c3bfc523c428f0e3c495ca13c5067143c57b0933c5f3b4d3c6709823c6f1d9e3c777a0a3c8010a2
3c848aff3c892d713c8df95b3c92f0393c9813863c9d64d03ca2e5b33ca897dc3cae7cfe3cb496e63cbae76d3cc170783cc83403
3ccf341c3cd672dc3cddf2773ce5b5343cedbd653cf60d7d3cfea8013d03c7c23d08635f3d0d283c3d1217c83d1733833d1c7cf9
3d21f5c13d279f833d2d7bfa3d338ce43d39d41c3d40538a3d470d1d3d4e02e43d5536fb3d5cab8a3d6462d63d6c5f363d74a30f
3d7d30e33d8305a63d879a793d8c584e3d9140973d9654cb3d9b96783da107303da6a89b3dac7c703db2846b3db8c2633dbf383c
3dc5e7eb3dccd3713dd3fce93ddb66803de3126d3deb03063df33ab63dfbbbf13e0244a63e06d2bb3e0b89943e106aa13e15775c
3e1ab1483e2019fe3e25b3203e2b7e5b3e317d753e37b23e3e3e1e913e44c4673e4ba5bd3e52c4a73e5a23533e61c3f53e69a8db
3e71d4703e7a49253e8184c43e860c233e8abc0c3e8f95e73e949b323e99cd6d3e9f2e293ea4bf0c3eaa81c13eb078043eb6a3a8
3ebd06883ec3a28f3eca79c43ed18e333ed8e1ff3ee077673ee850af3ef070363ef8d8793f00c5fd3f0546af3f09efb13f0ec26a
3f13c04f3f18eadf3f1e43b33f23cc633f2986983f2f74163f3596a43f3bf0173f4282663f494f883f5059853f57a28b3f5f2cc0
3f66fa7b3f6f0e103f7769e93f80084e3f8482603f8924813f8df01f3f92e6aa3f98099e3f9d5a913fa2db1b3fa88ce03fae71a3
3fb48b283fbadb403fc163e13fc826fe3fcf269d3fd664e73fdde4093fe5a63e3fedadec3ff5fd7e3ffe976b4003bf2f40085a81
400d1f0b40120e46401729ae401c72c84021eb364027949d402d70ad403381344039c8084040470340470028404df58040552918
405c9d2d406453fd406c4fd640749322407d206d4082fd21408791a5408c4f2f4091372540964b02409b8c5940a0fcb740a69dc2
40ac713740b278cf40b8b65c40bf2bcd40c5db0b40ccc61b40d3ef2140db583a40e303a540eaf3c040f32ae440fbab8d41023c2f
4106c9f6410b807f4110613e41156da3411aa73641200f954125a858412b7331413171eb4137a64b413e12314144b79b414b987d
4152b6ee415a15234161b545416999a54171c4b5417a38dc41817c554186036c418ab305418f8c8e419491884199c36b419f23cc
41a4b45541aa76a941b06c8741b697c741bcfa3b41c395d241ca6c9941d1809141d8d3e141e068ce41e8419241f0608b41f8c84e
4200bd9c42053e084209e6b8420eb91c4213b6b64218e0f0421e39664223c1bd42297b92422f68a842358ad8423be3e2424275bd
4249427142504bf94257947f425f1e4a4266eb7b426efe83427759d8427ffff4
"""

# The same for DCVC-RT's rule, trunc((log(clamp(s, 0.11, 16)) - log(0.11)) * (127 / (log(16) - log(0.11)))), with the
# factor rounded to float32 before it multiplies. SHA-256 begins with f0ccf45534049dff.
_RT_BITS = """
3dea4a00 3df3a88c 3dfd6703 3e03c49d 3e090999 3e0e8486 3e14378e 3e1a24ef 3e204efe 3e26b829 3e2d62f7 3e345204 3e3b880e
3e4307eb 3e4ad48f 3e52f10b 3e5b6092 3e642674 3e6d4627 3e76c342 3e8050c0 3e857264 3e8ac88f 3e90555d 3e961afc 3e9c1bb2
3ea259dd 3ea8d7f0 3eaf987c 3eb69e27 3ebdebb7 3ec5840a 3ecd6a1d 3ed5a10f 3ede2c19 3ee70e98 3ef04c0e 3ef9e81b 3f01f345
3f0725a4 3f0c8d37 3f122c1f 3f180491 3f1e18dd 3f246b64 3f2afea5 3f31d536 3f38f1c9 3f405729 3f480842 3f500819 3f5859d6
3f6100bd 3f6a0037 3f735bd0 3f7d1735 3f839b1e 3f88de71 3f8e57a4 3f9408e1 3f99f464 3fa01c85 3fa683ab 3fad2c5e 3fb4193a
3fbb4cff 3fc2ca7f 3fca94b1 3fd2aea0 3fdb1b7d 3fe3de9e 3fecfb70 3ff6758f 40002859 4005485e 400a9cdb 401027e9 4015ebb6
401bea89 402226bc 4028a2c5 402f612f 403664a5 403dafe6 404545d6 404d296b 40555dc9 405de624 4066c5d6 40700065 4079996a
4081ca5a 4086fb16 408c60f6 4091fe17 4097d4b4 409de713 40a4379d 40aac8cb 40b19d36 40b8b78a 40c01a98 40c7c941 40cfc698
40d815b7 40e0b9e1 40e9b68c 40f30f2f 40fcc785 410371ac 4108b35a 410e2ad3 4113da44 4119c3e8 411fea1b 41264f3a 412cf5d5
4133e082 413b1208 41428d29 414a54e5 41526c43 415ad680 416396de 416cb0cf 417627f8 417ffffe
"""


# The same for DCVC-UF's rule, floor((log(clamp(s, 0.11, 16)) + 2.2073) * 25.5025) in halves: each constant and each
# result is rounded to float16. Entry k: bits of the largest float32 that rounds to a half of index k or less. SHA-256
# begins with 467125b21ce636ec.
_UF_BITS = """
3dea9000 3df3efff 3dfd9000 3e03d000 3e091000 3e0e6fff 3e145000 3e1a2fff 3e205000 3e26d000 3e2d6fff 3e345000
3e3b6fff 3e432fff 3e4aefff 3e531000 3e5b6fff 3e642fff 3e6d2fff 3e76afff 3e805000 3e856fff 3e8ad000 3e905000
3e961000 3e9c1000 3ea25000 3ea8efff 3eafafff 3eb6afff 3ebdefff 3ec59000 3ecd6fff 3ed59000 3ede1000 3ee71000
3ef05000 3ef9d000 3f01efff 3f071000 3f0c6fff 3f121000 3f181000 3f1e1000 3f246fff 3f2aefff 3f31d000 3f38d000
3f405000 3f481000 3f501000 3f582fff 3f60d000 3f69d000 3f731000 3f7d5000 3f83afff 3f88efff 3f8e6fff 3f941000
3f99efff 3fa01000 3fa66fff 3fad1000 3fb41000 3fbb2fff 3fc2afff 3fca6fff 3fd26fff 3fdad000 3fe39000 3fecefff
3ff66fff 40001000 40052fff 400a9000 40101000 4015d000 401bd000 4021efff 40286fff 402f1000 40361000 403d5000
40456fff 404d5000 40556fff 405defff 4066d000 40701000 40799000 4081d000 4086efff 408c5000 4091efff 4097afff
409dafff 40a42fff 40aaafff 40b19000 40b89000 40bfefff 40c76fff 40cf5000 40d79000 40e02fff 40e92fff 40f25000
40fbefff 4102efff 41091000 410e6fff 41142fff 411a1000 41202fff 41269000 412d2fff 41341000 413b5000 4142afff
414a6fff 41529000 415aefff 4163afff 416cafff 41762fff 417fefff
"""


def _floats(text: str) -> Tensor:
    """Hexadecimal words, eight digits each -> ``[L]`` float32 of those bits."""
    digits = "".join(text.split())
    bits = [int(digits[start : start + 8], 16) for start in range(0, len(digits), 8)]
    return torch.tensor(bits, dtype=torch.int32).view(torch.float32)


@functools.cache
def evc_scale_thresholds() -> Tensor:
    """Thresholds of EVC, DCVC-HEM-I, DCVC-DC-I and DCVC-FM-I: 256 Gaussians, scales 0.11 to 64. ``[255]`` float32."""
    return _floats(_EVC_BITS)


@functools.cache
def laplace_scale_thresholds() -> Tensor:
    """Thresholds of DCVC-HEM-P, DCVC-DC-P and DCVC-FM-P: 256 Laplace laws, scales 0.01 to 64. ``[255]`` float32."""
    return _floats(_LAPLACE64_BITS)


@functools.cache
def rt_scale_thresholds() -> Tensor:
    """Thresholds of DCVC-RT in float32: 128 Gaussians, scales 0.11 to 16. ``[127]`` float32."""
    return _floats(_RT_BITS)


@functools.cache
def uf_scale_thresholds() -> Tensor:
    """Thresholds of DCVC-UF, whose rule is one of halves: 128 Gaussians, scales 0.11 to 16. ``[127]`` float32."""
    return _floats(_UF_BITS)


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


# Entry k: bits of the float32 scale k of DCVC's table, exp(linspace(log(0.01), log(16), 64)) as torch computes it.
# SHA-256 over the little-endian bytes begins with 0b703e0e2f4e0ded.
_DCVC_BITS = """
3c23d70a3c38320c3c4f14793c68ceb93c82dda33c931fe33ca5673f3cb9f3fa3cd10e4a3ceb07693d041d4f3d1487443d26fb48
3d3bba333d530cf53d6d45823d8560053d95f2143da893293dbd84c43dd5107c3def89193e06a5d03e1760593e2a2ef13e3f53b3
3e5718f03e71d2353e87eeb93e98d21d3eabcea63ec1270d3ed926593ef420e53f093ac23f1a47673f2d72503f42fedc3f5b38c8
3f76753b3f8a89f83f9bc0433faf19fe3fc4db2d3fdd50463ff8cf41400bdc60401d3cb64030c5b64046bc08405f6cdf407b2f03
408d3204409ebccc40b2758340c8a17b40e18ea240fd9496410e8ae84120408b4134296e414a8b904163b598
"""


@functools.cache
def dcvc_scale_thresholds() -> Tensor:
    """Thresholds of DCVC (2021): 64 Laplace distributions, scales 0.01 to 16. ``[63]`` float32."""
    return _floats(_DCVC_BITS)
