"""DCVC-HEM: motion, and frames under contexts that it draws from the feature before (arXiv 2207.05894)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsecodec.entropy import Decoder, Encoder
from sparsecodec.models.dcvc_hem_image import DCVCHEMImage
from sparsecodec.models.dcvc_hem_video import DCVCHEMVideo
from sparsecodec.models.dual_prior_image import STRIDE
from sparsecodec.models.inputs import check_coded, check_size, whole
from sparsecodec.nn import DualPriorCoder
from sparsecodec.nn.fingerprint import model_hash
from sparsecodec.nn.hem_inter import FLOW, HEM_INTER_LAYOUT, HEMInter, HEMInterCoder, HEMState
from sparsecodec.nn.routine import Routine, pulling, pushing
from sparsecodec.runtime.adapters.paired import OneModel, TwoModels
from sparsecodec.runtime.video import QPS
from sparsecodec.runtime.video_networks import Keeping, Network, VideoNetworks, warp_any


class Picture(nn.Module):
    """The last layer of a picture: new, contiguous float32 memory."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self._network = network

    def forward(self, x: Tensor) -> Tensor:
        return self._network(x).to(torch.float32, memory_format=torch.contiguous_format, copy=True)


class CompiledHEMImage(OneModel, DCVCHEMImage):
    """`DCVCHEMImage` on compiled networks: it answers the same calls.

    Args:
        model: on the device, in eval mode.
        networks: of the whole codec; this model's are added to them, and their executor runs its routines.
        prefix: what paths in this model begin with there.
        dtype: of the transforms; entropy networks and the last layer of the picture are float32.
    """

    ENTROPY: ClassVar = ("hyper_dec", "y_prior_fusion", "y_spatial_prior")
    LATENTS: ClassVar = ("enc", "hyper_enc")
    PICTURE: ClassVar = ("dec", "refine.0", "refine.1")
    SCALE: ClassVar = ("dec", 16**2)  # a latent stands for 16 x 16 pixels

    def __init__(self, model: DCVCHEMImage, networks: VideoNetworks, prefix: str, dtype: torch.dtype) -> None:
        with torch.device("meta"):  # for its structure: everything in it is replaced
            super().__init__(model.widths)
        _take(self, model)
        for path in self.ENTROPY:
            setattr(self, path, networks.add(prefix + path, torch.float32))
        for path in self.LATENTS:
            setattr(self, path, Keeping(networks.add(prefix + path, dtype), torch.float32))
        dec, net, last = self.PICTURE
        self.dec = networks.add(prefix + dec, dtype)
        self.refine = nn.Sequential(
            networks.add(prefix + net, dtype), Picture(networks.add(prefix + last, torch.float32))
        )
        self.eval().requires_grad_(False)
        self._networks, self._prefix = networks, prefix
        self._coder = DualPriorCoder(self.prior, *model.tables(), networks.device, self.LAYOUT)

    def coder(self) -> DualPriorCoder:
        return self._coder

    def decoder_paths(self) -> list[str]:
        return [self._prefix + path for path in (*self.ENTROPY, *self.PICTURE)]

    @torch.no_grad()
    def compress(self, x: Tensor, q_scale: float) -> dict[str, Any]:
        """As the model's own."""
        check_coded(x, STRIDE, self.enc)
        encoder, q = Encoder(self.LAYOUT.streams), self.curr_q(self.round_q_scale(q_scale))
        x_hat = self._networks.run(self._encoding, x, q, host=pushing(encoder))
        return {"bit_stream": encoder.finish(), "x_hat": x_hat}

    def _decompress(self, bit_stream: bytes, height: int, width: int, q_scale: float) -> Tensor:
        check_size(height, width)
        decoder, q = Decoder(bit_stream, self.LAYOUT.streams), self.curr_q(self.round_q_scale(q_scale))
        size = (-(-height // STRIDE), -(-width // STRIDE))
        hyper = self._coder.z_request(size)
        x_hat = self._networks.run(self._decoding, *size, q, host=pulling(decoder, hyper))
        decoder.finish()
        return x_hat

    def _encoding(self, x: Tensor, q: Tensor) -> Routine:
        y = self.enc(x) / q
        return self._finish((yield from self._coder.encoding(y, self.hyper_enc(y), q.flatten())))

    def _decoding(self, height: int, width: int, q: Tensor) -> Routine:
        z_symbols = yield from self._coder.z_decoding((height, width), q.device)
        return self._finish((yield from self._coder.decoding(z_symbols, q.flatten())))

    def _finish(self, y_hat: Tensor) -> Tensor:
        return self.synthesise(y_hat.contiguous()).clamp(0, 1)


class CompiledHEMVideo(OneModel, DCVCHEMVideo):
    """`DCVCHEMVideo` on compiled networks: it answers the same calls. Both ends need the same compiled arithmetic.

    Args:
        model: on a CPU, in eval mode.
        networks, prefix: as for `CompiledHEMImage`.
        dtype: of the transforms; entropy networks, motion and the last layer of the picture are float32.
    """

    ENTROPY: ClassVar = (
        *("mv_hyper_prior_decoder", "mv_y_prior_fusion", "mv_y_spatial_prior"),
        *("contextual_hyper_prior_decoder", "temporal_prior_encoder", "y_prior_fusion", "y_spatial_prior"),
    )
    MOTION: ClassVar = ("mv_decoder",)
    LATENTS: ClassVar = (
        *("mv_encoder", "mv_hyper_prior_encoder", "contextual_encoder", "contextual_hyper_prior_encoder"),
    )
    FEATURES: ClassVar = (
        *("feature_adaptor_I", "feature_adaptor_P", "feature_extractor", "context_fusion_net", "contextual_decoder"),
    )
    GENERATOR: ClassVar = "recon_generation_net"
    PICTURE: ClassVar = ("first_conv", "unet_1", "unet_2", "recon_conv")
    SCALE: ClassVar = ("feature_extractor", 1)
    FIRST: ClassVar = "feature_adaptor_I"
    warp = staticmethod(warp_any)

    def __init__(self, model: DCVCHEMVideo, networks: VideoNetworks, prefix: str, dtype: torch.dtype) -> None:
        with torch.device("meta"):  # for its structure: everything in it is replaced
            super().__init__(model.widths)
        _take(self, model)
        for path in (*self.ENTROPY, *self.MOTION):
            setattr(self, path, networks.add(prefix + path, torch.float32))
        for path in self.LATENTS:
            setattr(self, path, Keeping(networks.add(prefix + path, dtype), torch.float32))
        for path in self.FEATURES:
            setattr(self, path, networks.add(prefix + path, dtype))
        for level, path in enumerate(FLOW):
            self.optic_flow.moduleBasic[level] = networks.add(prefix + path, torch.float32)
        *features, last = self.PICTURE
        generator = self.get_submodule(self.GENERATOR)
        for name in features:
            setattr(generator, name, networks.add(f"{prefix}{self.GENERATOR}.{name}", dtype))
        generator.unet_2 = Keeping(generator.unet_2, dtype)  # its result outlives the frame
        setattr(generator, last, Picture(networks.add(f"{prefix}{self.GENERATOR}.{last}", torch.float32)))
        self.eval().requires_grad_(False)
        self._networks, self._prefix = networks, prefix
        of_latents, of_mv_z, of_z = model.tables()
        nets = HEMInter(self.get_submodule, self.warp)
        mv, y = (
            DualPriorCoder(prior, of_latents, of_hyper, networks.device, HEM_INTER_LAYOUT)
            for prior, of_hyper in ((nets.mv_prior, of_mv_z), (nets.y_prior, of_z))
        )
        self._coder = HEMInterCoder(nets, mv, y, networks.run)

    def coder(self) -> HEMInterCoder:
        return self._coder

    def decoder_paths(self) -> list[str]:
        picture = (f"{self.GENERATOR}.{part}" for part in self.PICTURE)
        paths = (*self.ENTROPY, *self.MOTION, *self.FEATURES, *picture)
        return [self._prefix + path for path in paths if path != self.FIRST]


class DCVCHEMCodec(TwoModels):
    """Compiled DCVC-HEM; arguments as for `TwoModels`.

    Networks between the hyper-latents and the tables, motion and the last layer of a picture compute in float32, all
    others in `dtype`. All of them are part of the loop, so both ends need the same `numerics`.
    """

    stride: ClassVar = STRIDE
    colour: ClassVar = "rgb"
    FLOAT32: ClassVar = "entropy networks, motion and the last layer of a picture"
    MODELS: ClassVar = (DCVCHEMImage, DCVCHEMVideo)
    COMPILED: ClassVar = (CompiledHEMImage, CompiledHEMVideo)
    REDUCES: ClassVar = True  # squeeze-and-excitation: means over pictures and products of matrices, in torch's order

    def __init__(
        self, model: nn.Module, device: torch.device, dtype: torch.dtype, strict: bool, original: bool = False
    ) -> None:
        super().__init__(model, device, dtype, strict, original)
        self._intra_steps, self._inter_steps = model.intra.q_scales(QPS), model.inter.q_scales(QPS)

    @staticmethod
    def identity(model: nn.Module) -> bytes:
        return model_hash(model)[:8]

    @torch.inference_mode()
    def intra_encode(self, x: Tensor, qp: int) -> tuple[bytes, HEMState]:
        coded = self.intra.compress(x, self._intra_steps[whole(qp, "qp", QPS)])
        return coded["bit_stream"], HEMState(coded["x_hat"])

    @torch.inference_mode()
    def inter_encode(self, x: Tensor, state: HEMState, qp: int, index: int) -> tuple[bytes, HEMState]:
        """`index` changes nothing: this family moves no rate."""
        check_coded(x, STRIDE, self.inter.feature_adaptor_I)
        self.inter._check_state(state, x.shape, None)
        return self.inter.coder().encode(x, state, *self.inter.gains(*self._inter_steps[whole(qp, "qp", QPS)]))

    def magnitude(self, state: HEMState) -> float:
        return 0.0 if state.feature is None else float(state.feature.float().abs().mean())

    @torch.inference_mode()
    def intra_decode(self, payload: bytes, height: int, width: int, qp: int) -> tuple[Tensor, HEMState]:
        x_hat = self.intra.decompress(payload, height, width, self._intra_steps[whole(qp, "qp", QPS)])["x_hat"]
        return x_hat, HEMState(x_hat)

    @torch.inference_mode()
    def inter_decode(
        self, payload: bytes, state: HEMState, height: int, width: int, qp: int, index: int
    ) -> tuple[Tensor, HEMState]:
        self.inter._check_state(state, (1, 3, height, width), None)
        steps = self._inter_steps[whole(qp, "qp", QPS)]
        state = self.inter.coder().decode(payload, state, *self.inter.gains(*steps))
        return state.frame, state


def _take(compiled: nn.Module, model: nn.Module) -> None:
    """Moves what is not compiled: steps, and the distributions of hyper-latents."""
    for name, parameter in model.named_parameters(recurse=False):
        setattr(compiled, name, parameter)
    for name, child in model.named_children():
        if name.startswith("bit_estimator"):
            setattr(compiled, name, child)
