"""What a compiled video codec does on a GPU, without one: captured routines against eager ones, what is launched when,
which arithmetic a file names. CUDA graphs are played by a recorder of torch operations."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from io import BytesIO

import pytest
import torch
from torch import nn

from sparsecodec._clip_format import ClipFormat
from sparsecodec.entropy import VideoReader
from sparsecodec.errors import ModelMismatchError, UsageError
from sparsecodec.models import VideoCodec, create
from sparsecodec.models.dcvc_hem_image import DCVCHEMImage, HEMImageWidths
from sparsecodec.models.dcvc_hem_video import DCVCHEMVideo, HEMVideoWidths
from sparsecodec.models.dcvc_rt_image import DCVCRTImage, RTImageWidths
from sparsecodec.models.dcvc_rt_video import DCVCRTVideo, RTVideoWidths
from sparsecodec.models.fvc import FVC, Widths
from sparsecodec.nn.routine import Coding, Known
from sparsecodec.ops import use_backend
from sparsecodec.runtime import compile_codec, numerics
from sparsecodec.runtime.adapters import DCVCCodec, DCVCRTCodec
from sparsecodec.runtime.executor import Executor
from sparsecodec.runtime.video import CompiledVideo, fingerprint

from ..toy_video import moving
from .conftest import both_ends
from .recorded_graphs import RecordedGraphs

CPU = torch.device("cpu")
SIZE = (64, 64)
QPS = (20, 41, 5, 63, 20)


@pytest.fixture(autouse=True)
def plain_torch():
    with use_backend("reference"):
        yield


def rt() -> VideoCodec:
    """Random weights that neither die out nor run away over many frames."""
    torch.manual_seed(0)
    pair = DCVCRTImage(RTImageWidths(16, 8, 24, 1, 1, 1, 1)), DCVCRTVideo(RTVideoWidths(16, 8, 16, 16, 1, 1, 1))
    model = VideoCodec(*pair).eval().requires_grad_(False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bit_estimator" not in name and ".q_" not in name:
                parameter *= 1.2
    return model


def hem(enliven: Callable[[VideoCodec], VideoCodec]) -> VideoCodec:
    torch.manual_seed(0)
    video = HEMVideoWidths(mv=8, channels=8, latent=16, decoded=8, unet=(4, 8, 8), flow=(8, 8, 8, 8))
    pair = DCVCHEMImage(HEMImageWidths(latent=16, refine=4, unet=(4, 8, 8))), DCVCHEMVideo(video)
    return enliven(VideoCodec(*pair).eval().requires_grad_(False))


@pytest.fixture(scope="module", params=["rt", "hem"])
def model(request: pytest.FixtureRequest, enlivened_hem: Callable[[VideoCodec], VideoCodec]) -> VideoCodec:
    return rt() if request.param == "rt" else hem(enlivened_hem)


@pytest.fixture
def codec(model: VideoCodec) -> CompiledVideo:
    return compile_codec(model, dtype=torch.float32)


@pytest.fixture
def captured(model: VideoCodec) -> CompiledVideo:
    """The same as `codec`, as it is on a GPU."""
    codec = compile_codec(model, dtype=torch.float32)
    codec._networks.executor = Executor(CPU, RecordedGraphs())
    return codec


def code(codec: CompiledVideo, frames: int) -> list[tuple]:
    """(payload, fingerprints of the state at both ends, picture) of each frame, of several qualities."""
    ends = both_ends(codec, moving(frames, *SIZE), QPS, period=5)
    return [(payload, fingerprint(ours), fingerprint(theirs), x_hat) for payload, ours, theirs, x_hat in ends]


def test_captured_loops_are_the_eager_ones(codec: CompiledVideo, captured: CompiledVideo):
    """I and P frames behind both kinds, first eager, then replayed, at qualities that no graph was made for."""
    for number, (one, other) in enumerate(zip(code(codec, 8), code(captured, 8), strict=True)):
        assert one[:3] == other[:3] and one[1] == one[2], f"frame {number}"
        assert torch.equal(one[3], other[3]), f"frame {number}"
    executor = captured._networks.executor
    assert executor.refusals == []
    # Both directions of I, P behind I, P behind P: stretches between the coding calls of hyper-latents and passes.
    expected = {"ycbcr": 2 * (1 + 1 + 4) + 4 * (1 + 1 + 2), "rgb": 2 * (1 + 1 + 2) + 4 * (1 + 2 * (1 + 2))}
    assert executor.captures == executor._graphs.recorded == expected[captured.colour]


def test_the_host_waits_only_for_what_it_needs(captured: CompiledVideo, monkeypatch):
    """A hyper-latent is decoded while networks run that do not need it; to go on encoding nothing is waited for."""
    graphs = captured._networks.executor._graphs
    code(captured, 4)
    x, after = moving(2, *SIZE)
    _, state = captured.intra_encode(x, 20)
    _, state = captured.inter_encode(after, state, 20, 1)
    run = captured._networks.executor.run

    def watched(routine, *inputs, host):
        def told(request, out):
            graphs.events.append("known" if isinstance(request, Known) else "coded")
            return host(request, out)

        return run(routine, *inputs, host=told)

    captured._networks.executor.run = watched
    graphs.events.clear()
    payload, _ = captured.inter_encode(after, state, 20, 2)
    latents = 1 if captured.colour == "ycbcr" else 2
    calls = 3 * latents  # hyper-latent and two passes
    assert graphs.events == ["launch"] * (calls + 1) + ["wait", "coded"] * calls
    graphs.events.clear()
    captured.inter_decode(payload, state, *SIZE, 20, 2)
    if latents == 2:  # before it overwrites the symbols that the run before may still read, the host asks for that only
        assert graphs.events.count("known") == 2
    shown = [event for event in graphs.events if event != "wait"]
    assert shown == (["launch", "known"] + ["launch", "coded"] * 2) * latents + ["launch"]
    first = graphs.events.index("coded")
    assert graphs.events[first - 2 : first + 1] == ["launch", "wait", "coded"]


class LateGraphs(RecordedGraphs):
    """A device that nobody waits for at the end of a session."""

    @contextmanager
    def session(self):
        yield

    def handed_over(self, tensor):
        copy = torch.empty_like(tensor)
        self._launched.append(lambda: copy.copy_(tensor))
        return copy


def test_symbols_still_read_are_not_overwritten():
    """The host runs ahead with a `Known`: it must not decode into memory that the run before has yet to read."""
    runner = Executor(CPU, LateGraphs())

    def doubled(x):
        symbols = yield Known((2,))
        return x + 2 * symbols

    answers = iter(torch.tensor([[1, 1], [2, 2], [3, 3], [4, 4]]))

    def host(request, out):
        answer = next(answers)
        return answer if out is None else out.copy_(answer)

    results = [runner.run(doubled, torch.zeros(2), host=host) for _ in range(4)]
    runner._graphs._work(len(runner._graphs._launched))
    assert [result.tolist() for result in results] == [[2, 2], [4, 4], [6, 6], [8, 8]]


def test_results_are_the_callers_own(captured: CompiledVideo):
    frames = moving(4, *SIZE)
    _, first = captured.intra_encode(frames[0], 20)
    states, kept = [first], [[tensor.clone() for tensor in first.tensors()]]
    for index in (1, 2, 3):
        payload, state = captured.inter_encode(frames[index], states[-1], 20, index)
        states.append(state)
        kept.append([tensor.clone() for tensor in state.tensors()])
        again, _ = captured.inter_encode(frames[index], states[-2], 20, index)
        assert again == payload
    for state, copies in zip(states, kept, strict=True):
        assert all(map(torch.equal, state.tensors(), copies))


def test_new_tables_drop_the_graphs():
    model = rt().inter
    half, reference = (compile_codec(model, dtype=torch.float32) for _ in range(2))
    half._networks.executor = Executor(CPU, RecordedGraphs())
    x, after = moving(2, *SIZE)
    state = half.start(x)
    for skip in (None, 0.3, None):
        for one in (half, reference):
            one.update(skip)
        assert half._networks.executor.captures == 0
        for _ in range(3):
            assert half.compress_frame(after, state, 30)[0] == reference.compress_frame(after, state, 30)[0]
        assert half._networks.executor.captures == 4


def test_a_tag_tells_which_bfloat16_kernels_made_a_file(monkeypatch):
    def tag(*dtypes: str) -> int:
        return numerics.video_numerics(frozenset({"cpu", "torch"}), dtypes, torch.device("cpu")).tag

    before, pinned = tag("bfloat16", "float32"), tag("float32")
    monkeypatch.setattr(numerics, "BFLOAT16_KERNELS", numerics.BFLOAT16_KERNELS + 1)
    assert tag("bfloat16", "float32") != before and tag("float32") == pinned


def test_a_gpus_tag_tells_its_settings(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU of tests")
    backends = frozenset({"triton", "torch"})

    def tags() -> set[int]:
        by_kernels = numerics.video_numerics(backends, ("float16",), torch.device("cuda"))
        return {by_kernels.tag, numerics.eager_numerics(torch.device("cuda")).tag}

    known = tags()
    for target, name, value in (
        (torch.backends.cudnn, "allow_tf32", not torch.backends.cudnn.allow_tf32),
        (torch.backends.cudnn, "benchmark", True),
        (torch, "get_float32_matmul_precision", lambda: "medium"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, value)
            assert not tags() & known, name
    monkeypatch.setenv("SPARSECODEC_AUTOTUNE", "0")
    assert len(tags() & known) == 1  # tiles are a matter of kernels


@pytest.mark.parametrize("dtypes, words", [(("float16", "float32"), "float16"), (("bfloat16",), "bfloat16")])
def test_a_gpus_files_name_it(monkeypatch, dtypes: tuple[str, ...], words: str):
    """Both ways the refusal says what made the stream."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU of tests")
    backends = frozenset({"triton", "torch"})
    on_gpu = numerics.video_numerics(backends, dtypes, torch.device("cuda"), threads=3)
    assert on_gpu == numerics.video_numerics(backends, dtypes, torch.device("cuda"), threads=1)
    assert on_gpu.tag < 0x8000 and numerics.described(on_gpu.tag).startswith(f"kernels on a GPU in {words}, ")
    assert on_gpu != numerics.video_numerics(backends, ("float32",), torch.device("cuda"))
    monkeypatch.setattr(DCVCRTCodec, "numerics", on_gpu)
    model = rt()
    codec = compile_codec(model, dtype=torch.float32)
    session = codec.encoder(ClipFormat(*SIZE, rate=(25, 1)), qp=20)
    data = session.push(moving(1, *SIZE)[0]) + session.finish()
    assert len(list(codec.decoder(data))) == 1
    monkeypatch.undo()
    with pytest.raises(ModelMismatchError, match=rf"numerics .*on a GPU in {words}.*codec computes with.*video loop"):
        codec.decoder(data)
    session = codec.encoder(ClipFormat(*SIZE, rate=(25, 1)), qp=20)
    header = VideoReader(BytesIO(session.push(moving(1, *SIZE)[0]) + session.finish())).header
    with pytest.raises(ModelMismatchError, match="of one CPU, or of torch's own layers.*a GPU of tests"):
        numerics.check_made_here(header, codec.model_hash, on_gpu, exact_pictures=False)


