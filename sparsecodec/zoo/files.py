"""Saving and loading codecs, dense, compact and quantised, without pickle.

``NAME.json`` holds everything the weights do not say::

    {"format": 1, "name": ..., "architecture": {"family": "evc", ...}, "compact": null or {...}, "sha256": ...,
     "info": {...}, "quantization": {...}}

``architecture`` goes to `models.from_description`, ``compact`` to `sparsity.apply_compact_config`, ``quantization``,
which float codecs do not have, to `quant.apply_quantization`, and ``sha256`` is the `model_hash` of what loading must
give, so that files of two models are never mixed.

The weights are replaced before the description. Weights that replace those of another description carry their own in
the metadata, with the hash of the file that is still beside them: if it stays there, the process was killed between the
two, and `load` takes what the weights carry. After each step there is one whole codec, the old one or the new one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from sparsecodec._files import replacing, writing
from sparsecodec.errors import GraphError, ModelMismatchError, UsageError, reason
from sparsecodec.models.checkpoint import unwrap_state_dict
from sparsecodec.models.description import describe, from_description
from sparsecodec.nn.fingerprint import model_hash
from sparsecodec.quant import apply_quantization
from sparsecodec.sparsity import apply_compact_config

FORMAT = 1
FOLDER = Path(__file__).parent
# Keys of the metadata: a description, and the SHA-256 of the file that it is newer than.
CARRIED, REPLACED = "description", "replaced"


def names() -> list[str]:
    """The codecs that ship with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.json") if path.with_suffix(".safetensors").exists())


def find(prefix: bytes) -> str | None:
    """The shipped codec whose hash starts with `prefix` (a stream carries 8 bytes of it), or None."""
    for name in names():
        if _read_description(FOLDER / f"{name}.json")["sha256"].startswith(prefix.hex()):
            return name
    return None


def load(name: str | Path) -> nn.Module:
    """A codec by name, or from files.

    Args:
        name: one of `names()`, or a path: ``DIR/NAME``, with or without ``.safetensors`` or ``.json``.

    Returns:
        The module in eval mode. A compact one carries its `compact_config` as an attribute, a quantised one its
        `quantization`, so `save` can write them.

    Raises:
        UsageError: no such model, a file is missing or unreadable, or weights and description do not fit.
        ModelMismatchError: the weights are not those that the description was written with.
    """
    weights_path, description_path = _paths(name)
    tensors, metadata = _read_weights(weights_path)
    description = _read_description(description_path, metadata)
    model = _build(description)
    try:
        _fill(model, tensors)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"{weights_path} does not fit {description_path.name}: {error}") from error
    if model_hash(model).hex() != description["sha256"]:
        raise ModelMismatchError(f"{weights_path} holds other weights than {description_path.name} was written with")
    return model.eval()


