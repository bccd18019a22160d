"""Launches of `integer_deform_columns`."""

from __future__ import annotations

import torch

from sparsecodec._triton import integer_deform_columns

WITHOUT_PRODUCTS = {"_integer_deform_columns_fwd_kernel"}


def _launch(channels: int, groups: int, masked: bool) -> None:
    x = torch.empty((1, channels, 32, 48), dtype=torch.int16).to(memory_format=torch.channels_last)
    offset = torch.empty((1, 18 * groups, 32, 48), dtype=torch.int32)
    mask = torch.empty((1, 9 * groups, 32, 48), dtype=torch.int16) if masked else None
    integer_deform_columns.integer_deform_columns(x, offset, mask)


def launches(quick):
    for channels, groups in ((64, 8),) if quick else ((64, 8), (24, 4)):
        for masked in (False, True):
            label = f"int16 {channels} channels, {groups} groups{', masked' if masked else ''}"
            yield (
                integer_deform_columns,
                label,
                lambda c=channels, g=groups, m=masked: _launch(c, g, m),
            )