def test_fvc_is_captured_too():
    torch.manual_seed(0)
    model = VideoCodec(create("evc-tiny"), FVC(Widths(16, 16, 16, blocks=1, references=2, groups=4))).eval()
    codec, captured = (compile_codec(model, dtype=torch.float32) for _ in range(2))
    captured._networks.executor = Executor(CPU, RecordedGraphs())
    frames = moving(7, *SIZE)
    with torch.inference_mode():
        states = [codec.start(frames[0])] * 3
    for number, x in enumerate(frames[1:], 1):
        payload, ours = codec.inter_encode(x, states[0], 20, number)
        again, theirs = captured.inter_encode(x, states[1], 20, number)
        assert again == payload, f"frame {number}"
        x_hat, decoded = captured.inter_decode(payload, states[2], *SIZE, 20, number)
        assert fingerprint(ours) == fingerprint(theirs) == fingerprint(decoded), f"frame {number}"
        states = [ours, theirs, decoded]
    assert captured._networks.executor.refusals == []
    assert captured._networks.executor.captures == 2 * 2 * 5  # behind one frame, and behind two


def test_what_stays_out_says_why():
    model = create("dcvc-tiny")
    with pytest.raises(UsageError, match="position by position"):
        DCVCCodec(model, torch.device("cuda"), torch.float16, strict=True)


