"""Quality measures, Bjontegaard deltas and evaluation on real bytes."""

from __future__ import annotations

import json
import logging
import math
import warnings

import pytest
import torch

from sparsecodec import SparseCodecError, UsageError, load, save
from sparsecodec._compat import import_compressai
from sparsecodec.cli import main
from sparsecodec.data import write_image
from sparsecodec.metrics import ANCHORS, bd_psnr, bd_rate, evaluate, ms_ssim, psnr

JPEG = ANCHORS["jpeg"]

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
        (([0.1, 0.2, 0.3, 0.4], [30, 31, 30.5, 33]), "does not rise from .0.2 bpp, 31. to .0.3 bpp, 30.5.: leave"),
        (([0.1, 0.2, 0.3, 0.4], [50, 51, 52, 53]), "do not overlap in quality"),
        (([0.0, 0.2, 0.3, 0.4], [28, 29, 30, 31]), "0 bpp .needs more than 0"),
        (([0.1, 0.2, 0.3, 0.4], [28, 29, 30, math.inf]), "point of 0.4 bpp and quality inf"),
        (([0.1, math.nan, 0.3, 0.4], [28, 29, 30, 31]), "point of nan bpp"),
        (([0.1, 0.2, 0.3, 0.3], [28, 29, 30, 31]), "does not rise"),
    ],
)
def test_bad_curves_are_explained(test, message):
    with pytest.raises(UsageError, match=message):
        bd_rate(MEAN_SCALE, test)


def test_little_overlap_is_one_line_of_warning(caplog, capsys):
    far = ([2 * rate for rate in MEAN_SCALE[0]], [quality + 4.5 for quality in MEAN_SCALE[1]])
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")  # the package's own warning would carry its path
        bd_rate(MEAN_SCALE, far)
    assert caplog.messages == ["the curves share only 8 % of their quality: anchor 27.7 to 32.95, test 32.2 to 37.45"]
    caplog.clear()
    bd_rate(MEAN_SCALE, MEAN_SCALE)
    assert not caplog.messages


def test_evaluate_jpeg(photo, tmp_path):
    write_image(photo, tmp_path / "a.png")
    write_image(photo[:, :, :100, :100], tmp_path / "b.png")
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    result = evaluate(JPEG, paths, (20, 60, 95), "jpeg")
    results = result["results"]
    assert [len(values) for values in results.values()] == [3] * len(results)
    for column in ("bpp", "psnr-rgb", "ms-ssim-rgb"):
        assert results[column] == sorted(results[column])
    blob = JPEG.encode(photo, 20)
    first = result["per_picture"][0][0]
    assert first["bpp_file"] == 8 * len(blob) / (photo.shape[2] * photo.shape[3])
    assert first["psnr-rgb"] == psnr(JPEG.decode(blob), photo)
    assert result["per_picture"][0][1]["ms-ssim-rgb"] is None  # 100 pixels are too few
    assert results["ms-ssim-rgb"][0] == first["ms-ssim-rgb"]


def test_evaluate_needs_pictures():
    with pytest.raises(UsageError, match="at least one picture"):
        evaluate(JPEG, [])


def test_evaluate_counts_every_byte_and_times_every_picture(photo, tmp_path):
    for name in ("a.png", "b.png"):
        write_image(photo, tmp_path / name)
    result = evaluate(JPEG, [tmp_path / "a.png", tmp_path / "b.png"], (50, None), "jpeg")
    rows = result["per_picture"][0]
    assert result["results"]["decode_ms"][0] == pytest.approx(500 * sum(row["decoding_time"] for row in rows))
    assert result["results"]["encode_ms"][1] > 0
    assert result["results"]["bpp"][1] > result["results"]["bpp"][0]  # None is the usual quality, 75


class Broken:
    """A codec whose picture is `spoil` of what it was given."""

    def __init__(self, spoil):
        self.spoil = spoil

    def encode(self, x, quality=None):
        self.x = x
        return b"bytes"

    def decode(self, data):
        return self.spoil(self.x)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x * math.nan, "a.png at quality 40: the decoded picture is not finite"),
        (lambda x: x[:, :, 1:], r"a.png at quality 40: .*\(1, 3, 191, 256\), not \(1, 3, 192, 256\)"),
    ],
)
def test_evaluate_refuses_a_picture_that_is_none(spoil, message, photo, tmp_path):
    write_image(photo, tmp_path / "a.png")
    with pytest.raises(SparseCodecError, match=message):
        evaluate(Broken(spoil), [tmp_path / "a.png"], (40,))


