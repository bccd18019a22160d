"""What the scripts of DCVC-RT's published software call on its model of predicted frames: the state is inside."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparsecodec.errors import UsageError
from sparsecodec.models.dcvc_rt import QUALITIES, SHIFTS
from sparsecodec.models.inputs import check_finite, whole
from sparsecodec.nn.rt_state import ReferenceFrame, RTState


class RTVideoScripts:
    """On top of a model's `compress_frame`, `decompress_frame` and `reset`.

    Attributes:
        dpb: the reference, or nothing.
        curr_poc: the number that the next reference gets.
    """

    dpb: list[ReferenceFrame]
    curr_poc: int

    @property
    def state(self) -> RTState:
        """What the next frame is predicted from.

        Raises:
            UsageError: there is no reference yet.
        """
        if not self.dpb:
            raise UsageError("no reference frame: call add_ref_frame first")
        last = self.dpb[0]
        return RTState(frame=last.frame) if last.feature is None else RTState(feature=last.feature)

    def clear_dpb(self) -> None:
        """Forgets the reference."""
        self.dpb.clear()

    def add_ref_frame(
        self, feature: Tensor | None = None, frame: Tensor | None = None, increase_poc: bool = True
    ) -> None:
        """Makes `feature` and `frame`, each possibly None, the reference; shapes as in `ReferenceFrame`.

        Raises:
            UsageError: NaN.
        """
        for name, value in (("the reference's feature", feature), ("the reference's frame", frame)):
            if isinstance(value, Tensor) and value.numel():  # anything else is refused by the frame that reads it
                check_finite(value, name)
        self._refer(feature, frame, increase_poc)

    def _refer(self, feature: Tensor | None, frame: Tensor | None, increase_poc: bool = True) -> None:
        """`add_ref_frame` of what this model made itself: looking at its values would wait for the device."""
        self.dpb[:] = [ReferenceFrame(frame, feature, self.curr_poc)]
        self.curr_poc += bool(increase_poc)

    def reset_ref_feature(self) -> None:
        """The next frame is predicted from the picture."""
        for reference in self.dpb:
            reference.feature = None

    @torch.no_grad()
    def prepare_feature_adaptor_i(self, last_qp: int) -> None:
        """The next frame is predicted from the picture, which an encoder makes here if it has none.

        Args:
            last_qp: the shifted quality of the frame before.

        Raises:
            UsageError: no such quality.
        """
        last_qp = self.check_quality(last_qp)
        if self.state.feature is not None and self.dpb[0].frame is None:
            self.dpb[0].frame = self.reset(self.state, last_qp).frame
            self.reset_ref_feature()

    def set_curr_poc(self, poc: int) -> None:
        """The number that the next reference gets."""
        self.curr_poc = poc

    @staticmethod
    def shift_qp(qp: int, fa_idx: int) -> int:
        """The quality 0 .. 71 of a predicted frame in a clip of quality `qp`; `fa_idx` 0 .. 2 (`SHIFT_OF_FRAME`)."""
        return whole(qp, "qp", QUALITIES) + SHIFTS[whole(fa_idx, "fa_idx", len(SHIFTS))]

    def compress(self, x: Tensor, qp: int) -> dict[str, bytes]:
        """`compress_frame` against the reference, which the frame then replaces: ``bit_stream``."""
        payload, state = self.compress_frame(x, self.state, qp)
        self._refer(state.feature, None)
        return {"bit_stream": payload}

    def decompress(self, bit_stream: bytes, sps: Mapping[str, int], qp: int) -> dict[str, Tensor]:
        """`decompress_frame` against the reference, which the frame then replaces: ``x_hat``."""
        x_hat, state = self.decompress_frame(bit_stream, self.state, sps, qp)
        self._refer(state.feature, x_hat)
        return {"x_hat": x_hat}
