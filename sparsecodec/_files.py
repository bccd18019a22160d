"""Files that appear whole or not at all."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Lets an OSError of the block say in one sentence that `path` cannot be written, and why.

    A full disk names no file: it is noticed where a file is open already.
    """
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a path beside `path`, of the same suffix, to write to; it becomes `path` when the block ends well.

    If the block raises, `path` is as it was and nothing is left behind. What a process left behind that was killed in
    its block goes with the next one's.
    """
    path = Path(path)
    _remove_abandoned(path)
    partial = path.with_name(f"{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _remove_abandoned(path: Path) -> None:
    before, after = f"{path.stem}.", f".partial{path.suffix}"
    for found in path.parent.glob(f"{glob.escape(before)}*{glob.escape(after)}"):
        number = found.name[len(before) : -len(after)]
        if number.isdecimal() and not _runs(int(number)):
            found.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    """Whether there is such a process; True where asking would end it, as on Windows."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # of another user
        return True
    return True
