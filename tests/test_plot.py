"""Figures: the right kind from the right words, what is drawn is what is in the files, and a PNG at the end."""

from __future__ import annotations

import json

import pytest

from sparsecodec.cli import main, plot
from sparsecodec.data import read_image
from sparsecodec.errors import UsageError
from sparsecodec.sparsity.macs import LayerMacs, MacReport

pytest.importorskip("matplotlib")


@pytest.fixture
def drawn(monkeypatch):
    """Figures in the order in which they were begun."""
    figures = []
    begin = plot._figure

    def remember(*size):
        figures.append(begin(*size))
        return figures[-1]

    monkeypatch.setattr(plot, "_figure", remember)
    return figures


@pytest.fixture
def files(tmp_path, monkeypatch):
    """In the working folder: two results of one name, and the logs of two runs."""
    monkeypatch.chdir(tmp_path)
    results = {"bpp": [0.4, 0.1, 0.2], "psnr-rgb": [34, 30, 32], "ms-ssim-rgb": [0.99, 0.9, 0.95]}
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"name": "codec", "results": results}))
    for run, target in (("first", 0.3), ("second", 0.6)):
        (tmp_path / run).mkdir()
        records = [{"step": s, "mac_reduction": target * s / 4, "beta": 1 - s / 4, "loss": None} for s in range(5)]
        (tmp_path / run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG") and min(read_image(path).shape[2:]) > 300


def test_rate_distortion_curves(files, drawn):
    assert main(["plot", "a.json", "b.json", "--title", "Kodak"]) == 0
    (axes,) = drawn[0].axes
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("rate (bit/pixel)", "PSNR (dB)", "Kodak")
    assert [line.get_label() for line in axes.lines] == ["codec (a.json)", "codec (b.json)"]  # two of one name
    assert axes.lines[0].get_xydata().tolist() == [[0.1, 30], [0.2, 32], [0.4, 34]]
    assert is_png(files / "rd.png")


def test_ms_ssim_is_drawn_in_decibels(files, drawn):
    assert main(["plot", "a.json", "--metric", "ms-ssim-rgb", "-o", "q.svg"]) == 0
    (axes,) = drawn[0].axes
    assert axes.get_ylabel() == "MS-SSIM (dB)"
    assert axes.lines[0].get_ydata() == pytest.approx([10, 13.0103, 20])
    assert "<svg" in (files / "q.svg").read_text()


def test_macs_of_every_layer_before_and_after(files, codec_files, drawn):
    assert main(["plot", "--macs", str(codec_files / "dense"), str(codec_files / "sparse")]) == 0
    (axes,) = drawn[0].axes
    assert axes.get_xlabel() == "multiply-accumulates per picture pixel"
    before, after = axes.containers
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(names) == len(set(names)) == len(before) == len(after) > 20
    assert "dec.7.0" in names and axes.get_ylim()[0] > axes.get_ylim()[1]  # the first layer on top
    widths = [[bar.get_width() for bar in bars] for bars in (before, after)]
    assert all(0 < small <= large for large, small in zip(*widths, strict=True))
    first, last = names.index("hyper_dec.0.block.0.conv1.0"), names.index("dec.7.0")
    assert first == 0 and last == len(names) - 1
    assert widths[0][last] == 96  # 32 x 12 weights at half the side
    total, rest = (sum(values) for values in widths)
    assert f"{total:,.0f} to {rest:,.0f} MAC/pixel ({rest / total - 1:+.1%})" in axes.get_title()
    assert is_png(files / "macs.png")


def test_a_layer_that_is_gone_has_no_bar(tmp_path, drawn):
    def report(*names):
        return MacReport(tuple(LayerMacs(name, "conv", 65536, 1, (1, 1)) for name in names))

    plot.draw_macs(report("a", "b"), report("b"), tmp_path / "m.png")
    assert [bar.get_width() for bar in drawn[0].axes[0].containers[1]] == [0, 1]
    with pytest.raises(UsageError, match="no layer b .needs a dense codec and what was made of it"):
        plot.draw_macs(report("a"), report("b"), tmp_path / "n.png")
    assert not (tmp_path / "n.png").exists()


def test_figures_of_runs_over_their_steps(files, drawn):
    keys = ["--key", "mac_reduction,beta"]
    assert main(["plot", "--log", "first/log.jsonl", "second/log.jsonl", *keys, "-o", "runs.png"]) == 0
    top, bottom = drawn[0].axes
    assert (top.get_ylabel(), bottom.get_xlabel()) == ("MACs removed (share)", "step")
    assert [line.get_label() for line in top.lines] == ["first", "second"]
    assert top.lines[1].get_xydata().tolist() == [[0, 0], [1, 0.15], [2, 0.3], [3, pytest.approx(0.45)], [4, 0.6]]
    assert bottom.lines[0].get_ydata().tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert is_png(files / "runs.png")


def test_a_running_log_can_be_drawn(files, drawn):
    with open("first/log.jsonl", "a") as log:
        log.write('{"step": 5, "mac_red')
    assert main(["plot", "--log", "first/log.jsonl"]) == 0
    assert len(drawn[0].axes[0].lines[0].get_xdata()) == 5 and is_png(files / "log.png")


def test_a_log_without_a_reduction_shows_its_loss(files, drawn):
    (files / "decay").mkdir()
    records = [{"step": s, "loss": 4.0 - s, "live_channels": 9 - s} for s in range(3)]
    (files / "decay" / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert main(["plot", "--log", "decay/log.jsonl"]) == main(["plot", "--log", "first/log.jsonl"]) == 0
    assert [figure.axes[0].get_ylabel() for figure in drawn] == ["loss", "MACs removed (share)"]
    assert drawn[0].axes[0].lines[0].get_ydata().tolist() == [4, 3, 2]
    assert main(["plot", "--log", "decay/log.jsonl", "--key", "mac_reduction"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "plot needs one of"),
        (["a.json", "--log", "first/log.jsonl"], "plot needs one of"),
        (["--log", "absent.jsonl"], "absent.jsonl cannot be read"),
        (["--log", "first/log.jsonl", "--key", "loss"], "no numbers 'loss' (it has beta, mac_reduction, step)"),
        (["--log", "first/log.jsonl", "--key", "beta,"], "no numbers ''"),
        (["--log", "a.json"], "no numbers 'loss' (it has none)"),
        (["--macs", "absent", "absent"], "absent"),
        (["a.json", "-o", "x.docx"], "x.docx"),
        (["a.json", "-o", "absent/x.png"], "cannot be written"),
    ],
)
def test_wrong_words_write_nothing(arguments, message, files, capsys):
    before = sorted(files.rglob("*"))
    assert main(["plot", *arguments]) == 2
    out, err = capsys.readouterr()
    assert message in err and out == "" and "Traceback" not in err
    assert sorted(files.rglob("*")) == before


def test_curves_of_clips_are_drawn_as_bdrate_compares_them(files, drawn):
    results = {"bpp_file": [0.1, 0.2], "psnr-yuv": [30, 32], "psnr-y": [29, 31]}
    (files / "clips.json").write_text(json.dumps({"results": results, "per_clip": []}))
    assert main(["plot", "clips.json"]) == main(["plot", "clips.json", "--metric", "psnr-y"]) == 0
    assert [figure.axes[0].get_ylabel() for figure in drawn] == ["PSNR, YUV 6:1:1 (dB)", "PSNR of luma (dB)"]
    assert drawn[0].axes[0].lines[0].get_xydata().tolist() == [[0.1, 30], [0.2, 32]]


def test_curve_of_unequal_lists_is_named(files, capsys):
    (files / "c.json").write_text(json.dumps({"results": {"bpp": [0.1, 0.2], "psnr-rgb": [30]}}))
    assert main(["plot", "c.json"]) == 2
    assert "c has 2 rates and 1 qualities" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rates", "qualities", "message"),
    [
        ([], [], "c.json has no points to draw"),
        ([0.1, 0.2], [0.9, 1.0], "c.json has a point of 0.2 bpp and quality inf"),
        ([0.1, 0.2], [0.9, float("nan")], "c.json: value 2 of 'ms-ssim-rgb' is NaN"),
    ],
)
def test_points_that_a_figure_would_drop_are_refused(rates, qualities, message, files, capsys):
    (files / "c.json").write_text(json.dumps({"results": {"bpp": rates, "ms-ssim-rgb": qualities}}))
    assert main(["plot", "a.json", "c.json", "--metric", "ms-ssim-rgb"]) == 2
    assert message in capsys.readouterr().err and not (files / "rd.png").exists()


def test_missing_package_is_named(files, capsys, monkeypatch):
    monkeypatch.setattr(plot, "why_no_plot", lambda: "plots need the extra sparsecodec[plot]")
    assert main(["plot", "a.json"]) == 2
    assert "sparsecodec[plot]" in capsys.readouterr().err
