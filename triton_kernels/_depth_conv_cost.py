"""How `depth_conv_block` is cut into launches: what each way would cost, and which one is taken.

Counts only, no GPU: it runs, and is tested, without Triton.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

Tile = dict[str, int]


EXACT: Tile = {"enable_fp_fusion": False}  # a multiplication and an addition keep two roundings, unless written as one


def _tile(p: int, w: int, n: int, m: int, k: int, c: int, h: int, registers: int = 255) -> Tile:
    blocks = {"BLOCK_P": p, "BLOCK_W": w, "BLOCK_N": n, "BLOCK_M": m, "BLOCK_K": k, "BLOCK_C": c}
    # Left to itself the assembler aims at a round number of programs per multiprocessor, and spills to get there.
    options = {"num_warps": 8, "num_stages": 2, "maxnreg": registers}
    return blocks | {"BLOCK_D": 16 if m else 32, "BLOCK_H": h} | options


# Launch options of launches with the feed-forward half, by the channels that it holds in registers, BLOCK_N + BLOCK_M.
# Nothing spills on sm_80 and sm_90 (bench/results/aot.json); of tiles for as many channels the first is taken where
# nothing can be timed, and none has been timed on a GPU.
WHOLE_TILES = (
    _tile(128, 16, 32, 0, 32, 32, 32),
    _tile(128, 16, 64, 0, 64, 64, 32),
    _tile(128, 16, 128, 0, 64, 64, 32),
    _tile(64, 8, 128, 64, 64, 64, 16),
    _tile(64, 8, 128, 128, 64, 64, 16),
    _tile(64, 8, 256, 128, 64, 64, 16) | {"BLOCK_D": 32},
)
# More of them for sm_90, which reads u from shared memory where sm_80 holds it in registers; all channels in order.
HOPPER_TILES = (_tile(128, 16, 128, 128, 32, 64, 16) | {"BLOCK_D": 32},)
# Of launches without it, by bytes per element.
HALF_TILES = {2: (_tile(64, 8, 16, 0, 64, 64, 16),), 4: (_tile(32, 8, 16, 0, 32, 32, 16, 128) | EXACT,)}

LAUNCH_SECONDS = 3e-6  # of a kernel in a CUDA graph: its start, first loads and last tiles, estimated
EFFICIENCY = 0.6  # of the peak rate that a product reaches, estimated
LANES = 22  # instructions of the depthwise layer per pixel and channel, outside tensor cores


@dataclass(frozen=True)
class Gpu:
    """What bounds a launch. The defaults are an H200's.

    Attributes:
        arch: its compute capability, 10 * major + minor.
        sms: multiprocessors.
        product_rates: multiply-adds per second and multiprocessor by bytes per element.
        lane_rate: instructions per second and multiprocessor outside tensor cores.
        bandwidth, l2_bandwidth: bytes per second.
        l2_bytes: size of that cache; maps that fit in half of it are not counted as device memory traffic.
    """

    arch: int = 90
    sms: int = 132
    product_rates: tuple[tuple[int, float], ...] = ((2, 3.7e12), (4, 0.25e12))
    lane_rate: float = 0.22e12
    bandwidth: float = 4.8e12
    l2_bandwidth: float = 5.5e12
    l2_bytes: int = 50 * 2**20

    def rate(self, itemsize: int) -> float:
        return dict(self.product_rates)[itemsize]

    def like(self, arch: int, sms: int) -> Gpu:
        """A smaller or larger one of this kind."""
        return replace(self, arch=arch, sms=sms)


A100 = Gpu(80, 108, ((2, 1.44e12), (4, 0.09e12)), 0.18e12, 2.0e12, 4.0e12, 40 * 2**20)


@dataclass(frozen=True)
class Widths:
    """Channels of a block, as its op names them; c2, c4: rows of w2 and w4; hidden: columns of w4; indexed: whether w3
    or w4 has some channels only."""

    c: int
    co: int
    k1: int
    c1: int
    c2: int
    k3: int
    hidden: int
    c4: int
    chunks: int = 1
    adaptor: bool = False
    shortcut: bool = False
    indexed: bool = False


@dataclass(frozen=True)
class Launches:
    """One way to compute a block.

    Attributes:
        kind: ``"one"``: all in one launch. ``"two"``: w1, then the rest. ``"three"``: up to w2, then w3, then w4.
            ``"four"``: w1 with the depthwise layer, some channels to a program, then w2, w3 and w4.
        tile: launch options of the launch with the depthwise layer.
        count: of launches, the adaptor's included where it has its own.
        bytes: read and written between device memory and L2.
        flops: 2 per multiply-add, the recomputed ring of a tile and padding included.
        seconds: estimated.
    """

    kind: str
    tile: Tile
    count: int
    bytes: int
    flops: int
    seconds: float


def whole_tiles(channels: int, chunks: int, arch: int, indexed: bool = False) -> list[Tile]:
    """Launch options for so many channels, those with the least padding; empty if they fit no tile."""
    tiles = [*WHOLE_TILES, *(HOPPER_TILES if arch >= 90 and not indexed else ())]
    if chunks > 2:  # each chunk has its own block of w3 under way, and registers for it
        tiles = [tile | {"BLOCK_H": 16} for tile in tiles if not tile["BLOCK_M"]]
    least = min((held(tile) for tile in tiles if held(tile) >= channels), default=0)
    return [tile for tile in tiles if held(tile) == least]


def held(tile: Tile) -> int:
    """Channels that a launch with the feed-forward half holds in registers."""
    return tile["BLOCK_N"] + tile["BLOCK_M"]


def shared_bytes(tile: Tile, chunks: int) -> int:
    """Shared memory of a launch with the feed-forward half: u, and blocks of w3 and w4 on their way."""
    return 2 * held(tile) * (tile["BLOCK_P"] + tile["num_stages"] * (chunks + 1) * tile["BLOCK_H"])


def halo(tile: Tile) -> int:
    """Pixels of a tile and the ring around it."""
    return (tile["BLOCK_P"] // tile["BLOCK_W"] + 2) * (tile["BLOCK_W"] + 2)


def tiles_of(n: int, height: int, width: int, tile: Tile) -> tuple[int, int, int]:
    """Rows of tiles in a picture, tiles in a row, tiles in all."""
    rows, columns = ceil(height * tile["BLOCK_W"] / tile["BLOCK_P"]), ceil(width / tile["BLOCK_W"])
    return rows, columns, n * rows * columns


def slots(gpu: Gpu, tile: Tile) -> int:
    """Programs that run at once: each multiprocessor has 65536 registers."""
    return gpu.sms * (65536 // (32 * tile["num_warps"] * _padded(tile["maxnreg"], 8)))


class _Count:
    """Adds up launches on a GPU."""

    def __init__(self, gpu: Gpu, itemsize: int) -> None:
        self.gpu, self.itemsize = gpu, itemsize
        self.launches, self.bytes, self.macs, self.seconds = 0, 0, 0, 0.0

    def add(self, device: int, cached: int, macs: int, lanes: int = 0, busy: float = 1.0) -> None:
        """One launch: bytes of maps and of everything read, multiply-adds, other operations, share of busy SMs."""
        traffic = 0 if device <= self.gpu.l2_bytes / 2 else device
        rate = self.gpu.sms * busy
        work = macs / (rate * self.gpu.rate(self.itemsize) * EFFICIENCY) + lanes / (rate * self.gpu.lane_rate)
        cached += device
        self.seconds += max(traffic / self.gpu.bandwidth, cached / self.gpu.l2_bandwidth, work) + LAUNCH_SECONDS
        self.launches += 1
        self.bytes += device
        self.macs += macs

    def product(self, pixels: int, k: int, n: int, written: int, read_besides: int = 0) -> None:
        """One 1x1 layer, in blocks of 64 pixels and 128 columns."""
        blocks = ceil(pixels / 64) * ceil(n / 128)
        macs = ceil(pixels / 64) * 64 * _padded(k, 64) * _padded(n, 16)
        streamed = blocks * (64 + min(n, 128)) * k * self.itemsize
        device = pixels * (k + written + read_besides) * self.itemsize
        self.add(device, streamed, macs, busy=_busy(blocks, 2 * self.gpu.sms))


def _padded(size: int, multiple: int) -> int:
    return ceil(size / multiple) * multiple


def _busy(blocks: int, places: int) -> float:
    return blocks / (ceil(blocks / places) * places)


def _way(kind: str, widths: Widths, n: int, height: int, width: int, itemsize: int, tile: Tile, gpu: Gpu) -> Launches:
    """The launches of `kind`, counted."""
    count = _Count(gpu, itemsize)
    pixels = n * height * width
    tiles = tiles_of(n, height, width, tile)[2]
    covered = tiles * tile["BLOCK_P"]
    c1, step, columns = _padded(widths.c1, tile["BLOCK_C"]), tile["BLOCK_K"], widths.co
    apart = widths.adaptor and (widths.shortcut or itemsize == 4 or kind == "four")
    if apart:
        count.product(pixels, widths.c, widths.co, widths.co)

    # The launch with the depthwise layer: multiply-adds, bytes of weights per tile, of maps, passed on through L2.
    macs = weights = maps = passed = 0
    lanes = covered * c1 * LANES
    if kind == "two":
        count.product(pixels, widths.k1, widths.c1, widths.c1)
        maps += pixels * widths.c1
    else:
        ring = tiles * _padded(halo(tile), tile["BLOCK_P"])
        macs += ring * _padded(widths.k1, step) * c1
        weights += widths.k1 * c1 * ring // covered
        passed += tiles * halo(tile) * (2 * c1 + widths.k1 * c1 // tile["BLOCK_C"])
    if kind == "four":
        maps += pixels * (widths.c + widths.c1)
    else:
        inside = widths.adaptor and not apart
        columns = _padded(widths.co if inside else widths.c2, tile["BLOCK_C"])
        macs += covered * columns * (c1 + (_padded(widths.c, step) if inside else 0))
        weights += columns * (c1 + (widths.c if inside else 0))
        maps += pixels * (widths.c + widths.co + (widths.co if apart else 0))
        passed += covered * 2 * c1
    if kind in ("one", "two"):
        sums, hidden = held(tile), _padded(widths.hidden, tile["BLOCK_H"])
        macs += covered * sums * hidden * (widths.chunks + 1)
        weights += sums * hidden * (widths.chunks + 1)
        passed += covered * (2 * widths.co + widths.k3)
    programs = tiles * (c1 // tile["BLOCK_C"] if kind == "four" else 1)
    busy = _busy(programs, slots(gpu, tile))
    count.add(maps * itemsize, (tiles * weights + passed) * itemsize, macs, lanes, busy)

    if kind == "four" and widths.c2:
        count.product(pixels, widths.c1, widths.c2, widths.co, widths.co)
    if kind in ("three", "four"):
        if widths.c4:
            count.product(pixels, widths.k3, widths.hidden * widths.chunks, widths.hidden)
            count.product(pixels, widths.hidden, widths.c4, widths.co, widths.co)
        if widths.shortcut:
            count.add(3 * pixels * widths.co * itemsize, 0, 0)
    return Launches(kind, tile, count.launches, count.bytes, 2 * count.macs, count.seconds)


def candidates(
    widths: Widths, n: int, height: int, width: int, itemsize: int, gpu: Gpu, shared: int, vectors: bool = True
) -> list[Launches]:
    """Every way to compute the block, the fastest by estimate first.

    Args:
        widths: of the block.
        n, height, width: of the batch.
        itemsize: bytes per element. float32 has no tensor cores: its products are bound by arithmetic, so little is won
            by holding channels in registers, of which it would take twice as many.
        gpu: what it runs on.
        shared: bytes of shared memory that a program may have there.
        vectors: whether channels can be loaded several at a time. Without, each takes an address of its own, for which
            there are no registers beside the feed-forward half's sums.
    """
    kinds = [(kind, tile) for tile in HALF_TILES[itemsize] for kind in ("three", "four")]
    if itemsize == 2 and vectors:
        tiles = whole_tiles(max(widths.k3, widths.c4), widths.chunks, gpu.arch, widths.indexed)
        tiles = [tile for tile in tiles if shared_bytes(tile, widths.chunks) <= shared]
        kinds += [("two", tile) for tile in tiles]
        kinds += [("one", tile) for tile in tiles if held(tile) <= 256]  # w1 once more costs wider blocks too much
    ways = [_way(kind, widths, n, height, width, itemsize, tile, gpu) for kind, tile in kinds]
    return sorted(ways, key=lambda way: way.seconds)


def sentence(ways: list[Launches]) -> str:
    """What was chosen, and why not the others."""
    best, *others = ways
    rows, columns = best.tile["BLOCK_P"] // best.tile["BLOCK_W"], best.tile["BLOCK_W"]
    plural = "" if best.count == 1 else "es"
    text = f"{best.count} launch{plural}, tiles of {rows}x{columns}: {best.seconds * 1e6:.0f} us by estimate"
    slower = {way.kind: way for way in reversed(others) if way.kind != best.kind}
    listed = ", ".join(f"{way.count} launches {way.seconds * 1e6:.0f} us" for way in slower.values())
    return f"{text} ({listed})" if listed else text
