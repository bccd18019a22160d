"""DCVC-UF: the published objects on compiled networks, with their coding calls, which are a CUDA extension's there."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec.entropy import Decoder32, Encoder32, EntropyTables, dcvc_gaussian16_zigzag_tables
from sparsecodec.errors import UsageError
from sparsecodec.models.dcvc_rt import HYPER, STRIDE, pad_latent
from sparsecodec.models.inputs import check_finite, check_size, whole
from sparsecodec.nn.layers import lower_bound
from sparsecodec.nn.likelihood import rate_rows
from sparsecodec.nn.part_prior import FOUR_PASSES, STEP_MIN, TWO_PASSES, PartParameters, PartPrior
from sparsecodec.nn.routine import Coding, Routine, drive, pulling
from sparsecodec.nn.rt_layers import to_patches
from sparsecodec.nn.uf_coder import MAX_STREAMS, UFCoder, streams_for, uf_hyper_tables
from sparsecodec.runtime.foreign_object import ForeignCodec

QUALITIES = 64
LIMIT = 0.5  # of decoded pictures, on both sides of 0
_ADAPTORS = tuple(f"y_spatial_prior_adaptor_{i}" for i in (1, 2, 3))
_TWO_PASS_NETWORKS = ("y_spatial_prior",)
_FOUR_PASS_NETWORKS = ("y_spatial_prior_reduction", *_ADAPTORS, *_TWO_PASS_NETWORKS)


class _Prior(PartPrior):
    """The networks of an object between its hyper-latent and the tables, at one quality."""

    def __init__(self, codec: UFObject, qp: int, parts: tuple[str, ...]) -> None:
        self._codec = codec
        self._qp = qp
        self.parts = parts


class _ImagePrior(_Prior):
    def parameters(self, z_hat: Tensor, size: tuple[int, int], temporal: Tensor | None = None) -> PartParameters:
        codec = self._codec
        prior = codec.y_prior_fusion(codec.hyper_dec(z_hat))[:, :, : size[0], : size[1]].contiguous()
        scales, means = prior.chunk(2, 1)
        gain, step = codec.step("q_scale_y_enc", self._qp), codec.step("q_scale_y_dec", self._qp)
        return PartParameters(scales, means, gain, step, codec.y_spatial_prior_reduction(prior))

    def refine(self, index: int, y_hat: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        adapted = getattr(self._codec, _ADAPTORS[index - 1])(torch.cat((y_hat, context), 1))
        scales, means = self._codec.y_spatial_prior(adapted).chunk(2, 1)
        return scales, means


class _VideoPrior(_Prior):
    def parameters(self, z_hat: Tensor, size: tuple[int, int], temporal: Tensor | None = None) -> PartParameters:
        codec = self._codec
        hyper = codec.hyper_decoder(z_hat)[:, :, : size[0], : size[1]].contiguous()
        steps = () if codec.four_passes else (codec.step("q_feature", self._qp),)
        prior = codec.y_prior_fusion(hyper, temporal, *steps)
        step, self._scales, means = prior.chunk(3, 1)
        step = lower_bound(step, STEP_MIN)
        context = codec.y_spatial_prior_reduction(prior) if codec.four_passes else prior
        return PartParameters(self._scales, means, torch.reciprocal(step), step, context)

    def refine(self, index: int, y_hat: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        codec = self._codec
        if not codec.four_passes:
            return self._scales, codec.y_spatial_prior(y_hat, context)
        adaptor = getattr(codec, _ADAPTORS[index - 1])
        if not codec.scales_refined:
            return self._scales, codec.y_spatial_prior(adaptor(y_hat, context))
        scales, means = codec.y_spatial_prior(adaptor(torch.cat((y_hat, context), 1))).chunk(2, 1)
        return scales, means


class UFObject(ForeignCodec):
    """What both kinds of object of the family have: the calls of the published software without its extensions.

    Pictures are YCbCr 4:4:4 minus 0.5, ``[1, 3, H, W]`` in [-0.5, 0.5]; they are padded here.
    """

    LAYOUT: ClassVar = torch.channels_last
    MARK: ClassVar[str]  # a key of this kind alone
    BANK: ClassVar[str]  # a table of the decoder's steps

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        state = model.state_dict()
        return "bit_estimator_z.h" in state and any(key.partition(".")[0] == cls.MARK for key in state)

    def set_up(self) -> None:
        scales, hyper = getattr(self, "gaussian_encoder", None), self.bit_estimator_z
        self.__dict__.update(_skip=float(getattr(scales, "skip_thres", 0)), _tables=None)
        found = [_adopted(scales), _adopted(hyper)]
        if all(found):
            self.__dict__["_tables"] = tuple(found)

    def update(self, skip_thres: float = 0.0) -> None:
        """Computes the coding tables of the present weights, in float32.

        Args:
            skip_thres: predicted scales up to here are not coded; 0.15 is the published setting. Both ends must know
                it: streams do not say it.

        Raises:
            UsageError: negative, or not a number.
        """
        if not skip_thres >= 0:
            raise UsageError(f"skip_thres={skip_thres} (needs a scale of at least 0)")
        tables = dcvc_gaussian16_zigzag_tables(), uf_hyper_tables(self.bit_estimator_z)
        self.__dict__.update(_skip=float(skip_thres), _tables=tables)

    # --- for both kinds -------------------------------------------------------------------------------------------

    def _coder(self, prior: PartPrior, joint: bool) -> UFCoder:
        if self._tables is None:
            raise UsageError(f"this {type(self).__name__} has no coding tables yet: call update(skip_thres)")
        return UFCoder(prior, *self._tables, self._skip, joint)

    @property
    def _device(self) -> torch.device:
        return getattr(self, self.BANK).device

    def _padded(self, x: Tensor, frames: int, padding_b: int, padding_r: int) -> Tensor:
        wanted = f"[1, {3 * frames}, H, W] floating point on {self._device}, not empty"
        if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[:2] != (1, 3 * frames) or 0 in x.shape:
            raise UsageError(f"picture {list(x.shape) if isinstance(x, Tensor) else type(x).__name__} (needs {wanted})")
        if not x.is_floating_point() or x.device != self._device:
            raise UsageError(f"picture of {x.dtype} on {x.device} (needs {wanted})")
        check_finite(x, "picture")
        height, width = x.shape[2] + padding_b, x.shape[3] + padding_r
        if min(padding_b, padding_r) < 0 or height % STRIDE or width % STRIDE:
            raise UsageError(
                f"padding_b={padding_b}, padding_r={padding_r}: {x.shape[2]} x {x.shape[3]} becomes {height} x {width} "
                f"(needs multiples of {STRIDE})"
            )
        return F.pad(x.float(), (0, padding_r, 0, padding_b), mode="replicate")

    def step(self, bank: str, qp: int) -> Tensor:
        """The row of a table of steps, ``[1, C, 1, 1]``."""
        return rate_rows(getattr(self, bank), qp)[:, :, None, None]

    def _write(self, routine: Routine) -> tuple[bytes, int, Any]:
        """Runs an encoding routine: payload, how many streams it has, and what the routine returns."""
        calls: list[Coding] = []
        result = drive(routine, lambda call, _: calls.append(call))
        streams = streams_for(sum(int((call.indexes >= 0).sum()) for call in calls[1:]))
        encoder = Encoder32(streams)
        for call in calls:
            encoder.push(call.symbols, call.indexes, call.tables)
        return encoder.finish(), streams, result

    def _read(self, payload: bytes, streams: int, routine: Callable[..., Routine], sps: Mapping[str, int]) -> Any:
        """Runs a decoding routine, ``routine(z_shape, size of the latent)``, on all of `payload`."""
        try:
            height, width = sps["height"], sps["width"]
        except (KeyError, TypeError) as error:
            raise UsageError(f"sps={sps!r} (needs height and width)") from error
        check_size(height, width)
        if isinstance(streams, bool) or not isinstance(streams, int) or not 1 <= streams <= MAX_STREAMS:
            raise UsageError(f"ec_part={streams!r} (needs 1 .. {MAX_STREAMS} streams)")
        size = -(-height // STRIDE), -(-width // STRIDE)
        z_shape = (1, self.bit_estimator_z.h.shape[1], *(-(-side // HYPER) for side in size))
        decoder = Decoder32(payload, streams)
        result = drive(routine(z_shape, size), pulling(decoder))
        decoder.finish()
        return result


class UFImageObject(UFObject):
    """DCVC-UF's image model (there `DMCI`)."""

    MARK = "q_scale_y_enc"
    BANK = "q_scale_dec"
    NEEDS = (
        *("enc", "hyper_enc", "hyper_dec", "y_prior_fusion", *_FOUR_PASS_NETWORKS, "dec"),
        *("q_scale_enc", "q_scale_dec", "q_scale_y_enc", "q_scale_y_dec", "bit_estimator_z.b", "bit_estimator_z.a"),
    )
    TRANSFORMS = ("enc", "hyper_enc", "dec")

    @torch.no_grad()
    def compress(self, x: Tensor, qp: int, padding_b: int, padding_r: int) -> dict[str, Any]:
        """One picture to the family's payload.

        Args:
            x: ``[1, 3, H, W]`` float in [-0.5, 0.5].
            qp: quality, 0 .. 63.
            padding_b, padding_r: rows and columns that make both sides multiples of 16.

        Returns:
            ``bit_stream``: bytes; ``x_hat``: ``[1, 3, H, W]`` float32, padded, as `decompress` gives it, new memory;
            ``ec_parallel``: how many streams, for the frame's header.

        Raises:
            UsageError: `update` was not called; another shape, device, padding or quality.
        """
        x = self._padded(x, 1, padding_b, padding_r)
        coder = self._coder(_ImagePrior(self, whole(qp, "qp", QUALITIES), FOUR_PASSES), joint=False)
        y = self.enc(x, self.step("q_scale_enc", qp))
        payload, streams, y_hat = self._write(coder.encoding(y, self.hyper_enc(pad_latent(y)), qp))
        return {"bit_stream": payload, "x_hat": self._picture(y_hat, qp), "ec_parallel": streams}

    @torch.no_grad()
    def decompress(self, bit_stream: bytes, sps: Mapping[str, int], qp: int, ec_part: int) -> dict[str, Tensor]:
        """A payload to the picture; the inverse of `compress`.

        Args:
            bit_stream: from `compress`.
            sps: ``height``, ``width`` of the picture before padding.
            qp: as given to `compress`.
            ec_part: its ``ec_parallel``.

        Returns:
            ``x_hat``: as `compress` gave it.

        Raises:
            BitstreamError: the payload is damaged or belongs to other settings.
            UsageError: `update` was not called; a size below 1; another quality or number of streams.
        """
        coder = self._coder(_ImagePrior(self, whole(qp, "qp", QUALITIES), FOUR_PASSES), joint=False)

        def routine(z_shape: tuple[int, int, int, int], size: tuple[int, int]) -> Routine:
            symbols = yield coder.z_request(z_shape, qp)
            return (yield from coder.decoding(symbols.to(self._device), size))

        return {"x_hat": self._picture(self._read(bit_stream, ec_part, routine, sps), qp)}

    def _picture(self, y_hat: Tensor, qp: int) -> Tensor:
        return self.dec(y_hat, self.step("q_scale_dec", qp)).clamp(-LIMIT, LIMIT).contiguous()


