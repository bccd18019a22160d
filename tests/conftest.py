"""Shared by all tests."""

from __future__ import annotations

import os

# Read when torch loads OpenMP, here and in processes that tests start: a second thread that waits does so asleep. Where
# other work runs, too, tests with threads take up to thirty times as long if it spins.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import contextlib
import ctypes
import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import sparsecodec
from sparsecodec import _cuda
from sparsecodec.cli import main
from sparsecodec.data import read_image, write_image
from sparsecodec.models import VideoCodec, create
from sparsecodec.sparsity import ChannelMasks, compact, compact_config, trace_model
from sparsecodec.zoo import save

from .toy_video import ToyVideo, y4m

# Small tensors: a second thread only waits, and on a busy machine it waits long. Tests of threading ask for their own.
torch.set_num_threads(1)

# Without a GPU, Triton kernels run in Triton's interpreter; the variable counts when they are first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

PICTURES = Path(sparsecodec.__file__).parent / "data" / "pictures"

# What a machine of the CI may be without. Whatever else is skipped there is red: a test that never runs says nothing.
MAY_BE_MISSING = re.compile(
    "no CUDA device|no CUDA driver|SPARSECODEC_DCVC_CHECKOUT is not set"  # a GPU; other people's code
    "|the interpreter takes|needs one of float32, bfloat16 for all"  # what only a GPU runs, of an op that has kernels
    "|there is a CUDA device|tensors here are on the CPU|launches succeed|run the kernels themselves"  # and with one
    "|processor|CPU does not have|AVX|native rows|torch [0-9.]+|torchvision does not import"  # other machines
)


def forbidden(reason: str) -> bool:
    """Whether a test that is skipped for this reason must fail here."""
    return os.environ.get("CI") == "true" and MAY_BE_MISSING.search(reason) is None