def test_unchanged_picture_has_infinite_psnr_and_null_in_json(photo, tmp_path, capsys):
    write_image(photo, tmp_path / "a.png")
    assert evaluate(Broken(lambda x: x), [tmp_path / "a.png"])["results"]["psnr-rgb"] == [math.inf]
    result = {"name": "x", "results": {"bpp": [0.1, 0.2, 0.3, 0.4], "psnr-rgb": [30, 31, 32, None]}}
    (tmp_path / "x.json").write_text(json.dumps(result))
    assert main(["bdrate", str(tmp_path / "x.json"), str(tmp_path / "x.json")]) == 2
    assert "value 4 of 'psnr-rgb' is null (needs a number; null is what eval writes" in capsys.readouterr().err


def test_evaluate_names_an_unreadable_picture_before_it_codes_one(photo, tmp_path):
    write_image(photo, tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:999])
    with pytest.raises(UsageError, match="b.png cannot be read as a picture"):
        evaluate(Broken(lambda x: pytest.fail("coded")), [tmp_path / "a.png", tmp_path / "b.png"])


@pytest.mark.parametrize("anchor", ANCHORS.values(), ids=ANCHORS)
class TestAnchor:
    def test_round_trip_keeps_the_size_and_gets_better_with_quality(self, anchor, photo):
        reason = anchor.why_not()
        if reason is not None:
            pytest.skip(reason)
        for x in (photo[:, :, :1, :1], photo[:, :, :33, :17]):
            assert anchor.decode(anchor.encode(x)).shape == x.shape
        blobs = [anchor.encode(photo, quality) for quality in (anchor.curve[0], 50, anchor.curve[-1])]
        quality = [psnr(anchor.decode(blob), photo) for blob in blobs]
        assert quality == sorted(quality) and quality[0] > 20 and quality[2] > quality[0] + 6
        assert [len(blob) for blob in blobs] == sorted(len(blob) for blob in blobs)
        assert anchor.encode(photo) == anchor.encode(photo, anchor.usual)

    @pytest.mark.parametrize("quality", [-1, 101, 50.5, math.nan])
    def test_impossible_qualities_are_named(self, anchor, quality, photo):
        with pytest.raises(
            UsageError, match=f"{anchor.name} quality {quality:g} .needs a whole number, {anchor.lowest} to"
        ):
            anchor.encode(photo, quality)

    def test_curve_is_rising_and_possible(self, anchor):
        assert list(anchor.curve) == sorted(anchor.curve) and len(anchor.curve) >= 8
        assert anchor.lowest <= anchor.curve[0] and anchor.curve[-1] <= anchor.highest

    def test_pillow_without_it_is_said(self, anchor, photo, monkeypatch):
        monkeypatch.setattr("sparsecodec.metrics.anchors.features.check", lambda feature: False)
        if anchor.feature is None:
            assert anchor.why_not() is None
            return
        with pytest.raises(UsageError, match=f"built without {anchor.format}"):
            anchor.encode(photo)


def test_jpeg_at_0_is_refused_because_pillow_would_take_75(photo):
    with pytest.raises(UsageError, match="1 to 95"):
        JPEG.encode(photo, 0)


def test_a_picture_beyond_a_format_is_named():
    with pytest.raises(UsageError, match="webp cannot hold a picture of 1 x 16384"):
        ANCHORS["webp"].encode(torch.zeros(1, 3, 1, 16384))


def test_stronger_anchors_are_stronger(photo):
    """In the bytes of JPEG's quality 20; measured on this photo: 31.0, 33.8 and 34.8 dB."""
    size = len(JPEG.encode(photo, 20))
    best = {
        name: max(
            psnr(anchor.decode(blob), photo)
            for quality in anchor.curve
            if len(blob := anchor.encode(photo, quality)) <= size
        )
        for name, anchor in ANCHORS.items()
        if anchor.why_not() is None
    }
    assert best["webp"] > best["jpeg"] + 1.5
    assert best.get("avif", math.inf) > best["webp"] + 0.5


