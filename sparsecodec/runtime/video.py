"""What every compiled video codec does. A subclass per family lives in `adapters`."""

from __future__ import annotations

import io
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecodec._clip_format import ClipFormat
from sparsecodec.entropy import DEFAULT_MAX_PIXELS, DROP, CodedFrame, VideoHeader, VideoReader, VideoWriter, crc32c
from sparsecodec.errors import BitstreamError, ModelMismatchError, UsageError
from sparsecodec.models.inputs import whole
from sparsecodec.runtime.batch import check_encodable
from sparsecodec.runtime.codec import finished
from sparsecodec.runtime.memory import memory_told, with_room
from sparsecodec.runtime.numerics import Numerics, check_made_here
from sparsecodec.runtime.settled import settled
from sparsecodec.runtime.uncopied import Uncopied

if TYPE_CHECKING:
    from sparsecodec.runtime.executor import Executor
    from sparsecodec.runtime.transform import CompiledTransform

QPS = 64
RUN_AWAY = 4.0  # times what a memory was behind the first P frame; those of trained codecs stay within a tenth of it
FRAMES = 1 << 31  # of a clip, fewer
INTRA_PERIOD = 250  # frames; what x264 takes, too


class VideoState(Protocol):
    """What a frame leaves behind for the next P frame: an immutable set of tensors that nobody writes to again."""

    def tensors(self) -> tuple[Tensor, ...]:
        """All of it, always in the same order."""
        ...


class CompiledVideo(Uncopied, ABC):
    """A video codec whose networks run on fused kernels, one frame after another.

    It is *paired*: encoder and decoder run the same compiled arithmetic, the loop that feeds the next frame included,
    so the State after `intra_encode` or `inter_encode` equals that after the matching decode to the bit. Files record a
    fingerprint of it for each frame. A State is a value: frames of several clips may be coded in turns, and a State
    that was kept may be gone back to; so its tensors are never buffers that the codec writes to again.

    Frames are ``[1, 3, H, W]`` float32 in [0, 1]. `colour` says of what: ``"ycbcr"``, Y, Cb, Cr with the chroma at full
    size and 0.5 for no colour; ``"rgb"``. Here H and W are padded, multiples of `stride`.

    Args:
        model_hash: of the weights, 8 bytes.
        device: where the networks run; frames and States live there.
    """

    stride: ClassVar[int]
    colour: ClassVar[str]
    exact_pictures: ClassVar[bool] = False  # the synthesis is integers, too: the same picture on every device
    RESET_INTERVAL: ClassVar[int] = 0  # P frames from one that drops a memory to the next; 0: there is none to drop

    def __init__(self, model_hash: bytes, device: torch.device) -> None:
        self.model_hash = model_hash
        self.device = device
        self.lock = threading.Lock()  # sessions hold it while they code a frame
        self._warm_pixels = 0

    @property
    @abstractmethod
    def numerics(self) -> Numerics:
        """The arithmetic of everything between bytes and State; a stream of other numerics is refused."""

    @abstractmethod
    def intra_encode(self, x: Tensor, qp: int) -> tuple[bytes, VideoState]:
        """A frame that needs no other, and what the next P frame needs.

        Args:
            x: padded frame on `device`.
            qp: 0 (smallest) to 63 (best).
        """

    @abstractmethod
    def inter_encode(self, x: Tensor, state: VideoState, qp: int, index: int) -> tuple[bytes, VideoState]:
        """A frame coded with what the one before it left.

        Args:
            x: padded frame on `device`.
            state: after the frame before.
            qp: 0 to 63; the codec itself moves it by `index` where its family does.
            index: frames since the I frame, at least 1.
        """

    @abstractmethod
    def intra_decode(self, payload: bytes, height: int, width: int, qp: int) -> tuple[Tensor, VideoState]:
        """Payload of `intra_encode` -> frame of that (padded) size, which nobody writes to again, and the State.

        Raises:
            BitstreamError: the payload is damaged.
        """

    @abstractmethod
    def inter_decode(
        self, payload: bytes, state: VideoState, height: int, width: int, qp: int, index: int
    ) -> tuple[Tensor, VideoState]:
        """Payload of `inter_encode` -> frame and State, as for `intra_decode`."""

    def reset(self, state: VideoState, qp: int, index: int) -> VideoState:
        """The State with the picture in place of a memory that goes back further, so that its errors end there.

        Only families with a `RESET_INTERVAL` have such a memory, and are asked for this.

        Args:
            state: after a frame; not changed.
            qp, index: that frame was coded with.
        """
        raise NotImplementedError(f"{type(self).__name__} has no memory that can be dropped")

    def magnitude(self, state: VideoState) -> float:
        """Mean magnitude of a memory that goes back further than the last picture; 0 where there is none."""
        return 0.0

    @property
    def keepers(self) -> list[CompiledTransform | Executor]:
        """What holds memory between frames and can be made to let go of it."""
        return []

    def warm_up(self, sample: Tensor) -> None:
        """Codes `sample` as three frames, so that every layer has its kernel and its buffers."""
        x = self.padded(sample)
        self._warm_pixels = x.shape[2] * x.shape[3]
        _, state = self.intra_encode(x, 0)
        for index in (1, 2):
            payload, after = self.inter_encode(x, state, 0, index)
            self.inter_decode(payload, state, x.shape[2], x.shape[3], 0, index)
            state = after

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """The next multiples of `stride`."""
        return height + -height % self.stride, width + -width % self.stride

    def padded(self, x: Tensor) -> Tensor:
        """``[1, 3, H, W]`` -> float32 on `device`, the last row and column repeated up to multiples of `stride`.

        Raises:
            UsageError: wrong shape, dtype or range.
        """
        check_encodable(x, "frame")
        below, beside = (-side % self.stride for side in x.shape[2:])
        return F.pad(x.to(self.device, torch.float32), (0, beside, 0, below), mode="replicate")

    def encoder(self, form: ClipFormat, qp: int = 32, intra_period: int = INTRA_PERIOD) -> VideoEncoder:
        """A session that turns frames into the bytes of an ``.spv`` file.

        Args:
            form: size and rate of the clip, and what its samples meant before they became frames.
            qp: 0 (smallest) to 63 (best), of frames that are pushed without one.
            intra_period: frames from one that can be decoded alone to the next; 0: only the first one.

        Raises:
            UsageError: no `ClipFormat`, or a number out of range.
        """
        if not isinstance(form, ClipFormat):
            raise UsageError(f"form is a {type(form).__name__} (needs a sparsecodec.data.ClipFormat)")
        return VideoEncoder(self, form, qp, intra_period)

    def decoder(
        self, source: bytes | BinaryIO | VideoReader, start: int = 0, max_pixels: int = DEFAULT_MAX_PIXELS
    ) -> VideoDecoder:
        """A session that gives the frames of an ``.spv`` file, one after another.

        Args:
            source: what an encoder gave, a binary file or pipe to read it from, or a reader that has read the header.
            start: number of the first frame to give. Files are entered at the last I frame before it, of a pipe all
                before it is decoded.
            max_pixels: refuse larger frames; a reader has its own limit.

        Raises:
            BitstreamError: not such a file, or its header is damaged.
            ModelMismatchError: another model made it, or other numerics.
            ResourceLimitError: a frame has more than `max_pixels` pixels. Nothing was allocated for it.
            UsageError: there is no frame `start`; or no bytes, file or limit.
        """
        if isinstance(source, bytes | bytearray | memoryview):
            source = io.BytesIO(source)
        if not isinstance(source, VideoReader):
            if not hasattr(source, "read") or isinstance(source, io.TextIOBase):
                raise UsageError(f"a {type(source).__name__} (needs bytes, a binary file or a reader)")
            source = VideoReader(source, max_pixels)
        return VideoDecoder(self, source, start)