def _unless_allowed(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail") and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        if forbidden(reason):
            report.outcome, report.longrepr = "failed", f"skipped on CI, where it must run: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    report = yield
    _unless_allowed(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    report = yield
    _unless_allowed(report)
    return report


def _gpu_is_lost() -> bool:
    """Whether a kernel has left this process without its GPU: every later call on it fails, whatever it is."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


@pytest.hookimpl(trylast=True)  # the report is on its way
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Side by side, another process takes the place of one without its GPU, so that one bad kernel is one failure."""
    if report.failed and "PYTEST_XDIST_WORKER" in os.environ and _gpu_is_lost():
        os._exit(1)


def load_script(path: Path) -> ModuleType:
    """A script of the tests as a module; its folder need not be where imports look."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_script_with_compiler(path: Path) -> ModuleType:
    """One that compiles C++: a reason to skip where there is no g++."""
    module = load_script(path)
    if module.compiler() is None:
        pytest.skip("no g++ on the PATH")
    return module


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The CUDA kernels on the CPU."""
    path = tmp_path_factory.mktemp("emulated") / "library.so"
    load_script_with_compiler(Path(__file__).parent / "cuda_emulator" / "emulate.py").build_library(path)
    return _cuda.load(path)


@pytest.fixture
def emulated(emulated_library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    """sparsecodec/_cuda.py on tensors of the CPU: the library is emulated, streams and devices do not exist."""
    monkeypatch.setattr(_cuda, "library", lambda: emulated_library)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=None))


@pytest.fixture(scope="session")
def instruction_sets() -> list[str]:
    """What SPARSECODEC_CPU_ISA may say on this CPU, AMX aside; scalar is first and the judge."""
    flags = torch.backends.cpu.get_cpu_capability()
    return ["scalar"] + ["avx2"] * (flags != "DEFAULT") + ["avx512"] * (flags == "AVX512")


@pytest.fixture(scope="session")
def picture_path() -> Path:
    """A photo that ships with the package, 768 x 512."""
    return PICTURES / "kodim23.png"


@pytest.fixture(scope="session")
def photo(picture_path: Path) -> Tensor:
    """``[1, 3, 192, 256]`` float32 in [0, 1]: a textured part of that photo. Not to be written to."""
    return read_image(picture_path)[:, :, 96:288, 192:448].contiguous()


def _stretch_scales(fusion: nn.Sequential, spatial: nn.Sequential) -> None:
    """Scales that suit latents of several symbols."""
    n = fusion[4].bias.numel() // 3
    fusion[4].bias[n : 2 * n] += 2.0
    for quarter in (0, 2):
        spatial[4].bias[quarter * n // 2 : (quarter + 1) * n // 2] += 2.0
    for layer in (fusion[4], spatial[4]):
        layer.weight *= 3


@pytest.fixture(scope="session")
def enlivened_hem() -> Callable[[VideoCodec], VideoCodec]:
    """Makes an untrained DCVC-HEM a test: latents of several symbols, steps that differ between channels, pictures that
    leave [0, 1]."""

    @torch.no_grad()
    def enliven(codec: VideoCodec) -> VideoCodec:
        intra, inter = codec.intra, codec.inter
        for q in (intra.q_basic, inter.mv_y_q_basic, inter.y_q_basic):
            q.copy_(torch.linspace(0.3, 1.5, q.numel()).view(q.shape))
        for layer, gain in (
            (intra.enc[6], 16),
            (intra.hyper_enc[8], 120),
            (inter.mv_encoder[6], 30),
            (inter.mv_hyper_prior_encoder[8], 80),
            (inter.mv_decoder[7][0], 4),
            (inter.contextual_encoder.conv4, 40),
            (inter.contextual_hyper_prior_encoder[4], 30),
            (inter.recon_generation_net.recon_conv, 6),
        ):
            layer.weight *= gain
        inter.recon_generation_net.recon_conv.bias += torch.tensor([0.9, 0.4, 0.1])
        _stretch_scales(intra.y_prior_fusion, intra.y_spatial_prior)
        _stretch_scales(inter.mv_y_prior_fusion, inter.mv_y_spatial_prior)
        _stretch_scales(inter.y_prior_fusion, inter.y_spatial_prior)
        return codec

    return enliven


@pytest.fixture(scope="session")
def codec_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``dense`` and ``sparse``, untrained codecs of the tiny family as `zoo.save` writes them."""
    folder = tmp_path_factory.mktemp("codecs")
    torch.manual_seed(0)
    dense = create("evc-tiny").eval()
    graph = trace_model(dense, ["dec", "hyper_dec", "y_prior_fusion", "y_spatial_prior"])
    masks = ChannelMasks.random(graph, sparsity=0.4, seed=0, round_to=16)
    save(dense, folder / "dense")
    save(compact(dense, masks, graph), folder / "sparse", compact=compact_config(masks, graph))
    return folder


@pytest.fixture
def picture(photo, tmp_path):
    """71 x 65: no multiple of anything."""
    write_image(photo[:, :, :65, :71], tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture(scope="session")
def stream_bytes(photo, codec_files, tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("stream")
    write_image(photo[:, :, :65, :71], folder / "photo.png")
    assert main(["encode", str(folder / "photo.png"), str(folder / "a.spc"), "-m", str(codec_files / "sparse")]) == 0
    return (folder / "a.spc").read_bytes()


@pytest.fixture
def stream(picture, stream_bytes, tmp_path):
    """`picture` as the sparse one of `codec_files` codes it, in the same folder."""
    (tmp_path / "photo.spc").write_bytes(stream_bytes)
    return tmp_path / "photo.spc"


def run(capsys, *arguments) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def complaint(capsys, *arguments) -> tuple[int, str]:
    """Exit code and message of a command that fails: one sentence on stderr, nothing on stdout."""
    code, out, err = run(capsys, *arguments)
    lines = [line for line in err.splitlines() if line.startswith("sparsecodec: ")]
    assert out == "" and len(lines) == 1 and err.rstrip().endswith(lines[0]) and "Traceback" not in err
    return code, lines[0]


@pytest.fixture
def toy(monkeypatch):
    """Whatever the command line loads and compiles for a clip is the toy."""
    for module in ("encoders", "files"):
        monkeypatch.setattr(f"sparsecodec.cli.{module}.load", lambda name: name)
        monkeypatch.setattr(f"sparsecodec.cli.{module}.compile_codec", lambda *args, **kwargs: ToyVideo())
    monkeypatch.setattr("sparsecodec.cli.encoders.usual_stream", lambda model: "native")


@pytest.fixture
def clip(tmp_path) -> Path:
    (tmp_path / "clip.y4m").write_bytes(y4m())
    return tmp_path / "clip.y4m"


@pytest.fixture
def coded(toy, clip, capsys) -> Path:
    assert run(capsys, "encode", clip, clip.with_suffix(".spv"), "-m", "toy", "--intra-period", 4)[0] == 0
    return clip.with_suffix(".spv")
