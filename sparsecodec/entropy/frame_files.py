"""Files of one frame each, as EVC, DCVC (2021), DCVC-HEM and DCVC-DC write them. See docs/bitstream.md."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from sparsecodec.errors import BitstreamError, UsageError

_SIZE = {"height": "I", "width": "I"}
_STEPS = {"mv_step": "H", "step": "H"}

# kind -> fields in front with their struct codes, then as many strings
_LAYOUTS: dict[str, tuple[dict[str, str], int]] = {
    "evc": ({**_SIZE, "step": "H"}, 1),
    "hem-intra": ({**_SIZE, "step": "H"}, 1),
    "hem-inter": (_STEPS, 1),
    "dc-intra": ({**_SIZE, "rate": "B"}, 1),
    "dc-inter": ({"rate": "B", "frame_index": "B"}, 1),
    "dcvc-intra": (_SIZE, 2),
    "dcvc-inter": (_SIZE, 4),
}
KINDS = tuple(_LAYOUTS)


@dataclass(frozen=True)
class FrameFile:
    """What a file of one frame holds.

    Attributes:
        kind: one of `KINDS`; the file does not say it.
        fields: by name, in any order. height, width: in pixels. step, mv_step: 100 times the quantisation step.
            rate: 128 if it is one of the checkpoint's 4 anchors, plus twice the index of the rate. frame_index: modulo
            256.
        strings: what the entropy coder wrote; dcvc-intra: y, z; dcvc-inter: mv_y, mv_z, y, z; others: one.
    """

    kind: str
    fields: dict[str, int]
    strings: tuple[bytes, ...]

    def to_bytes(self) -> bytes:
        """The file.

        Raises:
            UsageError: no such kind, other fields than it has, a value out of range, another number of strings.
        """
        names, head, count = _layout(self.kind)
        if set(self.fields) != set(names) or len(self.strings) != count:
            raise UsageError(
                f"{self.kind}: fields {sorted(self.fields)} and {len(self.strings)} strings (needs {sorted(names)} and "
                f"{count})"
            )
        try:
            start = head.pack(*(self.fields[name] for name in names), *map(len, self.strings))
        except struct.error as error:
            raise UsageError(f"{self.kind}: {self.fields}: {error}") from error
        return start + b"".join(self.strings)

    @classmethod
    def from_bytes(cls, kind: str, data: bytes) -> FrameFile:
        """Parses a file.

        Raises:
            BitstreamError: too short or too long for the sizes that it names, or an empty picture.
            UsageError: no such kind.
        """
        names, head, count = _layout(kind)
        if len(data) < head.size:
            raise BitstreamError(f"{kind}: a file of {len(data)} bytes (its header has {head.size})")
        values = head.unpack_from(data)
        fields, sizes = dict(zip(names, values, strict=False)), values[len(names) :]
        if head.size + sum(sizes) != len(data):
            raise BitstreamError(
                f"{kind}: a file of {len(data)} bytes names strings of {sizes} behind {head.size} bytes"
            )
        if not all(fields.get(side, 1) for side in _SIZE) or fields.get("rate", 0) % 2:
            raise BitstreamError(f"{kind}: {fields} are of no frame")
        strings, position = [], head.size
        for size in sizes:
            strings.append(bytes(data[position : position + size]))
            position += size
        return cls(kind, fields, tuple(strings))


def _layout(kind: str) -> tuple[list[str], struct.Struct, int]:
    if kind not in _LAYOUTS:
        raise UsageError(f"kind={kind!r} (needs one of {', '.join(KINDS)})")
    fields, count = _LAYOUTS[kind]
    return list(fields), struct.Struct(">" + "".join(fields.values()) + count * "I"), count
