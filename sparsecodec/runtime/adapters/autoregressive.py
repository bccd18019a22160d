"""CompressAI's codecs with a context model: the tables of a position depend on those before it (arXiv 1809.02736)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec.entropy import Decoder, encode
from sparsecodec.errors import UsageError
from sparsecodec.nn.fingerprint import model_hash
from sparsecodec.ops import bind, specs
from sparsecodec.runtime.adapters.compressai import Calls, HyperpriorCodec, Network
from sparsecodec.runtime.codec import finished
from sparsecodec.runtime.context_model import (
    ContextModel,
    ContextPart,
    ContextRate,
    ContextRows,
    Offsets,
    why_not_native,
)
from sparsecodec.runtime.report import Report


class AutoregressiveCodec(HyperpriorCodec):
    """mbt2018, cheng2020 and their like.

    ``encode`` and ``decode`` run the entropy networks in the pinned arithmetic of `ContextModel`, wave by wave in one
    native call: the bytes depend neither on threads nor on the CPU.

    ``compress`` and ``decompress`` must round every scale as CompressAI does, whose bits depend on the version of
    torch, the processor and the thread count: the strings are CompressAI's where those are the same. `ContextRows`
    adds in torch's order in one native call. Each call first compares it with torch's layers on random numbers; where
    they differ, torch's own layers run, position by position.
    """

    ENTROPY: ClassVar = ("h_s", "context_prediction", "entropy_parameters")
    INSIDE: ClassVar = ENTROPY[1:]  # of a `ContextModel`
    CHILDREN: ClassVar = HyperpriorCodec.CHILDREN | set(INSIDE)

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype, strict: bool) -> None:
        _check_context(model.context_prediction)
        reason = self._why_not_native(model, device)
        self.EAGER = dict.fromkeys(self.ENTROPY if reason else self.INSIDE, reason)
        super().__init__(model, device, dtype, strict)
        self._context = context = self._model.context_prediction
        # The model masks its weight in every forward; the hash must not depend on whether there was one.
        context.weight.mul_(context.mask)
        self.model_hash = model_hash(self._model)[:8]
        scales = torch.empty(1, self._latent, 1, 1, dtype=torch.float32, device=device)
        self._table_rows = bind(specs()["entropy_parameters"], scales, self._thresholds.to(device)).run
        self._rows: ContextRows | None = None
        if not reason:
            self.EAGER = {}
            constants = (context, self._model.entropy_parameters, self._thresholds, self._tables)
            offsets = self._offsets(self._model)
            waves = ContextModel(*constants, offsets=offsets)
            for path in self.INSIDE:
                self._transforms[path] = ContextPart(self._model.get_submodule(path), path, waves)
            self._rows = ContextRows(*constants, self._parameters_at, offsets=offsets)

    @staticmethod
    def _why_not_native(model: nn.Module, device: torch.device) -> str:
        return why_not_native(model.context_prediction, model.entropy_parameters, device)

    @staticmethod
    def _offsets(model: nn.Module) -> Offsets | None:
        """What moves decoded values, of codecs that have a rate."""
        return None

    def _parameter_channels(self) -> int:
        width = self._prior_channels + self._model.context_prediction.out_channels
        return self._channels("entropy_parameters", width, 1, 1)

    def input_shapes(self, height: int, width: int) -> dict[str, tuple[int, int, int, int]]:
        h, w = height // 16, width // 16
        prior = self._prior_channels + self._context.out_channels
        own = {"context_prediction": (1, self._latent, h, w), "entropy_parameters": (1, prior, h, w)}
        return {**super().input_shapes(height, width), **own}

    def _compress(
        self, x: Tensor, networks: Callable[[str], Network], rate: Any = None
    ) -> tuple[list[list[bytes]], torch.Size]:
        """As `HyperpriorCodec._compress`; `rate`: of codecs that have several, as for the methods that take one."""
        y, z_symbols = self._latents(x, networks)
        calls = Calls()
        calls(self._bottleneck.coding(z_symbols.cpu()), None)
        prior = networks("h_s")(self._bottleneck.restore(z_symbols))
        context = self._native(networks)
        if context is not None:
            here = self._context_rate(context, rate)
            strings = [context.encode(y[i : i + 1], prior[i : i + 1], here)[0] for i in range(len(y))]
            return [strings, *calls.strings], calls.shape
        margin = self._context.kernel_size[0] // 2
        padded = F.pad(y.contiguous(), (margin,) * 4)
        strings = [self._encode_one(padded[i : i + 1], prior[i : i + 1], rate) for i in range(len(y))]
        return [strings, *calls.strings], calls.shape

    def _encode_one(self, y_hat: Tensor, prior: Tensor, rate: Any) -> bytes:
        count = prior.shape[2] * prior.shape[3]
        symbols = torch.empty(count, self._latent, dtype=torch.int32)
        rows = torch.empty(count, self._latent, dtype=torch.int16)

        def push(position: int, y_here: Tensor, scales: Tensor, means: Tensor | None) -> Tensor:
            rounded = self._rounded(y_here, means, rate)
            symbols[position] = rounded.view(-1)
            rows[position] = self._rows_at(scales, rate).view(-1)
            return self._moved(rounded, scales, means, rate)

        self._walk(y_hat, prior, push, self._shift(rate))
        return encode(symbols, rows, self._tables)

    def _decompress(
        self,
        strings: list[list[bytes]],
        shape: torch.Size,
        size: tuple[int, int],
        networks: Callable[[str], Network],
        rate: Any = None,
    ) -> Tensor:
        z_symbols = self._bottleneck.decode(strings[1], shape).to(self.device)
        prior = networks("h_s")(self._bottleneck.restore(z_symbols))
        context = self._native(networks)
        if context is not None:
            here = self._context_rate(context, rate)
            y_hat = torch.cat([context.decode(some, prior[i : i + 1], here) for i, some in enumerate(strings[0])])
        else:
            y_hat = self._decode_latent(strings[0], prior, rate)
        return finished(self._transforms["g_s"](y_hat), *size)

    def _native(self, networks: Callable[[str], Network]) -> ContextModel | None:
        """What codes with these networks in one call, if there is something."""
        context = networks("context_prediction")
        if isinstance(context, ContextPart):
            return context.model
        return self._rows if self._rows is not None and self._rows.matches() else None

    def _decode_latent(self, strings: list[bytes], prior: Tensor, rate: Any) -> Tensor:
        margin = self._context.kernel_size[0] // 2
        n, _, h, w = prior.shape
        y_hat = torch.zeros(n, self._latent, h + 2 * margin, w + 2 * margin, dtype=torch.float32, device=prior.device)
        for i, string in enumerate(strings):
            self._decode_one(string, y_hat[i : i + 1], prior[i : i + 1], rate)
        return y_hat[:, :, margin : margin + h, margin : margin + w]

    def _decode_one(self, string: bytes, y_hat: Tensor, prior: Tensor, rate: Any) -> None:
        decoder = Decoder(string)

        def pull(position: int, y_here: Tensor, scales: Tensor, means: Tensor | None) -> Tensor:
            symbols = decoder.decode(self._rows_at(scales, rate).cpu(), self._tables).to(scales)
            return self._moved(symbols, scales, means, rate)

        self._walk(y_hat, prior, pull, self._shift(rate))
        decoder.finish()

    def _context_rate(self, context: ContextModel, rate: Any) -> ContextRate | None:
        """The rate as `context` takes it."""
        return None

    def _rounded(self, y: Tensor, means: Tensor | None, rate: Any) -> Tensor:
        """Latent -> symbols, like all of the next ``[1, M, 1, 1]``, in floating point."""
        return (y if means is None else y - means).round()

    def _rows_at(self, scales: Tensor, rate: Any) -> Tensor:
        """Scales -> rows of the tables."""
        return self._table_rows(scales)

    def _moved(self, symbols: Tensor, scales: Tensor, means: Tensor | None, rate: Any) -> Tensor:
        """Symbols -> decoded latent."""
        return symbols if means is None else symbols + means

    def _shift(self, rate: Any) -> Tensor | None:
        """What is added to the context, ``[1, C, 1, 1]``."""
        return None

    def _walk(
        self,
        y_hat: Tensor,
        prior: Tensor,
        code: Callable[[int, Tensor, Tensor, Tensor | None], Tensor],
        shift: Tensor | None = None,
    ) -> None:
        """Visits the positions of one picture in raster order and leaves in `y_hat` what `code` returns for each.

        Shapes, layout and operations are the model's own, so that the bits are, too.

        Args:
            y_hat: ``[1, M, H + 2 p, W + 2 p]``, p the reach of the context; changed.
            prior: ``[1, P, H, W]``.
            code: (position, latent, scales, means), the latter three ``[1, M, 1, 1]``, -> decoded latent.
            shift: as for `_parameters_at`.
        """
        size = self._context.kernel_size[0]
        margin = size // 2
        height, width = prior.shape[2:]
        for row in range(height):
            for column in range(width):
                seen = y_hat[:, :, row : row + size, column : column + size]
                here = y_hat[:, :, row + margin, column + margin, None, None]
                parameters = self._parameters_at(seen, prior[:, :, row : row + 1, column : column + 1], shift)
                scales, means = parameters.chunk(2, 1) if self._has_means else (parameters, None)
                here.copy_(code(row * width + column, here, scales, means))

    def _parameters_at(self, seen: Tensor, prior: Tensor, shift: Tensor | None = None) -> Tensor:
        """Entropy parameters of a position, as the model itself computes them; `shift` is added to the context."""
        predicted = F.conv2d(seen, self._context.weight, self._context.bias)
        predicted = predicted if shift is None else predicted + shift
        return self._model.entropy_parameters(torch.cat((prior, predicted), 1))

    @property
    def report(self) -> Report:
        """As `CompiledCodec.report`, and how `compress` and `decompress` code."""
        report = super().report
        with self._lock, torch.inference_mode():
            how = "row by row in one native call" if self._rows and self._rows.matches() else "as torch layers"
        return replace(report, notes=(*report.notes, f"context model of compress and decompress: {how}"))


def _check_context(context: nn.Module) -> None:
    kernel = getattr(context, "kernel_size", (0, 0))
    if kernel[0] != kernel[1] or kernel[0] % 2 == 0 or context.stride != (1, 1) or context.groups != 1:
        raise UsageError(f"context_prediction is {context} (needs an odd square kernel, stride 1, one group)")
    mask = getattr(context, "mask", None)
    if mask is None or mask.shape != context.weight.shape or bool(mask.flatten(2)[:, :, kernel[0] ** 2 // 2 :].any()):
        raise UsageError(
            f"context_prediction is {context} (needs a mask that hides the centre and all that follows it row by row)"
        )
