"""Coding as alternating work: networks on a device, symbols on the host.

A routine is a generator of device work. Where it needs the coder it yields a `Coding` and, when decoding, is sent the
symbols. It never looks at a value itself, so whoever drives it may run it eagerly (`drive`) or capture the stretches
between two yields once and replay them. Where the host knows the table rows without the device, a routine yields a
`Known`: networks that it ran before, or that follow but for which it needs no symbols, are at work while the host
decodes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsecodec.entropy import Decoder, Encoder, EntropyTables
from sparsecodec.entropy.lanes_cuda import CudaLaneDecoder


@dataclass(frozen=True)
class Coding:
    """One coding call.

    Attributes:
        tables: the distributions.
        indexes: table row of each symbol, int16, in the order of the stream.
        symbols: int32, shape of `indexes`; None when decoding: then they are the answer.
    """

    tables: EntropyTables
    indexes: Tensor
    symbols: Tensor | None = None


@dataclass(frozen=True)
class Known:
    """A decoding call whose tables and rows the host has (`pulling`), so that it waits for no device.

    The answer is in host memory when it was computed eagerly; the routine brings it to its device.

    Attributes:
        shape: of the symbols.
    """

    shape: tuple[int, ...]


def channel_indexes(shape: tuple[int, ...], device: torch.device | None = None) -> Tensor:
    """Indexes of a factorised latent ``[N, C, H, W]``: table row = channel, int16."""
    rows = torch.arange(shape[1], dtype=torch.int16, device=device or "cpu")
    return rows[None, :, None, None].expand(shape).contiguous()


Routine = Generator[Coding | Known, Tensor | None, Any]
# (request on the host, where decoded symbols go or None) -> the symbols when decoding, None when encoding
Host = Callable[[Coding | Known, Tensor | None], Tensor | None]


def _answered(routine: Routine, answer: Callable[[Coding | Known], Tensor | None]) -> Any:
    symbols = None
    while True:
        try:
            request = routine.send(symbols)
        except StopIteration as stop:
            return stop.value
        symbols = answer(request)


def drive(routine: Routine, host: Host) -> Any:
    """Runs `routine` to its end, answering each request by `host`, and returns what it returns."""

    def answer(request: Coding | Known) -> Tensor | None:
        if isinstance(request, Known):
            return host(request, None)
        symbols = None if request.symbols is None else request.symbols.cpu()
        decoded = host(Coding(request.tables, request.indexes.cpu(), symbols), None)
        return None if decoded is None else decoded.to(request.indexes.device)

    return _answered(routine, answer)


def drive_on_device(routine: Routine, decoder: CudaLaneDecoder) -> Any:
    """As `drive`, for a decoding routine without `Known` calls: `decoder` is where the networks are."""
    return _answered(routine, lambda request: decoder.decode(request.indexes, request.tables))


def eagerly(routine: Callable[..., Routine], *inputs: Any, host: Host) -> Any:
    """Runs ``routine(*inputs)`` by `drive`; what captures routines takes the same arguments."""
    return drive(routine(*inputs), host)


def pushing(encoder: Encoder) -> Host:
    """Answers requests by coding their symbols."""

    def push(request: Coding, out: Tensor | None) -> None:
        encoder.push(request.symbols, request.indexes, request.tables)

    return push


def pulling(decoder: Decoder, *known: Coding) -> Host:
    """Answers requests by what a payload holds; `known`: the calls that the routine asks for by `Known`, in order."""
    ahead = iter(known)

    def pull(request: Coding | Known, out: Tensor | None) -> Tensor:
        coding = next(ahead) if isinstance(request, Known) else request
        return decoder.decode(coding.indexes, coding.tables, out)

    return pull


def unasked(request: Coding | Known, out: Tensor | None) -> None:
    """The host of a routine without requests."""
    raise AssertionError(f"{request} was not expected")
