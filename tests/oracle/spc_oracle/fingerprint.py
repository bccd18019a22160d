"""The hash of a model, section 4.1, from the bytes of its weights file, which is of the format safetensors."""

from __future__ import annotations

import hashlib
import json
import struct


def model_hash(file: bytes) -> bytes:
    """8 bytes."""
    (size,) = struct.unpack("<Q", file[:8])
    header, data = json.loads(file[8 : 8 + size]), file[8 + size :]
    header.pop("__metadata__", None)
    digest = hashlib.sha256()
    for name in sorted(header):
        kind, shape = header[name]["dtype"], tuple(header[name]["shape"])
        begin, end = header[name]["data_offsets"]
        values = data[begin:end]
        if kind == "F16":
            halves = struct.unpack(f"<{len(values) // 2}e", values)
            values = struct.pack(f"<{len(halves)}f", *halves)
        elif kind == "BF16":
            values = b"".join(b"\0\0" + values[i : i + 2] for i in range(0, len(values), 2))
        elif kind == "F64":
            doubles = struct.unpack(f"<{len(values) // 8}d", values)
            values = struct.pack(f"<{len(doubles)}f", *doubles)
        digest.update(f"{name}{shape}".encode())
        digest.update(values)
    return digest.digest()[:8]
