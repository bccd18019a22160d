"""Portable files to symbols: the package against the decoder written from the pages."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.numpy import load_file
from spc_oracle import Damaged, tables
from spc_oracle import portable as oracle

from sparsecodec._compat import import_compressai
from sparsecodec.entropy import Container, evc_gaussian_tables
from sparsecodec.entropy.coder import observing
from sparsecodec.models import create
from sparsecodec.quant import W8A8, W8A16, W16A16, portable
from sparsecodec.runtime import compile_codec
from sparsecodec.zoo import load, save

COMPRESSAI = {
    "bmshj2018-factorized": ("FactorizedPrior", (16, 24)),
    "bmshj2018-hyperprior": ("ScaleHyperprior", (16, 24)),
    "mbt2018-mean": ("MeanScaleHyperprior", (16, 24)),
    "bmshj2018-hyperprior-vbr": ("ScaleHyperpriorVbr", (16, 24)),
    "mbt2018-mean-vbr": ("MeanScaleHyperpriorVbr", (16, 24)),
}


def lively(model):
    """Untrained, with latents that fill several symbols and tables."""
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.g_a[-1].weight *= 4 / model.g_a(x).std()
        if hasattr(model, "h_a"):
            model.h_a[-1].weight *= 4 / model.h_a(model.g_a(x)).std()
            model.h_s[-1 if isinstance(model.h_s[-1], torch.nn.Conv2d) else -2].weight *= 30
    return model


def model_of(name: str) -> torch.nn.Module:
    torch.manual_seed(5)
    if name == "evc-nano":
        return create(name).eval()
    if name in COMPRESSAI:
        class_name, widths = COMPRESSAI[name]
        model = lively(getattr(import_compressai().models, class_name)(*widths).eval())
        model.update()
        return model
    return load(name)


def rows_of(name: str, model: torch.nn.Module) -> list[tables.Row]:
    if name not in COMPRESSAI:
        gaussian = evc_gaussian_tables()
        return tables.rows(gaussian.cdf.tolist(), gaussian.lengths.tolist(), gaussian.offsets.tolist())
    if name == "bmshj2018-factorized":
        return []
    of = model.gaussian_conditional
    return tables.rows(of._quantized_cdf.tolist(), of._cdf_length.tolist(), of._offset.tolist())


IN_BYTES = ("evc-tiny-sparse", "mbt2018-mean")


@pytest.mark.parametrize(
    ("name", "precision"),
    [(name, W8A16) for name in ("evc-nano", "evc-tiny-sparse", *COMPRESSAI)]
    + [(name, W8A8) for name in IN_BYTES]
    + [("mbt2018-mean", W16A16)],
)
def test_symbols_of_portable_files(name, precision, photo, tmp_path):
    model = portable(model_of(name), [photo[0, :, :64, :64], photo[0, :, 64:128, 64:192]], precision)
    save(model, tmp_path / "model")
    tensors = load_file(tmp_path / "model.safetensors")
    compact = json.loads((tmp_path / "model.json").read_text())["compact"] or {"kept": {}}
    codec = compile_codec(load(tmp_path / "model"), stream="portable")
    family = name if name in COMPRESSAI else "evc"
    judge = oracle.Model(family, tensors, compact["kept"], rows_of(name, model))
    rates = name.endswith("-vbr")
    for height, width, quality in ((64, 64, 0 if rates else None), (65, 60, 60 if rates else None)):
        data = codec.encode(photo[:, :, :height, :width].contiguous(), quality)
        seen: list[list[int]] = []
        with observing(lambda symbols, seen=seen: seen.append(symbols.reshape(-1).tolist())):
            codec.decode(data)
        (decoded,) = oracle.decode(data, judge)
        assert decoded == seen
        assert len(set(decoded[-1])) > 1 or name.startswith("evc-nano")


def test_rates_that_a_model_does_not_have_are_damaged(photo, tmp_path):
    name = "mbt2018-mean-vbr"
    model = portable(model_of(name), [photo[0, :, :64, :64]])
    save(model, tmp_path / "model")
    judge = oracle.Model(name, load_file(tmp_path / "model.safetensors"), {}, rows_of(name, model))
    data = Container.from_bytes(compile_codec(model, stream="portable").encode(photo[:, :, :64, :64], 100))
    assert data.quality == 7
    with pytest.raises(Damaged, match="rate 8 of 8"):
        oracle.decode(dataclasses.replace(data, quality=8).to_bytes(), judge)