def finish(routine, decoding: bool) -> tuple[list[type], object]:
    """Runs a routine on valueless tensors: its requests, and what it returns."""
    requests, answer = [], None
    while True:
        try:
            request = routine.send(answer)
        except StopIteration as stop:
            return requests, stop.value
        requests.append(type(request))
        if isinstance(request, Known):
            answer = torch.zeros(request.shape, dtype=torch.int32)  # on the host
            continue
        assert isinstance(request, Coding) and request.indexes.device.type == "meta"
        assert (request.symbols is None) == decoding
        answer = torch.empty(request.indexes.shape, dtype=torch.int32, device="meta") if decoding else None


def test_rt_routines_mix_no_devices(monkeypatch):
    """A GPU is played by torch's meta device, whose tensors have no values."""
    from sparsecodec.models import dcvc_rt
    from sparsecodec.runtime import lowering
    from sparsecodec.runtime.adapters.dcvc_rt import CompiledRTImage, CompiledRTVideo
    from sparsecodec.runtime.video_networks import VideoNetworks

    meta = torch.device("meta")
    model = rt()
    tables = dcvc_rt.rate_factorized_tables(model.inter.bit_estimator_z)
    monkeypatch.setattr(dcvc_rt, "rate_factorized_tables", lambda estimator: tables)
    monkeypatch.setattr(lowering, "_divides_by_root", lambda *_, **__: True)

    def compiled(kind: type, half: nn.Module) -> nn.Module:
        half = half.to(meta)
        found = kind(half, VideoNetworks(half, False), "", torch.float16)
        index = [lambda s, g=4 if kind is CompiledRTImage else 2: torch.empty_like(s[:, : s.shape[1] // g]).short()]
        found.coder()._index = index * len(found.coder()._index)  # the reference reads values, to check its thresholds
        return found

    with torch.no_grad():
        intra, inter = compiled(CompiledRTImage, model.intra), compiled(CompiledRTVideo, model.inter)
        x = torch.empty(1, 3, 64, 64, device=meta)
        assert finish(intra._encoding(x, intra._rate(3)), False)[0] == [Coding] * 5
        requests, x_hat = finish(intra._decoding(4, 4, intra._rate(3)), True)
        assert requests == [Known] + [Coding] * 4 and x_hat.shape == x.shape and x_hat.device == meta
        _, feature = finish(inter._encoding(x, x, None, inter._rate(3)), False)
        assert feature.device == meta and feature.dtype == torch.float16
        requests, (x_hat, feature) = finish(inter._decoding(None, feature, 4, 4, inter._rate(3)), True)
        assert requests == [Known, Coding, Coding] and x_hat.device == feature.device == meta