class UFVideoObject(UFObject):
    """DCVC-UF's video models (there `DMC`): of one frame (LD) or of a group of eight (HTS, HTL).

    The reference is three attributes, as in the published class: `ref_feature`, `memory`, `ctx`.
    """

    MARK = "feature_adaptor_m"
    BANK = "q_decoder"
    NEEDS = (
        *("feature_adaptor_i", "feature_extractor", "encoder.down", "hyper_encoder", "hyper_decoder"),
        *("temporal_prior_encoder", "y_prior_fusion", "y_spatial_prior", "decoder", "recon_head"),
        *("q_encoder", "q_decoder", "q_feature", "bit_estimator_z.b", "bit_estimator_z.a"),
    )
    TRANSFORMS = (
        *("feature_adaptor_i", "feature_adaptor_m", "feature_extractor"),
        *("encoder", "hyper_encoder", "decoder", "recon_head"),
    )

    def set_up(self) -> None:
        super().set_up()
        state = self.state_dict()
        # How many frames, and who predicts what, are read off shapes: there is one head per frame of a group.
        heads = {int(number[1]) for key in state if (number := re.match(r"recon_head\.conv2?\.(\d+)\.\d+\.", key))}
        one = "recon_head.head.weight" in state
        last = max(int(re.match(r".*\.(\d+)\.weight", key)[1]) for key in state if _of_spatial_prior(key))
        predicted = state[f"y_spatial_prior.conv.{last}.weight"].shape[0]
        self.__dict__.update(
            frames=1 if one else max(heads) + 1,
            four_passes=_ADAPTORS[0] in self._modules,
            scales_refined=predicted == 2 * state["encoder.down.weight"].shape[0],
        )
        self.clear_dpb()

    def clear_dpb(self) -> None:
        """Forgets the reference."""
        self.ref_feature = self.memory = self.ctx = None

    @torch.no_grad()
    def add_ref_feature_from_frame(self, frame: Tensor, apply_feature_adaptor: bool = True) -> None:
        """Makes a picture the reference.

        Args:
            frame: ``[1, 3, H, W]`` float in [-0.5, 0.5], both sides multiples of 16.
            apply_feature_adaptor: do now what the next frame begins with.

        Raises:
            UsageError: another shape or device.
        """
        self.clear_dpb()
        self.ref_feature = to_patches(self._padded(frame, 1, 0, 0))
        if apply_feature_adaptor:
            self._context()

    @torch.no_grad()
    def set_ref_feature(self, feature: Tensor, reset_feature_memory: bool) -> None:
        """Makes a feature the reference, or what its last head makes of it, without any memory.

        Args:
            feature: ``[1, C, H/8, W/8]`` float32.
            reset_feature_memory: as for `compress`.
        """
        if reset_feature_memory:
            feature = self.recon_head(feature, for_reset=True)
            self.memory = None
        self.ref_feature, self.ctx = feature, None

    @torch.no_grad()
    def compress(
        self, x: Tensor, qp: int, reset_feature_memory: bool, padding_b: int, padding_r: int
    ) -> dict[str, Any]:
        """A frame, or a group of them, to the family's payload; it becomes the reference.

        Args:
            x: ``[1, 3 frames, H, W]`` float in [-0.5, 0.5].
            qp: quality, 0 .. 63.
            reset_feature_memory: the next frame is predicted from this picture alone.
            padding_b, padding_r: rows and columns that make both sides multiples of 16.

        Returns:
            ``bit_stream``: bytes; ``ec_parallel``: how many streams, for the frame's header.

        Raises:
            UsageError: `update` was not called, there is no reference, or one of another size; another shape, device,
                padding or quality.
        """
        x = self._padded(x, self.frames, padding_b, padding_r)
        coder = self._coder(self._prior(qp), joint=not self.scales_refined)
        self._context((x.shape[2], x.shape[3]))
        y = self.encoder(x, self.ctx, self.step("q_encoder", qp))
        z = self.hyper_encoder(pad_latent(y))
        payload, streams, y_hat = self._write(coder.encoding(y, z, qp, self._temporal(qp)))
        self.set_ref_feature(self.decoder(y_hat, self.ctx, self.step("q_decoder", qp)), reset_feature_memory)
        return {"bit_stream": payload, "ec_parallel": streams}

    @torch.no_grad()
    def decompress(
        self, bit_stream: bytes, sps: Mapping[str, int], qp: int, ec_part: int, reset_feature_memory: bool
    ) -> dict[str, Tensor | list[Tensor]]:
        """A payload to the pictures; the inverse of `compress`, whose last one becomes the reference.

        Args:
            bit_stream: from `compress`.
            sps: ``height``, ``width`` of the picture before padding.
            qp, reset_feature_memory: as given to `compress`.
            ec_part: its ``ec_parallel``.

        Returns:
            ``x_hat``: ``[1, 3, H, W]`` float32 in [-0.5, 0.5], padded, new memory; of a group a list of its frames.

        Raises:
            BitstreamError: the payload is damaged or belongs to other settings. The reference is as before.
            UsageError: `update` was not called, there is no reference, or one of another size; a size below 1; another
                quality or number of streams.
        """
        coder = self._coder(self._prior(qp), joint=not self.scales_refined)

        def routine(z_shape: tuple[int, int, int, int], size: tuple[int, int]) -> Routine:
            symbols = yield coder.z_request(z_shape, qp)
            self._context((size[0] * STRIDE, size[1] * STRIDE))
            return (yield from coder.decoding(symbols.to(self._device), size, self._temporal(qp)))

        y_hat = self._read(bit_stream, ec_part, routine, sps)
        feature = self.decoder(y_hat, self.ctx, self.step("q_decoder", qp))
        pictures = self.recon_head(feature)
        self.set_ref_feature(feature, reset_feature_memory)
        if isinstance(pictures, Tensor):
            return {"x_hat": pictures.clamp(-LIMIT, LIMIT).contiguous()}
        return {"x_hat": [picture.clamp(-LIMIT, LIMIT).contiguous() for picture in pictures]}

    def _context(self, size: tuple[int, int] | None = None) -> None:
        """Memory and context of the next frame, if they are not there yet; its padded size is to be `size`."""
        if self.ref_feature is None:
            raise UsageError("no reference: call add_ref_feature_from_frame first")
        found = tuple(side * 8 for side in self.ref_feature.shape[2:])
        if size is not None and size != found:
            raise UsageError(f"frame of {size[0]} x {size[1]} after a reference of {found[0]} x {found[1]} (padded)")
        if self.ctx is None:
            if self.memory is None:
                self.memory = self.feature_adaptor_i(self.ref_feature)
            else:
                self.memory = self.feature_adaptor_m(self.memory, self.ref_feature)
            self.ctx = self.feature_extractor(self.memory)

    def _temporal(self, qp: int) -> Tensor:
        if self.four_passes:
            return self.temporal_prior_encoder(self.memory, self.step("q_feature", qp))
        return self.temporal_prior_encoder(self.memory)

    def _prior(self, qp: int) -> _VideoPrior:
        return _VideoPrior(self, whole(qp, "qp", QUALITIES), FOUR_PASSES if self.four_passes else TWO_PASSES)


def _of_spatial_prior(key: str) -> bool:
    return re.fullmatch(r"y_spatial_prior\.conv\.\d+\.weight", key) is not None


def _adopted(source: Any) -> EntropyTables | None:
    """The tables that an object has computed, if it has."""
    rows = tuple(getattr(source, name, None) for name in ("_quantized_cdf", "_cdf_length"))
    if any(value is None for value in rows):
        return None
    cdf, lengths = (np.ascontiguousarray(value, np.int32) for value in rows)
    return EntropyTables(cdf, lengths, np.zeros_like(lengths), zigzag=True)
