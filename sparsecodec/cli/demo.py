"""``sparsecodec demo``: the main job on one photo, with the figures that belong to it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import sparsecodec
from sparsecodec.cli.options import (
    add_command,
    add_json,
    positive,
    print_json,
    quality,
    write_bytes,
    write_json,
)
from sparsecodec.cli.pictures import side_by_side
from sparsecodec.cli.plot import draw, why_no_plot
from sparsecodec.cli.timing import Spread, interleaved
from sparsecodec.data import read_image, write_image
from sparsecodec.errors import SparseCodecError
from sparsecodec.info import environment
from sparsecodec.metrics import ANCHORS, evaluate, ms_ssim, psnr, why_no_ms_ssim
from sparsecodec.runtime import CompiledCodec, compile_codec
from sparsecodec.zoo import load

PICTURE = Path(sparsecodec.__file__).parent / "data" / "pictures" / "kodim23.png"
CURVE_QUALITIES = (0.0, 25.0, 50.0, 75.0, 100.0)
JPEG_QUALITIES = (5.0, 10.0, 20.0, 30.0, 45.0, 60.0, 75.0, 85.0)
# What compiling may change before the demo refuses to print a time: the same arithmetic, and bfloat16 synthesis.
SAME_PRECISION_DB, REDUCED_PRECISION_DB = 0.01, 0.1


@dataclass
class Contender:
    """One way to decode the photo.

    Attributes:
        label: row of the table.
        stream: the bytes of the file that it decodes.
        decode: reads them; ``[1, 3, H, W]`` float32 in [0, 1].
        macs: multiply-accumulates of the decoder, synthesis and entropy networks.
        params: of the whole codec.
        dtype: of the synthesis.
    """

    label: str
    stream: bytes
    decode: Callable[[], Tensor]
    macs: int
    params: int
    dtype: str

    def figures(self, x: Tensor, spread: Spread) -> dict[str, Any]:
        """What the table and the JSON say about it."""
        x_hat = self.decode()
        return {
            "label": self.label,
            "macs": self.macs,
            "params": self.params,
            "decode_ms": spread.p50_ms,
            "decode_ms_spread": [spread.p20_ms, spread.p80_ms],
            "psnr": psnr(x_hat, x),
            "ms_ssim": ms_ssim(x_hat, x) if why_no_ms_ssim(x) is None else None,
            "bpp": 8 * len(self.stream) / (x.shape[2] * x.shape[3]),
            "bytes": len(self.stream),
            "dtype": self.dtype,
        }


def add_to(subparsers) -> None:
    parser = add_command(subparsers, "demo", "dense and sparse codec on one photo: sizes, quality, decoding time")
    parser.add_argument("--image", default=PICTURE, help="default: a photo of the Kodak suite")
    parser.add_argument("--out", default="demo", help="folder for the files (default: %(default)s)")
    parser.add_argument("--dense", default="evc-tiny", help="shipped name or path (default: %(default)s)")
    parser.add_argument("--sparse", default="evc-tiny-sparse", help="shipped name or path (default: %(default)s)")
    parser.add_argument("--quality", type=quality, default=50.0, help="0 to 100 (default: %(default)g)")
    parser.add_argument("--repeats", type=positive, default=15, help="timed rounds (default: %(default)s)")
    parser.add_argument("--threads", type=positive, help="of the CPU (default: torch's choice)")
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    x = read_image(arguments.image)
    left_out = [reason for reason in (why_no_ms_ssim(x), why_no_plot()) if reason is not None]
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    dense, sparse = load(arguments.dense), load(arguments.sparse)
    compiled_dense = compile_codec(dense, dtype=torch.float32)
    compiled_sparse = compile_codec(sparse, dtype=torch.float32)
    fastest = compile_codec(sparse)

    contenders = {
        "dense": _eager("dense, PyTorch", dense, compiled_dense, x, arguments.quality),
        "dense_compiled": _compiled("dense, compiled", dense, compiled_dense, x, arguments.quality),
        "sparse_eager": _eager("sparse, PyTorch", sparse, compiled_sparse, x, arguments.quality),
        "sparse_same_precision": _compiled("sparse, compiled", sparse, compiled_sparse, x, arguments.quality),
        "sparse": _compiled("sparse, compiled", sparse, fastest, x, arguments.quality),
    }
    _check(contenders, x)
    functions = {key: contender.decode for key, contender in contenders.items()}
    spreads = interleaved(functions, arguments.repeats, partial(tqdm, desc="decoding", unit="round"))
    rows = {key: contender.figures(x, spreads[key]) for key, contender in contenders.items()}
    baseline = rows["dense"]["decode_ms"]
    result = {
        **rows,
        "mac_reduction": 1 - rows["sparse"]["macs"] / rows["dense"]["macs"],
        "speedup": baseline / rows["sparse"]["decode_ms"],
        "speedup_same_precision": baseline / rows["sparse_same_precision"]["decode_ms"],
        "picture": {"name": Path(arguments.image).name, "height": x.shape[2], "width": x.shape[3]},
        "quality": arguments.quality,
        "repeats": arguments.repeats,
        "environment": environment(),
    }
    result["rate_distortion"] = _curves(arguments, compiled_dense, fastest)
    result["files"] = _write(out, x, contenders, rows)
    if why_no_plot() is None:
        points = {
            label: (values["bpp_file"], values["psnr-rgb"]) for label, values in result["rate_distortion"].items()
        }
        draw(points, out / "rd.png", title=result["picture"]["name"])
        result["files"].append("rd.png")
    (out / "report.txt").write_text(f"{fastest.report}\n")
    write_json(out / "demo.json", result)
    for reason in left_out:
        print(f"left out: {reason}", file=sys.stderr)
    if arguments.json:
        print_json(result)
    else:
        print(table(result))
        print(f"\nIn {out}: {', '.join([*result['files'], 'report.txt', 'demo.json'])}")


def _compiled(label: str, model: nn.Module, codec: CompiledCodec, x: Tensor, level: float) -> Contender:
    stream = codec.encode(x, quality=level)
    dtype = str(codec.dtype).removeprefix("torch.")
    return Contender(label, stream, partial(codec.decode, stream), _macs(codec, x), _params(model), dtype)


def _eager(label: str, model: nn.Module, codec: CompiledCodec, x: Tensor, level: float) -> Contender:
    """The module's own compress and decompress, as a user of PyTorch runs them."""
    q_scale = model.q_scales(101)[round(level)]
    height, width = x.shape[2:]
    padded = F.pad(x, (0, -width % codec.STRIDE, 0, -height % codec.STRIDE), mode="replicate")
    with torch.inference_mode():
        coded = model.compress(padded, q_scale)
    stream = coded["bit_stream"]

    @torch.inference_mode()
    def decode() -> Tensor:
        x_hat = model.decompress(stream, padded.shape[2], padded.shape[3], q_scale)["x_hat"]
        return x_hat[:, :, :height, :width]

    error = float((decode() - coded["x_hat"][:, :, :height, :width]).abs().max())
    if error > 1e-3:
        raise SparseCodecError(f"{label}: the decoded picture is {error:.2g} off the encoder's")
    return Contender(label, stream, decode, _macs(codec, x), _params(model), "float32")


