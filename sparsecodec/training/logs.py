"""What a run leaves behind for people and plots: one JSON line every few steps, and TensorBoard if asked for."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsecodec._files import replacing, writing
from sparsecodec.errors import UsageError, reason


class Log:
    """Appends records to ``log.jsonl`` in the folder of a run, each line in one write, so that a kill loses none.

    A step stands in the file once, however often the run was cut off: what an earlier run wrote after the checkpoint
    that is continued, and a last line that a kill left half-written, are dropped on opening. Use as a context manager.

    Args:
        folder: of the run; created if missing.
        tensorboard: write ``folder/tensorboard`` too, for ``tensorboard --logdir``.
        resume_step: how many steps are done; lines of this step and later ones are dropped. 0 begins an empty log.

    Raises:
        UsageError: TensorBoard is asked for without the extra ``[train]``, or the folder cannot be written.
    """

    def __init__(self, folder: str | Path, tensorboard: bool = False, resume_step: int = 0) -> None:
        folder = Path(folder)
        self.path = folder / "log.jsonl"
        self._board = _summary_writer(folder / "tensorboard", resume_step) if tensorboard else None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _drop_from(self.path, resume_step)
            self._file = open(self.path, "a", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{self.path} cannot be written: {reason(error)}") from error

    def write(self, record: Mapping[str, Any]) -> None:
        """Keeps the figures of one step.

        Args:
            record: ``step``, counted from 0, and anything JSON can hold; numbers that it cannot hold become null, and
                TensorBoard gets the finite numbers.

        Raises:
            OSError: the line cannot be written.
        """
        values = {
            key: None if _is_number(value) and not math.isfinite(value) else value for key, value in record.items()
        }
        step = int(values.pop("step"))
        with writing(self.path):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        if self._board is not None:
            for key, value in values.items():
                if _is_number(value):
                    self._board.add_scalar(key, value, step)

    def close(self) -> None:
        """Closes the files; what was written is there already."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The records of a ``log.jsonl`` in order, without a half-written last line, as a running or killed job leaves it.

    Raises:
        UsageError: no such file, or a line before the last is no record with a ``step``.
    """
    try:
        lines = Path(path).read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise UsageError(f"log {path} cannot be read: {reason(error)}") from error
    records = [_record(line) for line in lines]
    for number, record in enumerate(records, 1):
        if record is None and number < len(records):
            raise UsageError(f"log {path}, line {number} is no JSON object with a 'step'")
    return [record for record in records if record is not None]


def _drop_from(path: Path, step: int) -> None:
    """Leaves the lines of steps before `step`; the file is replaced whole, and not touched if nothing goes."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if (record := _record(line)) is not None and record["step"] < step]
    if len(kept) < len(lines):
        with replacing(path) as partial, open(partial, "wb") as file:
            file.writelines(kept)
            file.flush()
            os.fsync(file.fileno())


def _record(line: bytes) -> dict[str, Any] | None:
    """A whole line of a log, or None."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _summary_writer(folder: Path, resume_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(f"TensorBoard needs the extra sparsecodec[train]: {error}") from error
    return SummaryWriter(str(folder), purge_step=resume_step)
