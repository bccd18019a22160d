"""The commands that run a recipe: what they refuse before anything is computed or written."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsecodec.data import write_image

from .conftest import complaint

QUICK = 'model = "evc-nano"\nsteps = 1\nbatch = 1\ncrop = 64\nwarmup = 1\n'


@pytest.fixture
def photos(photo, tmp_path) -> Path:
    (tmp_path / "photos").mkdir()
    write_image(photo, tmp_path / "photos" / "a.png")
    return tmp_path / "photos"


def refusal(capsys, recipe: str, photos: Path, *options: object, name: str = "recipe.toml", command="train") -> str:
    """The message with which a recipe of that text is refused; nothing else happens."""
    path, out = photos.parent / name, photos.parent / "run"
    path.write_text(recipe)
    code, message = complaint(capsys, command, path, photos, "--out", out, *options)
    assert code == 2 and not out.exists(), message
    return message


@pytest.mark.parametrize(
    "name", ["plan", "checkpoint", "calibrated", "quantized", "latency", "log", "Plan", "plan.json", "log.safetensors"]
)
def test_recipe_called_like_a_file_of_the_run_is_refused(name, photos, capsys):
    message = refusal(capsys, QUICK, photos, name=f"{name}.toml")
    assert f"{name}.toml" in message and "not called checkpoint, calibrated" in message


@pytest.mark.parametrize(
    ("key", "command"),
    [('start_from = "{}"\n', "train"), ('backbone = "{}"\n', "train"), ('[feds]\nteacher = "{}"\n', "distill")],
    ids=["start_from", "backbone", "teacher"],
)
def test_codec_that_is_not_there_is_told_with_the_recipe_that_makes_it(key, command, photos, capsys):
    recipe = QUICK.replace("nano", "tiny-swin") + key + ("channel_steps = 0\nfinetune_steps = 0\n" * ("feds" in key))
    message = refusal(capsys, recipe.format("light"), photos, command=command)
    assert "light is neither shipped (" in message and "evc-tiny" in message and message.endswith(") nor a file")
    (photos.parent / "light.toml").write_text(QUICK)
    message = refusal(capsys, recipe.format("light"), photos, command=command)
    assert message.endswith("light.toml makes it: put light.safetensors and .json of its run here")
    message = refusal(capsys, recipe.format("runs/light"), photos, command=command)
    assert message.endswith("of its run in runs")
