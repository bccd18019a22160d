"""Coding with a context model, position by position: the published order, in torch's own layers.

The tables of a position depend on the latents before it, row by row (arXiv 1809.02736). This is the reference path;
`sparsecodec.runtime.context_model` does the same in one native call.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec.entropy import Decoder, EntropyTables, encode
from sparsecodec.errors import UsageError


def require_floats(context: nn.Conv2d) -> None:
    """Raises a UsageError for a context model on integers, which codes wave by wave and not row by row."""
    if not context.weight.is_floating_point():
        raise UsageError(f"{context}: a context model on integers has portable streams only (use stream='portable')")


class PositionCoder:
    """Codes latents of one picture whose tables come from a hyper-prior and from what was coded before.

    Args:
        context: masked convolution of odd size, with no weight from its centre on.
        parameters: 1x1 convolutions, ``[1, P + context.out_channels, 1, 1] -> [1, 2M, 1, 1]``: means, then scales.
        thresholds: ``[R - 1]`` float32, ascending. A scale gets the row = number of thresholds below it.
        tables: R distributions.

    Raises:
        UsageError: `context` is on integers.
    """

    def __init__(self, context: nn.Conv2d, parameters: nn.Module, thresholds: Tensor, tables: EntropyTables) -> None:
        require_floats(context)
        self._context = context
        self._parameters = parameters
        self._thresholds = thresholds.to(context.weight.device)
        self._tables = tables

    def encode(self, y: Tensor, prior: Tensor) -> tuple[bytes, Tensor]:
        """One latent to a string.

        Args:
            y: ``[1, M, H, W]`` float32.
            prior: ``[1, P, H, W]`` float32.

        Returns:
            The string, and the latent as the decoder will have it, ``[1, M, H, W]``.
        """
        _, channels, height, width = y.shape
        symbols = torch.empty(height * width, channels, dtype=torch.int32)
        rows = torch.empty(height * width, channels, dtype=torch.int16)

        def push(position: int, here: Tensor, means: Tensor, row: Tensor) -> Tensor:
            rounded = (here - means).round()
            symbols[position], rows[position] = rounded.flatten(), row
            return rounded

        reach = self._context.kernel_size[0] // 2
        y_hat = self._walk(F.pad(y, (reach,) * 4), prior, push)
        return encode(symbols, rows, self._tables), y_hat

    def decode(self, string: bytes, prior: Tensor) -> Tensor:
        """The latent of a string as its encoder had it, ``[1, M, H, W]``.

        Raises:
            BitstreamError: the string does not hold exactly a latent of the size of `prior`.
        """
        decoder = Decoder(string)

        def pull(position: int, here: Tensor, means: Tensor, row: Tensor) -> Tensor:
            return decoder.decode(row, self._tables).to(means).view_as(means)

        reach, (height, width) = self._context.kernel_size[0] // 2, prior.shape[2:]
        y_hat = prior.new_zeros(1, self._context.in_channels, height + 2 * reach, width + 2 * reach)
        y_hat = self._walk(y_hat, prior, pull)
        decoder.finish()
        return y_hat

    def parameters_at(self, seen: Tensor, prior: Tensor) -> Tensor:
        """Entropy parameters of a position: (``[1, M, K, K]`` around it, ``[1, P, 1, 1]``) -> ``[1, 2M, 1, 1]``."""
        context = F.conv2d(seen, self._context.weight, self._context.bias)
        return self._parameters(torch.cat([prior, context], 1))

    def _walk(self, y_hat: Tensor, prior: Tensor, code: Callable[[int, Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """Visits the positions row by row.

        Args:
            y_hat: ``[1, M, H + K - 1, W + K - 1]``; changed to the decoded latent in a frame of K // 2.
            prior: ``[1, P, H, W]``.
            code: (number of the position, latent ``[1, M, 1, 1]``, means ``[1, M, 1, 1]``, table rows ``[M]`` int16 on
                the host) -> symbols ``[1, M, 1, 1]``.
        """
        size = self._context.kernel_size[0]
        reach, (height, width) = size // 2, prior.shape[2:]
        for row in range(height):
            for column in range(width):
                seen = y_hat[:, :, row : row + size, column : column + size]
                found = self.parameters_at(seen, prior[:, :, row : row + 1, column : column + 1])
                means, scales = found.chunk(2, 1)
                table = torch.bucketize(scales.flatten(), self._thresholds).short().cpu()
                here = seen[:, :, reach : reach + 1, reach : reach + 1]
                here.copy_(code(row * width + column, here, means, table) + means)
        return y_hat[:, :, reach : reach + height, reach : reach + width]
