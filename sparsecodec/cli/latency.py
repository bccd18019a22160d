"""Times blocks of a codec as `compile_codec` runs them, for plans with a target in milliseconds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sparsecodec.cli.timing import interleaved
from sparsecodec.errors import UsageError
from sparsecodec.info import environment
from sparsecodec.models.video import VideoCodec
from sparsecodec.runtime.adapters import ADAPTERS
from sparsecodec.runtime.numerics import default_dtype
from sparsecodec.runtime.transform import CompiledTransform
from sparsecodec.sparsity.latency import Block
from sparsecodec.training.video_families import image_of, inter_of

ROUNDS = 15


class CompiledTimer:
    """Blocks on the kernels, and in the precision, that the compiled codec has for their transform.

    Args:
        model: the codec that the blocks belong to, dense or compact.
        device: where to run.
        dtype: of synthesis and analysis, as for `compile_codec`.
        rounds: timed runs of each block, interleaved with those of the others.

    Attributes:
        device: processor or GPU, precision and threads: figures of another one do not compare.

    Raises:
        UsageError: the codec is a video codec, a part of one, or of no family that `compile_codec` knows.
    """

    def __init__(
        self, model: nn.Module, device: str | torch.device, dtype: torch.dtype | None = None, rounds: int = ROUNDS
    ) -> None:
        family = next((adapter for adapter in ADAPTERS if adapter.matches(model)), None)
        if family is None:
            video = isinstance(model, VideoCodec) or image_of(model) or inter_of(model)
            why = "is of video coding, whose transforms" if video else "is of no family that can be compiled, so it"
            raise UsageError(
                f'{type(model).__name__} {why} cannot be timed block by block (needs target = "macs" or "params")'
            )
        self._exact = set(family.ENTROPY)
        self._device = torch.device(device)
        self._dtype = dtype or default_dtype(self._device)
        self._rounds = rounds
        name = environment()["cpu"] if self._device.type == "cpu" else torch.cuda.get_device_name(self._device)
        threads = f", {torch.get_num_threads()} threads" if self._device.type == "cpu" else ""
        self.device = f"{name}, {str(self._dtype).removeprefix('torch.')}{threads}"

    @torch.inference_mode()
    def __call__(self, blocks: Sequence[Block]) -> list[float]:
        """Milliseconds of one forward of each block, from interleaved runs after a warm-up.

        What a fifth of the runs stayed under: other programs delay a run, and none makes it faster.
        """
        calls = {str(number): self._call(block) for number, block in enumerate(blocks)}
        return [spread.p20_ms for spread in interleaved(calls, self._rounds).values()]

    def _call(self, block: Block) -> Callable[[], Tensor]:
        precision = torch.float32 if block.transform in self._exact else self._dtype
        module = copy.deepcopy(block.module).to(self._device).float().eval()
        compiled = CompiledTransform(module, block.transform, precision, strict=False)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(block.shape, generator=generator).to(self._device, precision)
        x = x.contiguous(memory_format=torch.channels_last)

        def call() -> Tensor:
            result = compiled(x)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            return result

        return call