class VideoEncoder:
    """Frames in, bytes out; made by `CompiledVideo.encoder`. Join what `push` and `finish` give.

    Attributes:
        frames: pushed so far.
    """

    def __init__(self, codec: CompiledVideo, form: ClipFormat, qp: int, intra_period: int) -> None:
        self._codec, self._qp, self._period = codec, whole(qp, "qp", QPS), whole(intra_period, "intra_period", FRAMES)
        self._size = (form.height, form.width)
        header = VideoHeader(codec.model_hash, codec.numerics.tag, form, codec.exact_pictures)
        self._writer = VideoWriter(header)
        self._state: VideoState | None = None
        self._index = self._last_qp = 0  # of the frame before; the index is counted from its I frame
        self._usual = 0.0  # magnitude of the memory behind the first P frame
        self.frames = 0

    @settled
    def push(self, frame: Tensor, qp: int | None = None, intra: bool = False) -> bytes:
        """The bytes of the next frame, behind those of the header if it is the first.

        Args:
            frame: ``[1, 3, H, W]`` floating point in [0, 1], in the codec's `colour`.
            qp: of this frame, 0 to 63.
            intra: it can be decoded alone, as after a cut; the period begins anew.

        Raises:
            UsageError: wrong shape, size, dtype or range.
        """
        qp = self._qp if qp is None else whole(qp, "qp", QPS)
        x = self._codec.padded(frame)
        if frame.shape[2:] != self._size:
            size = " x ".join(map(str, frame.shape[2:]))
            raise UsageError(f"frame {self.frames} is {size} (needs {self._size[0]} x {self._size[1]})")
        codec = self._codec
        with memory_told("encoding", self._size, codec.device):
            payload, state, index, drop = with_room(lambda: self._coded(x, qp, intra), codec.lock, codec.keepers)
        record = self._writer.frame(index == 0, qp | drop, fingerprint(state), payload)
        self._state, self._index, self._last_qp = state, index, qp
        self.frames += 1
        return record

    def _coded(self, x: Tensor, qp: int, intra: bool) -> tuple[bytes, VideoState, int, int]:
        """Payload and State of the next frame, the frames since its I frame, and its mark; changes no State."""
        codec, state, index, drop = self._codec, self._state, self._index + 1, 0
        with codec.lock:
            if state is None or intra or index == self._period:
                return *self._alone(x, qp), 0, 0
            if codec.RESET_INTERVAL and index > 1 and index % codec.RESET_INTERVAL == 1 % codec.RESET_INTERVAL:
                state, drop = codec.reset(state, self._last_qp, index - 1), DROP
            payload, state = codec.inter_encode(x, state, qp, index)
            if self._ran_away(state, index):
                return *self._alone(x, qp), 0, 0
            return payload, state, index, drop

    def _alone(self, x: Tensor, qp: int) -> tuple[bytes, VideoState]:
        payload, state = self._codec.intra_encode(x, qp)
        if not is_finite(state):
            raise UsageError(f"frame {self.frames}: the codec makes no finite picture of it (are its weights right?)")
        return payload, state

    def _ran_away(self, state: VideoState, index: int) -> bool:
        """Whether the memory grows from frame to frame, as it may on content unlike what a codec was trained on.

        Nothing but garbage would follow: the frame is coded alone instead. So it is where something is no number.
        """
        now = self._codec.magnitude(state)
        if index == 1:
            self._usual = now
        return not (now <= RUN_AWAY * self._usual and is_finite(state))  # also for NaN

    def finish(self) -> bytes:
        """The end of the file, with the index of the frames that can be decoded alone.

        Raises:
            UsageError: no frame was pushed.
        """
        return self._writer.end()