def _check(contenders: dict[str, Contender], x: Tensor) -> None:
    """No time is printed for a decoder whose picture is another one.

    Raises:
        SparseCodecError: compiling changed the picture by more than its arithmetic explains, or decoding twice differs.
    """
    quality_of = {}
    for key, contender in contenders.items():
        first, second = contender.decode().clone(), contender.decode()
        if not torch.equal(first, second):
            raise SparseCodecError(f"{contender.label} ({contender.dtype}): decoding twice gives two pictures")
        quality_of[key] = psnr(first, x)
    pairs = [
        ("dense", "dense_compiled", SAME_PRECISION_DB),
        ("sparse_eager", "sparse_same_precision", SAME_PRECISION_DB),
        ("sparse_same_precision", "sparse", REDUCED_PRECISION_DB),
    ]
    for original, changed, allowed in pairs:
        difference = abs(quality_of[original] - quality_of[changed])
        if difference > allowed:
            raise SparseCodecError(
                f"{contenders[changed].label} ({contenders[changed].dtype}): PSNR {quality_of[changed]:.3f} dB, "
                f"before {quality_of[original]:.3f} dB (may differ by {allowed} dB)"
            )


def _macs(codec: CompiledCodec, x: Tensor) -> int:
    height, width = (side + -side % codec.STRIDE for side in x.shape[2:])
    return round(codec.report.macs * height * width)


