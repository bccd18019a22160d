"""Options and outputs that several commands share."""

from __future__ import annotations

import argparse
import json
import math
import re
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsecodec._files import replacing
from sparsecodec.errors import ResourceLimitError, UsageError, reason
from sparsecodec.quant import is_portable

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_THREADS = 1024
DEFAULT_MODEL = "evc-tiny-sparse-feds-portable"
DEFAULT_VIDEO_MODEL = "dcvc-rt-tiny-portable"


def add_command(subparsers: Any, name: str, text: str) -> argparse.ArgumentParser:
    """The parser of a command, with what it does in the list of commands and in its own help."""
    return subparsers.add_parser(name, help=text, description=text)


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``: one object on stdout instead of text."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_part(parser: argparse._ArgumentGroup) -> None:
    """``--start`` and ``--frames`` of a clip."""
    parser.add_argument("--start", type=count, default=0, help="number of the first frame (default: %(default)s)")
    parser.add_argument("--frames", type=positive, help="how many frames (default: all)")


def add_prefix(parser: argparse.ArgumentParser) -> None:
    """``--prefix`` of a codec with several encoders."""
    text = "of a codec with several encoders: run 0 to this one (default: try all, keep best)"
    parser.add_argument("--prefix", type=int, help=text)


def add_published(parser: argparse.ArgumentParser, encoding: bool) -> None:
    """What the test scripts of published codecs take and their files do not say."""
    group = parser.add_argument_group(".bin files of DCVC-RT, DCVC-HEM and DCVC, with -m")
    group.add_argument("--force-zero-thres", type=float, help="of DCVC-RT: scales up to here are not coded")
    add_stored_tables(group)
    if encoding:
        group.add_argument("--reset-interval", type=count, help="of DCVC-RT, in frames; 0: never (default: 32)")
        group.add_argument("--rates", type=positive, help="of DCVC-HEM: how many --qp chooses from (default: 64)")
    else:
        group.add_argument("--rate", "--fps", help="frames per second (default: 25)")


def add_stored_tables(parser: argparse._ActionsContainer) -> None:
    """``--stored-tables`` of DCVC-RT's files."""
    parser.add_argument(
        "--stored-tables", action="store_true", help="of DCVC-RT: not the coding tables that this machine computes"
    )


def add_compute(parser: argparse.ArgumentParser) -> None:
    """``--device``, ``--dtype`` and ``--threads``."""
    parser.add_argument("--device", default="cpu", help="where to run (default: cpu)")
    parser.add_argument("--dtype", choices=DTYPES, help="of the transforms (default: the fastest of the machine)")
    parser.add_argument("--threads", type=threads, help="of the CPU (default: torch's choice)")


def compute_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_compute` parsed, as keywords of `compile_codec`; sets the number of threads."""
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    try:
        device = torch.device(arguments.device)
    except RuntimeError as error:
        raise UsageError(f"--device {arguments.device} is unknown to torch") from error
    if arguments.dtype == "float16" and device.type == "cpu":
        raise UsageError("--dtype float16 needs a GPU (a CPU computes in float32 or bfloat16)")
    return {"device": device, "dtype": DTYPES.get(arguments.dtype)}


def usual_stream(model: nn.Module) -> str:
    """What the commands write unless told otherwise: portable where the model's integers are there."""
    return "portable" if is_portable(model) else "native"


def positive(text: str) -> int:
    """A whole number above zero, as an argparse type."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} (needs at least 1)")
    return _in_machine_range(value)


def count(text: str) -> int:
    """A whole number of at least zero, as an argparse type."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} (needs at least 0)")
    return _in_machine_range(value)


def threads(text: str) -> int:
    """1 to `MAX_THREADS`, as an argparse type."""
    value = positive(text)
    if value > MAX_THREADS:
        raise argparse.ArgumentTypeError(f"{value} (needs at most {MAX_THREADS})")
    return value


def _in_machine_range(value: int) -> int:
    if value > sys.maxsize:
        raise argparse.ArgumentTypeError(f"{value} (needs at most {sys.maxsize})")
    return value


def size(text: str) -> tuple[int, int]:
    """``WxH``, as an argparse type."""
    match = re.fullmatch(r"(\d{1,8})x(\d{1,8})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text} (needs width x height, as 416x240)")
    return int(match[1]), int(match[2])


def memory(text: str) -> int:
    """Bytes, with K, M or G for the binary multiples, as an argparse type."""
    unit = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:].upper())
    value = float(text[:-1]) * unit if unit else float(text)
    if not 1 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text} (needs a number of bytes, as 2G or 512M)")
    return int(value)


def memory_left(limit: int | None, reserved: int = 0) -> int | None:
    """What coding may still take if this process is not to grow beyond `limit` bytes; None without a limit.

    Args:
        limit: what the user gave.
        reserved: bytes that will be needed for other things.

    Raises:
        ResourceLimitError: the process has more than that already.
    """
    if limit is None:
        return None
    held = resident_bytes()
    if held + reserved >= limit:
        raise ResourceLimitError(
            f"--max-memory of {limit >> 20} MiB: the process with its model and picture has {held >> 20} MiB already, "
            f"and {reserved >> 20} MiB are needed for the output"
        )
    return limit - held - reserved


def resident_bytes() -> int:
    """Memory that this process holds; its largest amount so far where the system does not tell."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def region(text: str) -> tuple[int, int, int, int]:
    """``T,L,H,W``, as an argparse type."""
    parts = text.split(",")
    if len(parts) != 4:
        raise argparse.ArgumentTypeError(f"{text} (needs top,left,height,width)")
    return tuple(int(part) for part in parts)


def quality(text: str) -> float:
    """A number from 0 to 100, as an argparse type."""
    value = float(text)
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text} (needs 0 to 100)")
    return value


def print_json(values: Any) -> None:
    """One object on stdout. Numbers that JSON does not have, as the PSNR of equal pictures, become null."""
    print(json.dumps(_finite(values)))


def check_parent(path: str | Path) -> None:
    """Raises a UsageError if there is no folder for a file, before the work whose result it is to hold."""
    if not Path(path).parent.is_dir():
        raise UsageError(f"{path} cannot be written: there is no folder {Path(path).parent}")


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes a file that appears whole or not at all.

    Raises:
        UsageError: the folder cannot be written.
    """
    try:
        with replacing(path) as partial:
            partial.write_bytes(data)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {reason(error)}") from error


def write_json(path: str | Path, values: Any) -> None:
    """Like `print_json`, into a file; see `write_bytes`."""
    write_bytes(path, (json.dumps(_finite(values), indent=1) + "\n").encode())


def _finite(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