def save(
    model: nn.Module,
    path: str | Path,
    compact: Mapping[str, Any] | None = None,
    info: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a codec that `load` can rebuild. Each file appears whole or not at all.

    Args:
        model: EVC or CompressAI's; the latter with its tables, after ``update()``. A quantised one is frozen.
        path: ``DIR/NAME``, with or without ``.safetensors``; the folder is created.
        compact: the `compact_config` of a compact model; one that was loaded remembers its own.
        info: JSON-able remarks (training, licence) that travel along.
        dtype: store floating-point weights in this type, for example float16; not the scales of integers.

    Raises:
        UsageError: the model cannot be rebuilt from its configuration, or the files cannot be written.
    """
    stem = _stem(path)
    architecture = describe(model)
    compact = compact if compact is not None else getattr(model, "compact_config", None)
    quantization = getattr(model, "quantization", None)
    on_integers = set() if quantization is None else set(quantization["layers"])
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    if dtype is not None:
        for key, value in tensors.items():
            if value.is_floating_point() and key.rpartition(".")[0] not in on_integers:
                tensors[key] = value.to(dtype)
    for key, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UsageError(f"weight {key} is not finite in {value.dtype}")
    description = {
        "format": FORMAT,
        "name": stem.name,
        "architecture": architecture,
        "compact": None if compact is None else dict(compact),
        "sha256": "",
        "info": dict(info or {}),
        **({} if quantization is None else {"quantization": quantization}),
    }
    rebuilt = _build(description)
    try:
        _fill(rebuilt, tensors)
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"the model is not what its configuration says (is it compact, or quantised and not frozen?): {error}"
        ) from error
    description["sha256"] = model_hash(rebuilt).hex()
    _write(stem, tensors, description)


def _write(stem: Path, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    weights, beside = (stem.with_name(stem.name + suffix) for suffix in (".safetensors", ".json"))
    text = json.dumps(description, indent=1) + "\n"
    try:
        with writing(stem):
            stem.parent.mkdir(parents=True, exist_ok=True)
        old = beside.read_bytes() if beside.exists() else text.encode()
        metadata = None if old == text.encode() else {CARRIED: text, REPLACED: hashlib.sha256(old).hexdigest()}
        with replacing(beside) as partial_text, replacing(weights) as partial_weights:  # the latter ends first
            with writing(beside):
                partial_text.write_bytes(text.encode())
            with writing(weights):
                partial_weights.write_bytes(serialize(tensors, metadata))  # save_file would make the file private
    except OSError as error:
        raise UsageError(str(error)) from error


def _stem(path: str | Path) -> Path:
    path = Path(path)
    return path.with_suffix("") if path.suffix in (".safetensors", ".json") else path


def _paths(name: str | Path) -> tuple[Path, Path]:
    """(weights, description); a bare name that ships with the package wins over files of that name."""
    if not isinstance(name, str | Path):
        raise UsageError(f"model is a {type(name).__name__} (needs a name or a path)")
    stem = FOLDER / name if str(name) in names() else _stem(name)
    weights, description = (stem.with_name(stem.name + suffix) for suffix in (".safetensors", ".json"))
    found = [path.exists() for path in (weights, description)]
    if not any(found):
        raise UsageError(f"model {str(name)!r} does not exist (shipped: {', '.join(names()) or 'none'}; or a path)")
    if not all(found):
        missing = description if found[0] else weights
        raise UsageError(f"{missing} is missing; a model is a .safetensors and a .json file of one name")
    return weights, description


def _read_description(path: Path, carried: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The description in a file, or the newer one that the weights beside it carry: `carried` is their metadata."""
    try:
        data = path.read_bytes()
        if carried and CARRIED in carried and carried.get(REPLACED) == hashlib.sha256(data).hexdigest():
            data = carried[CARRIED].encode()
        description = json.loads(data)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {reason(error)}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        found = description.get("format") if isinstance(description, dict) else type(description).__name__
        raise UsageError(f"{path} has format {found!r} (needs {FORMAT})")
    description.setdefault("quantization", None)
    optional = (dict, type(None))
    for key, kind in {"architecture": dict, "compact": optional, "sha256": str, "quantization": optional}.items():
        if not isinstance(description.get(key, ...), kind):
            raise UsageError(f"{path} has no valid {key!r}")
    return description


def _read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    """(tensors, metadata)."""
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()
    except (OSError, SafetensorError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as safetensors: {reason(error)}") from error


def _build(description: Mapping[str, Any]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # the weights are replaced: the caller's random numbers stay as they are
        model = from_description(description["architecture"])
    if description["compact"] is not None:
        model = apply_compact_config(model, description["compact"])
        model.compact_config = dict(description["compact"])
    if description.get("quantization") is not None:
        try:
            model = apply_quantization(model, description["quantization"])
        except GraphError as error:
            raise UsageError(f"its description quantises what is not there: {error}") from error
    return model


def _fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Loads weights, in float32 whatever they are stored in."""
    tensors = unwrap_state_dict(tensors)
    model.load_state_dict({key: t.float() if t.is_floating_point() else t for key, t in tensors.items()})
