"""The identity of a codec: a hash over its weights, which files and streams carry."""

from __future__ import annotations

import hashlib

from torch import nn


def model_hash(model: nn.Module) -> bytes:
    """SHA-256 over names, shapes and values of all weights and buffers, in order of their names; 32 bytes.

    Floating point counts as float32, integers in their own type (docs/bitstream.md, section 4.1, has every byte).
    Names and shapes pin the architecture, so a compact model differs from its dense one, and where a model is stored
    in half precision the hash is that of what loading gives.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        value = value.detach().float() if value.is_floating_point() else value.detach()
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.digest()
