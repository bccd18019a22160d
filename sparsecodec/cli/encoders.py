"""The codec that ``encode`` runs, made portable on the way if it is asked to be; how many of its encoders run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

from sparsecodec.cli.options import compute_options, usual_stream
from sparsecodec.errors import UsageError
from sparsecodec.quant import is_portable
from sparsecodec.quant.portable import check_form
from sparsecodec.runtime import compile_codec
from sparsecodec.runtime.adapters import ScalableEVCCodec
from sparsecodec.zoo import load, save

Codec = TypeVar("Codec")


def encoding_codec(
    arguments: argparse.Namespace, kind: type[Codec], what: str, samples: Callable[[str, nn.Module], list[Tensor]]
) -> Codec:
    """Compiles what ``-m``, ``--stream``, ``--calibration`` and ``--save-model`` ask for.

    Args:
        kind: of the codec that is needed.
        what: it codes, for messages: "pictures".
        samples: reads the folder of ``--calibration`` for a model.

    Raises:
        UsageError: another kind of codec, or options that do not fit together.
    """
    model = load(arguments.model)
    stream = arguments.stream or usual_stream(model)
    options = {"stream": stream, **compute_options(arguments)}
    if stream == "portable":
        check_form(model)
    if arguments.calibration is None:
        if arguments.save_model is not None:
            raise UsageError("--save-model keeps what --calibration makes, which is missing")
        if stream == "portable" and not is_portable(model):
            raise UsageError(
                f"--stream portable: {arguments.model} is a float model; give --calibration FOLDER of {what} and "
                "--save-model PATH for what it becomes"
            )
    else:
        if stream != "portable" or arguments.save_model is None or is_portable(model):
            raise UsageError(
                "--calibration makes a float model portable: give --stream portable and --save-model PATH too, and a "
                "model whose integers are not there yet"
            )
        options["calibration"] = samples(arguments.calibration, model)
    codec = compile_codec(model, **options)
    if not isinstance(codec, kind):
        raise UsageError(f"{arguments.model} is no codec for {what}, and {arguments.input} needs one")
    if arguments.save_model is not None:
        save(codec.portable_model, arguments.save_model)
    return codec


def effort(codec: Any, prefix: int | None) -> dict[str, int]:
    """What ``--prefix`` asks for, as keywords of ``codec.encode``.

    Raises:
        UsageError: the codec has one encoder.
    """
    if prefix is None:
        return {}
    if not isinstance(codec, ScalableEVCCodec):
        raise UsageError(f"--prefix {prefix}: {type(codec).__name__} has one encoder")
    return {"prefix": prefix}