# Two shapes in which curves are published: measured (CompressAI's eval_model) and read off a paper's figure
MEASURED = {
    "name": "measured",
    "description": "by hand",
    "results": {
        "psnr-rgb": [28.0, 30.0, 32.0, 34.0],
        "ms-ssim-rgb": [0.9, 0.95, 0.975, 0.9875],
        "bpp": [0.1, 0.2, 0.4, 0.8],
        "encoding_time": [1.0, 1.0, 1.0, 1.0],
        "decoding_time": [1.0, 1.0, 1.0, 1.0],
    },
}
READ_OFF = {
    "name": "read off",
    "description": "",
    "meta": {"source": "figure"},
    "results": {"bpp": [0.8, 0.4, 0.2, 0.1], "ms-ssim-db-rgb": [19.03, 16.02, 13.01, 10.0]},
}


def bdrate(capsys, tmp_path, anchor, test, *options):
    for name, result in (("anchor.json", anchor), ("test.json", test)):
        (tmp_path / name).write_text(json.dumps(result))
    capsys.readouterr()
    code = main(["bdrate", str(tmp_path / "anchor.json"), str(tmp_path / "test.json"), *options])
    return code, *capsys.readouterr()


def with_rates(result, factor):
    return {**result, "results": {**result["results"], "bpp": [factor * rate for rate in result["results"]["bpp"]]}}


def test_bdrate_of_published_shapes(tmp_path, capsys):
    code, out, err = bdrate(capsys, tmp_path, MEASURED, with_rates(MEASURED, 0.9), "--json")
    values = json.loads(out)
    assert code == 0 and err == "" and set(values) == {"bd_rate", "bd_psnr", "metric"}
    assert values["bd_rate"] == pytest.approx(-10) and 0.2 < values["bd_psnr"] < 0.4

    code, out, _ = bdrate(capsys, tmp_path, MEASURED, with_rates(READ_OFF, 0.9), "--metric", "ms-ssim-rgb", "--json")
    values = json.loads(out)
    assert code == 0 and set(values) == {"bd_rate", "bd_ms_ssim", "metric"}  # no PSNR: it is not one
    assert values["bd_rate"] == pytest.approx(-10, abs=0.05)
    assert values["bd_ms_ssim"] == pytest.approx(3.01 * math.log(1 / 0.9, 2), abs=0.02)  # 3.01 dB an octave of rate
    code, out, _ = bdrate(capsys, tmp_path, MEASURED, READ_OFF, "--metric", "ms-ssim-rgb")
    assert code == 0 and out.endswith(" dB (ms-ssim-rgb)\n")


def test_bdrate_counts_our_header(tmp_path, capsys):
    ours = {**MEASURED, "results": {**MEASURED["results"], "bpp_file": [0.2, 0.4, 0.8, 1.6]}}
    assert json.loads(bdrate(capsys, tmp_path, MEASURED, ours, "--json")[1])["bd_rate"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("results", "options", "message"),
    [
        (READ_OFF["results"], (), "test.json has no list 'psnr-rgb' (it has bpp, ms-ssim-db-rgb)"),
        ({"psnr-rgb": [1, 2, 3, 4]}, (), "has no list 'bpp_file'"),
        ({"bpp": [1, 2, 3, 4], "psnr-rgb": 30.0}, (), "has no list 'psnr-rgb'"),
        ({"bpp": [1, 2, 3, True], "psnr-rgb": [1, 2, 3, 4]}, (), "value 4 of 'bpp_file' is true"),
        ({"bpp": [1, 2, 3, "4"], "psnr-rgb": [1, 2, 3, 4]}, (), 'is "4" (needs a number)'),
        ({"bpp": [0.1, 0.2, 0.4], "psnr-rgb": [28, 30, 32]}, (), "test has 3 rates and 3 qualities (needs four"),
        ({"bpp": [0.1, 0.2, 0.4, 0.8], "psnr-rgb": [28, 30, 32, 32]}, (), "(0.4 bpp, 32) to (0.8 bpp, 32): leave one"),
        (
            {"bpp": [0.1, 0.2, 0.4, 0.8], "ms-ssim-rgb": [0.9, 0.95, 0.99, 1.0]},
            ("--metric", "ms-ssim-rgb"),
            "test has a point of 0.8 bpp and quality inf",
        ),
    ],
)
def test_bdrate_says_what_is_wrong_with_a_file(results, options, message, tmp_path, capsys):
    code, out, err = bdrate(capsys, tmp_path, MEASURED, {"results": results}, *options)
    assert code == 2 and out == "" and message in err and err.count("\n") == 1