class VideoDecoder:
    """Iterates over the frames of a file, once: a second loop goes on where the first one stopped.

    Made by `CompiledVideo.decoder`.

    A frame is ``[1, 3, H, W]`` float32 in [0, 1] in the codec's `colour`, on its device, and the caller's to keep.
    Every frame is given that is whole and was decoded to the encoder's own State; then, where the file is damaged or
    cut off, iterating raises.

    Raises:
        BitstreamError: damage; the message names the frame. All before it were right.
        ModelMismatchError: the State after a frame is not the encoder's: something computes otherwise here.

    Attributes:
        header: of the file.
    """

    def __init__(self, codec: CompiledVideo, reader: VideoReader, start: int) -> None:
        self._codec, self._reader, self._start = codec, reader, whole(start, "start", FRAMES)
        self.header = reader.header
        check_made_here(self.header, codec.model_hash, codec.numerics, codec.exact_pictures)
        if start and reader.seekable:
            reader.seek(start)
        self._frames = self._decoded()

    def __iter__(self) -> Iterator[Tensor]:
        return self._frames

    def _decoded(self) -> Iterator[Tensor]:
        state, intra, last_qp, form = None, 0, 0, self.header.form
        while (coded := self._reader.read()) is not None:
            if coded.intra:
                intra = coded.number
            x, state = self._decode(coded, state, coded.number - intra, last_qp)
            last_qp = coded.qp & ~DROP
            if coded.number >= self._start:
                yield finished(x, form.height, form.width)
        if self._reader.next <= self._start:
            raise UsageError(f"frame {self._start} of a clip that has frames 0 to {self._reader.next - 1}")

    @settled
    def _decode(
        self, coded: CodedFrame, state: VideoState | None, index: int, last_qp: int
    ) -> tuple[Tensor, VideoState]:
        codec, size = self._codec, self._codec.padded_size(self.header.form.height, self.header.form.width)
        qp, drop = coded.qp & ~DROP, coded.qp & DROP
        if qp >= QPS:
            raise BitstreamError(f"frame {coded.number}: qp {qp} (needs 0 to {QPS - 1})")
        if drop and (coded.intra or not codec.RESET_INTERVAL or self.header.stream_id is None):
            raise BitstreamError(f"frame {coded.number} is to drop a memory that it has not")

        def decoded() -> tuple[Tensor, VideoState]:
            with codec.lock:
                if coded.intra:
                    return codec.intra_decode(coded.payload, *size, qp)
                before = codec.reset(state, last_qp, index - 1) if drop else state
                return codec.inter_decode(coded.payload, before, *size, qp, index)

        try:
            with memory_told("decoding", size, codec.device):
                x, after = with_room(decoded, codec.lock, codec.keepers)
        except BitstreamError as error:
            raise BitstreamError(f"frame {coded.number}: {error}") from error
        found = fingerprint(after)
        if found != coded.fingerprint:
            raise ModelMismatchError(
                f"frame {coded.number}: decoding leaves the state {found:08x}, encoding left {coded.fingerprint:08x}: "
                f"this machine or build computes otherwise than the one that made the stream ({codec.numerics.name}); "
                "the frames before it are right"
            )
        return x, after


def is_finite(state: VideoState) -> bool:
    """Whether all of a State are numbers. Waits for the device."""
    return all(bool(tensor.isfinite().all()) for tensor in state.tensors())


def fingerprint(state: VideoState) -> int:
    """CRC-32C over the bytes of all tensors of a State, each in the order of its indexes; 32 bits.

    Exactness: any other bit in the State gives another value, but for one time in 2^32.
    """
    value = 0
    for tensor in state.tensors():
        value = crc32c(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy(), value)
    return value
