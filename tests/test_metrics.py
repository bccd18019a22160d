"""Quality measures, Bjontegaard deltas and evaluation on real bytes."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from sparsecodec import UsageError
from sparsecodec.data import write_image
from sparsecodec.metrics import JPEG, bd_psnr, bd_rate, evaluate, ms_ssim, psnr

# Kodak means that CompressAI publishes for bmshj2018-factorized and mbt2018-mean (mse), four points each
FACTORIZED = ([0.122, 0.188, 0.287, 0.440], [26.907, 28.299, 29.724, 31.378])
MEAN_SCALE = ([0.124, 0.198, 0.307, 0.461], [27.699, 29.359, 31.129, 32.951])


def test_psnr_of_a_known_error():
    x = torch.full((1, 3, 8, 8), 100 / 255)
    assert psnr(x + 10 / 255, x) == pytest.approx(20 * math.log10(255 / 10))
    assert psnr(x, x) == math.inf


def test_psnr_is_that_of_the_8_bit_file():
    x = torch.full((1, 3, 8, 8), 100 / 255)
    assert psnr(x + 0.4 / 255, x) == math.inf
    assert psnr(x + 0.6 / 255, x) == pytest.approx(20 * math.log10(255))


def test_ms_ssim_falls_with_noise(photo):
    noise = torch.randn(photo.shape, generator=torch.Generator().manual_seed(0))
    values = [ms_ssim((photo + sigma * noise).clamp(0, 1), photo) for sigma in (0, 0.02, 0.1)]
    assert values[0] == pytest.approx(1, abs=1e-6)
    assert 1 > values[1] > values[2] > 0


@pytest.mark.parametrize("measure", [psnr, ms_ssim])
def test_unequal_shapes_are_named(measure):
    with pytest.raises(UsageError, match=r"\(1, 3, 8, 8\) and \(1, 3, 8, 9\)"):
        measure(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9))


def test_ms_ssim_names_the_least_size():
    with pytest.raises(UsageError, match="160 x 200.*161"):
        ms_ssim(torch.zeros(1, 3, 160, 200), torch.zeros(1, 3, 160, 200))


def test_bd_rate_of_scaled_rates_is_the_scale():
    rates, qualities = MEAN_SCALE
    assert bd_rate(MEAN_SCALE, ([0.8 * rate for rate in rates], qualities)) == pytest.approx(-20)
    assert bd_psnr(MEAN_SCALE, (rates, [quality + 0.3 for quality in qualities])) == pytest.approx(0.3)


def test_bd_rate_has_the_sign_of_the_saving_and_takes_any_order():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saving = bd_rate(FACTORIZED, MEAN_SCALE)
        reversed_points = bd_rate(tuple(v[::-1] for v in FACTORIZED), tuple(v[::-1] for v in MEAN_SCALE))
        assert bd_psnr(FACTORIZED, MEAN_SCALE) > 0.5
    assert saving == reversed_points
    assert -40 < saving < -15


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (([0.1, 0.2, 0.3], [30, 31, 32]), "four points"),
        (([0.1, 0.2, 0.3, 0.4], [30, 31, 32]), "3 qualities"),
        (([0.1, 0.2, 0.3, 0.4], [30, 31, 30.5, 33]), "does not rise from"),
        (([0.1, 0.2, 0.3, 0.4], [50, 51, 52, 53]), "do not overlap in quality"),
        (([0.0, 0.2, 0.3, 0.4], [28, 29, 30, 31]), "does not rise"),
    ],
)
def test_bad_curves_are_explained(test, message):
    with pytest.raises(UsageError, match=message):
        bd_rate(MEAN_SCALE, test)


def test_evaluate_jpeg(photo, tmp_path):
    write_image(photo, tmp_path / "a.png")
    write_image(photo[:, :, :100, :100], tmp_path / "b.png")
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    result = evaluate(JPEG(), paths, (20, 60, 95), "jpeg")
    results = result["results"]
    assert [len(values) for values in results.values()] == [3] * len(results)
    for column in ("bpp", "psnr-rgb", "ms-ssim-rgb"):
        assert results[column] == sorted(results[column])
    blob = JPEG().encode(photo, 20)
    first = result["per_picture"][0][0]
    assert first["bpp_file"] == 8 * len(blob) / (photo.shape[2] * photo.shape[3])
    assert first["psnr-rgb"] == psnr(JPEG().decode(blob), photo)
    assert result["per_picture"][0][1]["ms-ssim-rgb"] is None  # 100 pixels are too few
    assert results["ms-ssim-rgb"][0] == first["ms-ssim-rgb"]


def test_evaluate_needs_pictures():
    with pytest.raises(UsageError, match="at least one picture"):
        evaluate(JPEG(), [])
