"""What a compiled codec does with each layer, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One step of a compiled transform.

    Attributes:
        transform: path of the transform in the model.
        paths: the layers that this step stands for.
        op: registered op, or the torch layer it stayed.
        backend: who runs it.
        dtype: of its activations, without ``torch.``.
        macs: multiply-accumulates per picture pixel.
        dense_macs: the same before compaction.
        reason: why it is not on a kernel; empty if it is.
        note: how the kernel divides its work, where it has a choice.
    """

    transform: str
    paths: tuple[str, ...]
    op: str
    backend: str
    dtype: str
    macs: float
    dense_macs: float
    reason: str
    note: str = ""


@dataclass(frozen=True)
class Report:
    """Rows in order of execution, and what holds for the whole codec.

    Attributes:
        rows: of every transform.
        notes: sentences on precision and guarantees.
        decoder: the transforms that decoding runs.
        buffer_bytes: held by the compiled transforms for the picture sizes seen so far.
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    decoder: tuple[str, ...]
    buffer_bytes: int

    @property
    def macs(self) -> float:
        """Of the whole decoder, per picture pixel."""
        return sum(row.macs for row in self.rows if row.transform in self.decoder)

    @property
    def dense_macs(self) -> float:
        """Of the whole decoder before compaction, per picture pixel."""
        return sum(row.dense_macs for row in self.rows if row.transform in self.decoder)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "macs_per_pixel": self.macs,
            "dense_macs_per_pixel": self.dense_macs,
            "buffer_bytes": self.buffer_bytes,
            "notes": list(self.notes),
            "rows": [asdict(row) for row in self.rows],
        }

    def __str__(self) -> str:
        cells = [("layer", "op", "backend", "dtype", "MAC/px dense", "MAC/px", "why not faster")]
        for row in self.rows:
            first = row.paths[0] if row.paths else row.transform
            label = first if len(row.paths) < 2 else f"{first} (+{len(row.paths) - 1})"
            numbers = (f"{row.dense_macs:.0f}", f"{row.macs:.0f}")
            cells.append((label, row.op, row.backend, row.dtype, *numbers, row.reason or row.note))
        cells.append(("decoder", "", "", "", f"{self.dense_macs:.0f}", f"{self.macs:.0f}", ""))
        widths = [max(len(row[i]) for row in cells) for i in range(6)]
        lines = []
        for row in cells:
            left = [row[i].ljust(widths[i]) for i in range(4)] + [row[i].rjust(widths[i]) for i in (4, 5)]
            lines.append("  ".join([*left, row[6]]).rstrip())
        return "\n".join([*lines, "", *self.notes])
