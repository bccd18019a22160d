"""On CI nothing may be skipped for want of a package: a lane that cannot run its tests is red."""

from __future__ import annotations

import importlib.util
import os
import shutil

import pytest
import torch

from sparsecodec._compat import import_compressai
from sparsecodec._cuda import LIBRARY
from sparsecodec.ops import why_unavailable

from .conftest import forbidden


@pytest.mark.skipif(os.environ.get("CI") != "true", reason="not on CI: extras are a choice there")
def test_what_the_lane_needs_is_there():
    assert why_unavailable("cpu") is None
    assert torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
    assert why_unavailable("triton") is None
    import_compressai()
    for package in ("av", "tensorboard", "matplotlib", "pytorch_msssim", "bjontegaard"):
        assert importlib.util.find_spec(package), f"{package} is missing, so its tests would be skipped"
    assert shutil.which("g++"), "the CUDA kernels run on CPU threads, built by g++"
    assert LIBRARY.exists(), "the CUDA kernels are built and compiled ahead of time, by nvcc"


def test_only_what_ci_may_be_without_is_skipped_there(monkeypatch):
    monkeypatch.setenv("CI", "true")
    assert forbidden("no g++ on the PATH") and forbidden("could not import 'av'")
    assert not forbidden("no CUDA device") and not forbidden("this processor has no avx512")
    monkeypatch.delenv("CI")
    assert not forbidden("no g++ on the PATH")
