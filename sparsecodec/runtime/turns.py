"""Buffers that several streams use, one behind the other."""

from __future__ import annotations

import torch


class Turns:
    """The streams that use a transform's planned buffers and packed weights, one at a time.

    A lock lets one thread after the other launch, but a thread leaves it before the device has done what it launched.
    The next one may have a stream of its own, which then waits for all that the stream before it was given so far,
    readers of results among it. On one stream nothing waits, and on a CPU there is nothing to wait for.
    """

    def __init__(self) -> None:
        self._last: torch.cuda.Stream | None = None

    def take(self, device: torch.device) -> torch.cuda.Stream | None:
        """The current stream of `device`, which from here on follows the one before it; None if there is none to tell.

        A capture on a stream that is not the last one may not wait for it: whoever makes it orders its replays.
        """
        if device.type != "cuda":
            return None
        stream = torch.cuda.current_stream(device)
        if stream != self._last:
            if torch.cuda.is_current_stream_capturing():
                return None
            if self._last is not None:
                stream.wait_stream(self._last)
            self._last = stream
        return stream
