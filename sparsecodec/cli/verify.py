"""``sparsecodec verify``."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from sparsecodec.cli import published
from sparsecodec.cli.clip_checks import Observer, check_clip
from sparsecodec.cli.clips import is_coded_clip
from sparsecodec.cli.decode import MAX_PIXELS
from sparsecodec.cli.files import SUFFIX, VIDEO_SUFFIX, Codecs, read_stream, streams
from sparsecodec.cli.options import (
    add_command,
    add_compute,
    add_stored_tables,
    compute_options,
    positive,
    print_json,
    write_bytes,
)
from sparsecodec.entropy import Header, observing
from sparsecodec.errors import BitstreamError, SparseCodecError, UsageError, reason

EPILOG = """A hash of symbols is the SHA-256 of all decoded symbols of a file, int32, in decoding order. A sums file has
a line for each file, as sha256sum writes them: hash, two blanks, name without its folder."""


def add_to(subparsers) -> None:
    parser = add_command(subparsers, "verify", "whether files are whole, and decode to the symbols they should")
    parser.add_argument("files", nargs="+", help="what encode wrote, or folders of such")
    parser.add_argument("-m", "--model", help="also decode: every stream must end as its encoder began")
    parser.add_argument("--against", help="sums file: also compare the hashes of decoded symbols")
    parser.add_argument("--sums", help="write such a file")
    parser.add_argument("--max-pixels", type=positive, default=MAX_PIXELS, help="refuse more (default: %(default)s)")
    parser.add_argument("--force-zero-thres", type=float, help="of DCVC-RT's .bin files: what they were written with")
    add_stored_tables(parser)
    add_compute(parser)
    parser.epilog = EPILOG
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    files = [file for name in arguments.files for file in _named(name)]
    if arguments.sums is not None or arguments.against is not None:
        _check_names(files)
    expected = None if arguments.against is None else _read_sums(arguments.against)
    decoding = arguments.model is not None or expected is not None or arguments.sums is not None
    codecs = Codecs(arguments.model, compute_options(arguments)) if decoding else None
    passed = "ok, decoded" if decoding else "ok, checksums only"
    results, failures = [], []
    for path in files:
        result: dict[str, Any] = {"file": str(path), "ok": True, "error": None, "symbols_sha256": None}
        try:
            result["symbols_sha256"] = found = _check(path, arguments, codecs)
            if expected is not None:
                _compare(found, expected.get(path.name))
        except SparseCodecError as error:
            result |= {"ok": False, "error": str(error)}
            failures.append(error)
        print(f"{path}: {passed if result['ok'] else result['error']}", file=sys.stderr)
        results.append(result)
    if arguments.sums is not None:
        lines = [f"{r['symbols_sha256']}  {Path(r['file']).name}\n" for r in results if r["ok"]]
        write_bytes(arguments.sums, "".join(lines).encode())
    print_json({"files": results, "ok": len(files) - len(failures), "failed": len(failures)})
    if failures:
        first = next((error for error in failures if isinstance(error, BitstreamError)), failures[0])
        raise type(first)(f"{len(failures)} of {len(files)} files failed")


def _check_names(files: list[Path]) -> None:
    """Raises a UsageError for two files of one name, which a sums file cannot tell apart."""
    for name, number in Counter(file.name for file in files).items():
        if number > 1:
            raise UsageError(f"{number} files are called {name} (a sums file has names without folders: verify apart)")


def _named(name: str) -> list[Path]:
    return [Path(name)] if published.is_published(name) else streams([name], (SUFFIX, VIDEO_SUFFIX))


def _check(path: Path, arguments: argparse.Namespace, codecs: Codecs | None) -> str | None:
    """Verifies one file; with `codecs` also decodes it and returns the hash of its symbols."""
    digest = hashlib.sha256()

    def add(symbols: np.ndarray) -> None:
        digest.update(symbols.astype("<i4", copy=False).tobytes())

    if published.is_published(path):
        published.check(path, arguments, add, decoding=codecs is not None)
    else:
        (check_clip if is_coded_clip(path) else _check_picture)(path, codecs, arguments.max_pixels, add)
    return None if codecs is None else digest.hexdigest()


def _compare(found: str | None, known: str | None) -> None:
    """Raises a BitstreamError unless a file's symbols have the hash that the sums file has for it."""
    if found != known:
        told = "has no line for it" if known is None else f"says {known}"
        raise BitstreamError(f"its symbols have the hash {found}, the sums file {told}")


def _check_picture(path: Path, codecs: Codecs | None, max_pixels: int, observer: Observer) -> None:
    blob = read_stream(path)
    header = Header.read(blob)
    rows, columns = header.grid
    for row in range(rows):
        for column in range(columns):
            header.payloads(blob, row, column)
    if codecs is not None:
        codec = codecs.of(header, path)  # compiling decodes, too
        with observing(observer):
            codec.decode(blob, max_pixels)


def _read_sums(path: str) -> dict[str, str]:
    """Name -> hash.

    Raises:
        UsageError: the file cannot be read, or a line is none of a sums file.
    """
    sums: dict[str, str] = {}
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {reason(error)}") from error
    for number, line in enumerate(lines, 1):
        value, _, name = line.partition("  ")
        if len(value) != 64 or not name or set(value) - set("0123456789abcdef"):
            raise UsageError(f"{path}, line {number}: {line[:80]!r} (needs a SHA-256, two blanks and a file's name)")
        sums[Path(name).name] = value
    return sums
