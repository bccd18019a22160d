"""Model files, damaged, of a float codec and of a portable one; what loads is compiled and codes a picture."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from mutations import mutate
from promises import Broken, Target
from safetensors.torch import save as serialize
from torch import nn

from sparsecodec.errors import ModelMismatchError, SparseCodecError, UsageError
from sparsecodec.models import create
from sparsecodec.nn.fingerprint import model_hash
from sparsecodec.quant import is_portable, portable
from sparsecodec.runtime import compile_codec
from sparsecodec.zoo import load, save

COMPILING = (SparseCodecError,)  # any error of ours will do: the file is an attacker's
INTEGERS = (0, 1, -1, 127, -128, 32767, 65535, 65536, 1 << 20, (1 << 31) - 1, -(1 << 31))
FLOATS = (0.0, -0.0, 1e-38, 1e38, -1.0, 2.0**-20, 2.0**20, 0.3)


class Checkpoints(Target):
    """Model files, one of the two damaged: refused with an error of ours, or the model is the one that was saved.

    An input begins with what it is: ``j`` and ``p`` the description of a float and of a portable codec, ``w`` the head
    of the former's weights, ``e`` changes of the latter's tensors behind which the hash is right, as an attacker makes
    it. What loads is compiled and codes a picture, each model once.
    """

    refusals = (UsageError, ModelMismatchError)

    def __init__(self) -> None:
        self.folder, self.compiled = Path(tempfile.mkdtemp()), set()
        torch.manual_seed(0)
        model = create("evc-nano").eval()
        save(model, self.folder / "good", dtype=torch.float16)
        self.text = (self.folder / "good.json").read_bytes()
        self.weights = (self.folder / "good.safetensors").read_bytes()
        save(portable(model, torch.rand(1, 3, 128, 128)), self.folder / "portable")
        self.portable_text = (self.folder / "portable.json").read_bytes()
        self.portable_weights = (self.folder / "portable.safetensors").read_bytes()
        self.model = load(self.folder / "portable")
        self.tensors = dict(self.model.state_dict())
        self.stored = [name for name in self.tensors if name.startswith("portable.")]
        self.head = 8 + int.from_bytes(self.weights[:8], "little")
        words = [b"null", b"-1", b"1e999", b"[]", b"{}", b'"x"', b"99999999999", b'"evc"', b"true", b'"sha256"']
        self.pool = [b"j" + self.text, b"w" + self.weights[: self.head], *(b"j" + word for word in words)]
        self.pool += [b"p" + self.portable_text, b"e[]"]

    def make(self, rng: random.Random) -> bytes:
        kinds = ((b"j", self.text), (b"w", self.weights[: self.head]), (b"p", self.portable_text), (b"e", b""))
        kind, original = rng.choice(kinds)
        if kind == b"e":
            return kind + json.dumps([self._edit(rng) for _ in range(rng.choice((1, 1, 2, 4)))]).encode()
        if kind != b"w" and rng.random() < 0.5:  # still JSON: a value replaced
            description = json.loads(original)
            layers = (description.get("quantization") or {}).get("layers", {})
            holders = [description, description["architecture"], description.get("quantization"), layers]
            holder = rng.choice([some for some in (*holders, *list(layers.values())[:3]) if some])
            values = (None, -1, 10**12, [], {}, "x", True, 1.5, {"format": 1}, [[1]], "evc", 0, 2, 31, 64)
            holder[rng.choice([*holder, "quantization", "portable"])] = rng.choice(values)
            return kind + json.dumps(description).encode()
        return kind + mutate(original, [other[1:] for other in self.pool], rng)

    def _edit(self, rng: random.Random) -> list:
        """[tensor, where in it, value]: a whole tensor with where=-1; [tensor, "cut", how many] for other sizes."""
        name = rng.choice(self.stored if rng.random() < 0.6 else list(self.tensors))
        tensor = self.tensors[name]
        if rng.random() < 0.1:
            return [name, "cut", rng.choice((0, 1, 2))]
        where = -1 if rng.random() < 0.2 else rng.randrange(tensor.numel())
        return [name, where, rng.choice(FLOATS if tensor.is_floating_point() else INTEGERS)]

    def run(self, data: bytes) -> bool:
        kind, body = data[:1], data[1:]
        text, weights = (self.text, self.weights) if kind in b"jw" else (self.portable_text, self.portable_weights)
        if kind in b"jp":
            text = body
        elif kind == b"w":
            weights = body + self.weights[self.head :]
        else:
            text, weights = self._sealed(json.loads(body))
        (self.folder / "bad.json").write_bytes(text)
        (self.folder / "bad.safetensors").write_bytes(weights)
        model = load(self.folder / "bad")
        if not all(bool(value.isfinite().all()) for value in model.state_dict().values() if value.is_floating_point()):
            raise Broken("a model with weights that are no numbers")
        self._compile(model, text)
        return True

    def _sealed(self, edits: list[list]) -> tuple[bytes, bytes]:
        """Description and weights of the portable codec after `edits`, with the hash that loading will find."""
        tensors = {name: tensor.clone() for name, tensor in self.tensors.items()}
        for name, where, value in edits:
            if where == "cut":
                tensors[name] = tensors[name].flatten()[:value].clone()
                continue
            limits = None if tensors[name].is_floating_point() else torch.iinfo(tensors[name].dtype)
            value = value if limits is None else min(max(value, limits.min), limits.max)
            some = tensors[name].view(-1)
            some[slice(None) if where < 0 else slice(where, where + 1)] = value
        holder = nn.Module()
        holder.state_dict = lambda: tensors
        description: dict[str, Any] = json.loads(self.portable_text)
        description["sha256"] = model_hash(holder).hex()
        return json.dumps(description).encode(), serialize(tensors)

    def _compile(self, model: nn.Module, text: bytes) -> None:
        """A picture of its size, or an error of ours; what was compiled before is not compiled again."""
        known = hash((model_hash(model), json.dumps(json.loads(text).get("quantization"))))
        if known in self.compiled:
            return
        self.compiled.add(known)
        try:
            codec = compile_codec(model, stream="portable" if is_portable(model) else "native")
            x = codec.decode(codec.encode(torch.linspace(0, 1, 3 * 40 * 70).view(1, 3, 40, 70)))
        except COMPILING:
            return
        if x.shape != (1, 3, 40, 70):
            raise Broken(f"a picture of {tuple(x.shape)}")