def _params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _curves(arguments: argparse.Namespace, dense: CompiledCodec, sparse: CompiledCodec) -> dict[str, dict[str, Any]]:
    """Label -> the lists of rate and quality of `evaluate`, on the demo's photo."""
    jpeg = (ANCHORS["jpeg"], JPEG_QUALITIES)
    plan = {"dense": (dense, CURVE_QUALITIES), "sparse": (sparse, CURVE_QUALITIES), "JPEG": jpeg}
    curves = {}
    for label, (codec, levels) in plan.items():
        progress = partial(tqdm, desc=f"curve of {label}", unit="point", leave=False)
        results = evaluate(codec, [arguments.image], levels, label, progress)["results"]
        curves[label] = {key: results[key] for key in ("bpp_file", "psnr-rgb", "ms-ssim-rgb")}
    return curves


def _write(out: Path, x: Tensor, contenders: dict[str, Contender], rows: dict[str, Any]) -> list[str]:
    """Streams and pictures; returns the names of the files."""
    write_bytes(out / "dense.bin", contenders["dense"].stream)
    write_bytes(out / "sparse.spc", contenders["sparse"].stream)
    panels = {"original": x, "dense": contenders["dense"].decode(), "sparse": contenders["sparse"].decode()}
    captions = []
    for label, picture in panels.items():
        write_image(picture, out / f"{label}.png")
        row = rows.get(label)
        captions.append(f"{label}: {row['psnr']:.2f} dB, {row['bpp']:.3f} bpp" if row else label)
    write_image(side_by_side(list(panels.values()), captions), out / "side_by_side.png")
    return ["dense.bin", "sparse.spc", *(f"{label}.png" for label in panels), "side_by_side.png"]


def table(result: dict[str, Any]) -> str:
    """The figures as aligned text."""
    keys = ("dense", "dense_compiled", "sparse_eager", "sparse_same_precision", "sparse")
    cells = [("", "type", "GMAC", "Mparams", "decode ms", "20..80 %", "speed-up", "PSNR", "MS-SSIM", "bpp", "bytes")]
    baseline = result["dense"]["decode_ms"]
    for row in (result[key] for key in keys):
        low, high = row["decode_ms_spread"]
        cells.append(
            (
                row["label"],
                row["dtype"],
                f"{row['macs'] / 1e9:.2f}",
                f"{row['params'] / 1e6:.2f}",
                f"{row['decode_ms']:.1f}",
                f"{low:.1f}..{high:.1f}",
                f"{baseline / row['decode_ms']:.2f}x",
                f"{row['psnr']:.2f}",
                "-" if row["ms_ssim"] is None else f"{row['ms_ssim']:.4f}",
                f"{row['bpp']:.4f}",
                str(row["bytes"]),
            )
        )
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = []
    for row in cells:
        left = [row[i].ljust(widths[i]) for i in (0, 1)]
        lines.append("  ".join([*left, *(row[i].rjust(widths[i]) for i in range(2, len(row)))]))
    picture, machine = result["picture"], result["environment"]
    head = (
        f"{picture['name']}, {picture['width']} x {picture['height']}, quality {result['quality']:g}, "
        f"{machine['threads']} threads, {machine['device']}"
    )
    foot = (
        f"MACs of the decoder {-result['mac_reduction']:+.1%}; decoding {result['speedup']:.2f} times as fast as dense "
        f"PyTorch, {result['speedup_same_precision']:.2f} times in equal precision"
    )
    return "\n".join([head, "", *lines, "", foot])
