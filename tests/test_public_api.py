"""What users may rely on, and what importing costs them."""

from __future__ import annotations

import subprocess
import sys

import sparsecodec

NAMES = """
BitstreamError CompiledCodec GraphError ModelMismatchError NoBackendError ResourceLimitError SparseCodecError UsageError
compact compile_codec evaluate load save
""".split()


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_public_names_are_these():
    assert sparsecodec.__all__ == sorted(sparsecodec.__all__) == sorted(NAMES)


def test_every_public_name_resolves_and_is_documented():
    for name in sparsecodec.__all__:
        assert getattr(sparsecodec, name).__doc__, name


def test_subpackages_are_reachable_without_importing_them():
    out = run_python("import sparsecodec; print(sparsecodec.models.create('evc-tiny').family)")
    assert out == "evc"


def test_unknown_names_are_attribute_errors():
    assert not hasattr(sparsecodec, "nonexistent")


def test_import_loads_nothing_heavy():
    heavy = "triton compressai matplotlib torchvision bjontegaard sparsecodec._C sparsecodec._triton"
    code = f"import sys, sparsecodec; print([m for m in '{heavy}'.split() if m in sys.modules])"
    assert run_python(code) == "[]"


def test_import_is_cheap():
    code = "import time, torch; t = time.perf_counter(); import sparsecodec; print(time.perf_counter() - t)"
    assert any(float(run_python(code)) < 0.15 for _ in range(3))


def test_errors_have_one_base_and_documented_exit_codes():
    errors = {name: getattr(sparsecodec, name) for name in NAMES if name.endswith("Error")}
    assert all(issubclass(error, sparsecodec.SparseCodecError) for error in errors.values())
    codes = {name: error.exit_code for name, error in errors.items() if error.exit_code != 1}
    assert codes == {"UsageError": 2, "BitstreamError": 3, "ModelMismatchError": 4, "ResourceLimitError": 5}
    assert issubclass(sparsecodec.UsageError, ValueError)