CLIP = {"clip": "a", "results": MEASURED["results"]}
CURVE = '{{"results": {{"bpp": [0.1, 0.2, 0.4, 0.8], "psnr-rgb": [28, 30, 32, {}]}}}}'


@pytest.mark.parametrize("command", ["bdrate", "plot"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "cannot be read as JSON"),
        (json.dumps({**MEASURED, "per_clip": None}), "'per_clip' is null (needs a list)"),
        (json.dumps({**MEASURED, "per_clip": [CLIP, {"x": 1}]}), "entry 2 of 'per_clip' is {\"x\": 1} (needs 'clip'"),
        (json.dumps({**MEASURED, "per_clip": [7]}), "entry 1 of 'per_clip' is 7 (needs 'clip' and 'results')"),
        (json.dumps({**MEASURED, "per_clip": [{**CLIP, "clip": ["a"]}]}), "entry 1 of 'per_clip'"),
        (json.dumps({**MEASURED, "per_clip": [{**CLIP, "results": []}]}), "entry 1 of 'per_clip'"),
        (CURVE.format("1" + 400 * "0"), f"value 4 of 'psnr-rgb' is 1{39 * '0'} (needs a finite number)"),
        (CURVE.format("NaN"), "value 4 of 'psnr-rgb' is NaN (needs a finite number)"),
        (CURVE.format("1e999"), "value 4 of 'psnr-rgb' is Infinity (needs a finite number)"),
    ],
    ids=["nested", "null", "foreign", "number", "clip", "results", "huge", "nan", "infinite"],
)
def test_malformed_results_are_refused_by_name(command, text, message, tmp_path, capsys):
    if command == "plot":
        pytest.importorskip("matplotlib")
    path = tmp_path / "bad.json"
    path.write_text(text)
    assert main([command, str(path), str(path), *(("-o", str(tmp_path / "rd.png")) if command == "plot" else ())]) == 2
    out, err = capsys.readouterr()
    assert out == "" and f"{path}" in err and message in err and err.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["bad.json"]


def test_eval_of_an_anchor_names_the_machine(photo, tmp_path, capsys):
    write_image(photo, tmp_path / "a.png")
    assert main(["eval", "webp", str(tmp_path), "-q", "20,60", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["device"] == result["environment"]["cpu"]
    assert [len(result["results"][key]) for key in ("decode_ms", "encode_ms", "bpp")] == [2, 2, 2]


def test_eval_of_a_codec_says_its_cost(photo, codec_files, tmp_path, capsys):
    write_image(photo[:, :, :64, :64], tmp_path / "a.png")
    assert main(["eval", str(codec_files / "sparse"), str(tmp_path), "-q", "50", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    dense, sparse = (sum(p.numel() for p in load(codec_files / name).parameters()) for name in ("dense", "sparse"))
    assert result["parameters"] == sparse < dense
    assert 0 < result["mac_per_pixel"] < 22_594  # of the dense decoder
    assert result["device"] and result["dtype"] and result["results"]["decode_ms"][0] > 0


def test_eval_of_a_codec_of_one_rate(photo, tmp_path, capsys):
    torch.manual_seed(0)
    codec = import_compressai().models.FactorizedPrior(8, 12).eval()
    codec.update()
    save(codec, tmp_path / "codec")
    write_image(photo[:, :, :64, :64], tmp_path / "a.png")
    assert main(["eval", str(tmp_path / "codec"), str(tmp_path), "-o", str(tmp_path / "out.json")]) == 0
    assert capsys.readouterr().out.splitlines()[2].split()[0] == "-"
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["qualities"] == [None] and len(result["results"]["bpp"]) == 1


def test_eval_ends_at_an_unreadable_picture(photo, tmp_path, capsys):
    write_image(photo, tmp_path / "a.png")
    (tmp_path / "b.jpg").touch()
    assert main(["eval", "jpeg", str(tmp_path), "-o", str(tmp_path / "out.json")]) == 2
    assert "b.jpg" in capsys.readouterr().err and not (tmp_path / "out.json").exists()
