"""The CUDA kernels of ``csrc/cuda``, in a plain shared library that ctypes loads.

``libsparsecodec_cuda.so`` lies beside this file where an nvcc was found at installation. It is no Python extension: it
has a C interface of raw pointers and a stream, carries its own CUDA runtime and needs neither torch's headers nor
Python's, so one file serves every Python and every torch, and it loads where there is no driver. Its name cannot be
taken for that of a module.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from sparsecodec.errors import SparseCodecError

LIBRARY = Path(__file__).with_name("libsparsecodec_cuda.so")

_POINTER, _UNSIGNED, _INT, _TEXT = ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_char_p
# Function without its prefix -> (result, arguments), as declared in csrc/cuda. Launchers return a cudaError_t and take
# the stream last.
SIGNATURES = {
    "error_text": (_TEXT, [_INT]),
    "architectures": (_TEXT, []),
    "device_count": (_INT, [_POINTER]),
    "device_capability": (_INT, [_INT, _POINTER]),
    "set_device": (_INT, [_INT]),
    "scan_words": (ctypes.c_size_t, [_UNSIGNED]),
    "compact_symbols": (_INT, [_POINTER, _POINTER, _UNSIGNED, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER]),
    "expand_symbols": (_INT, [_POINTER, _UNSIGNED, _POINTER, _UNSIGNED, _POINTER, _POINTER, _POINTER]),
    "entropy_parameters": (
        _INT,
        [_POINTER, *4 * [_UNSIGNED], _POINTER, _TEXT, _POINTER, _INT, _POINTER, _POINTER],
    ),
    "decode_lanes": (
        _INT,
        [*5 * [_POINTER], *3 * [_UNSIGNED], *3 * [_POINTER], _UNSIGNED, _POINTER, _UNSIGNED, _POINTER, _POINTER],
    ),
}


def load(path: Path) -> ctypes.CDLL:
    """The library in the file `path`, its functions declared.

    Raises:
        OSError: it is not there, or cannot be loaded.
        AttributeError: a function is missing: it was built from other sources.
    """
    loaded = ctypes.CDLL(str(path))
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(loaded, f"sparsecodec_{name}")
        function.restype, function.argtypes = result, arguments
    return loaded


@functools.cache
def library() -> ctypes.CDLL:
    """The installed library; raises as `load` does."""
    return load(LIBRARY)


@functools.cache
def why_unavailable() -> str | None:
    """None if the kernels can run in this process, else one sentence that says why not. Never raises."""
    if not LIBRARY.exists():
        return f"{LIBRARY.name} is not built: nvcc was not found or failed at installation, or SPARSECODEC_CUDA=0"
    try:
        library()
    except (OSError, AttributeError) as error:
        return f"{LIBRARY.name} cannot be loaded: {error}"
    try:
        capabilities = _capabilities()
    except SparseCodecError as error:
        return f"no CUDA driver or device: {error}"
    if not capabilities:
        return "no CUDA driver or device: the driver offers none"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} cannot use the CUDA device"
    built = library().sparsecodec_architectures().decode()
    if max(capabilities) < min(int(architecture.rstrip("af")) for architecture in built.split(";")):
        return f"{LIBRARY.name} is built for compute capabilities {built}, the newest device has {max(capabilities)}"
    return None


def _capabilities() -> list[int]:
    """The compute capability of each device, 90 for 9.0."""
    count, capability = ctypes.c_int(0), ctypes.c_int(0)
    run("device_count", ctypes.byref(count))
    found = []
    for device in range(count.value):
        run("device_capability", device, ctypes.byref(capability))
        found.append(capability.value)
    return found


def run(name: str, *arguments: object) -> None:
    """Calls a function of the library that returns a cudaError_t. Tensors among the arguments become pointers.

    Raises:
        SparseCodecError: it returned an error.
    """
    pointers = [value.data_ptr() if isinstance(value, Tensor) else value for value in arguments]
    error = getattr(library(), f"sparsecodec_{name}")(*pointers)
    if error:
        text = library().sparsecodec_error_text(error).decode()
        raise SparseCodecError(f"{name}: CUDA error {error}, {text}")


def _launch(name: str, device: torch.device, *arguments: object) -> None:
    """Calls a launcher for the current stream of `device`."""
    with torch.cuda.device(device):
        # torch has made the device current in its own copy of the CUDA runtime; the library's needs to be told.
        run("set_device", torch.cuda.current_device())
        run(name, *arguments, torch.cuda.current_stream(device).cuda_stream)


def _scratch(positions: int, device: torch.device) -> Tensor:
    """Memory for one scan. A new piece for each call: launches on several streams must not share one."""
    return torch.empty(library().sparsecodec_scan_words(positions), dtype=torch.int64, device=device)


def compact_symbols(
    indexes: Tensor, symbols: Tensor | None = None, out: tuple[Tensor, Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The op on contiguous tensors."""
    n, device = indexes.numel(), indexes.device
    if out is None:
        out = (
            torch.empty(n, dtype=torch.int16, device=device),
            torch.empty(0 if symbols is None else n, dtype=torch.int32, device=device),
            torch.empty(1, dtype=torch.int32, device=device),
        )
    packed, packed_symbols, count = out
    given = (None, None) if symbols is None else (symbols, packed_symbols)
    _launch("compact_symbols", device, indexes, given[0], n, _scratch(n, device), packed, given[1], count)
    return out


