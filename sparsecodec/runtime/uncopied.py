"""What is compiled belongs to the process and device that it was compiled for."""

from __future__ import annotations

from typing import Any, NoReturn

from sparsecodec.errors import UsageError


class Uncopied:
    """Refuses to be copied or pickled: packed weights, buffers and locks cannot go elsewhere, nor be in two codecs."""

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise UsageError(
            f"a {type(self).__name__} is compiled and cannot be copied or pickled (needs the model instead: save it "
            "with sparsecodec.save, and call compile_codec where it is to run)"
        )


class KeepsWeights(Uncopied):
    """Stands before `nn.Module` among the bases of what has packed its weights once, some of them into tables."""

    def load_state_dict(self, *args: Any, **options: Any) -> NoReturn:
        """Refused: what was packed would stay as it was."""
        raise UsageError(
            f"a {type(self).__name__} is compiled with its weights (needs them before: load them into the model, and "
            "call compile_codec again)"
        )