def expand_symbols(symbols: Tensor, indexes: Tensor, out: Tensor | None = None) -> Tensor:
    """The op on contiguous tensors."""
    n, device = indexes.numel(), indexes.device
    out = torch.empty(indexes.shape, dtype=torch.int32, device=device) if out is None else out
    _launch("expand_symbols", device, symbols, symbols.numel(), indexes, n, _scratch(n, device), out)
    return out


def entropy_parameters(scales: Tensor, thresholds: Tensor, part: str = "all", out: Tensor | None = None) -> Tensor:
    """The op on float32 scales of any layout, ``[N, C, H, W]`` or ``[N, G, C/G, H, W]``."""
    groups = {"all": 1, "even": 2, "odd": 2}.get(part, 4)
    split = scales if scales.dim() == 5 else scales.unflatten(1, (groups, scales.shape[1] // groups))
    n, _, c, h, w = split.shape
    out = torch.empty((n, c, h, w), dtype=torch.int16, device=scales.device) if out is None else out
    strides = (ctypes.c_int64 * 5)(*split.stride())
    table = thresholds.to(torch.float32).contiguous()
    _launch(
        "entropy_parameters", scales.device,
        split, n, c, h, w, strides, part.encode(), table, table.numel(), out,
    )  # fmt: skip
    return out


def decode_lanes(
    words: Tensor, ends: Tensor, cursors: Tensor, states: Tensor, faults: Tensor, pictures: int, lanes: int,
    tables: tuple[Tensor, ...], rows: int, indexes: Tensor, out: Tensor,
) -> Tensor:  # fmt: skip
    """One coding call of the lanes coder; the tensors are those of csrc/cuda/decode_lanes.cu, contiguous."""
    counts = pictures, ends.numel() // pictures, lanes
    launched = (*counts, *tables, rows, indexes, indexes.numel() // pictures, out)
    _launch("decode_lanes", indexes.device, words, ends, cursors, states, faults, *launched)
    return out


def compact_symbols_plan(dtype: torch.dtype):
    """Nothing to pack: the bound op is `compact_symbols`."""
    return compact_symbols


def expand_symbols_plan(dtype: torch.dtype):
    """Nothing to pack: the bound op is `expand_symbols`."""
    return expand_symbols


def entropy_parameters_plan(thresholds: Tensor, part: str, dtype: torch.dtype):
    """The op with a copy of its thresholds: a callable ``(scales, out=None)``; `out` is contiguous int16."""
    table = thresholds.to(torch.float32, copy=True)
    return lambda scales, out=None: entropy_parameters(scales, table, part, out)
