"""Shared by the tests of the ops."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session")
def instruction_sets() -> list[str]:
    """What SPARSECODEC_CPU_ISA may say on this CPU, AMX aside; scalar is first and the judge."""
    flags = torch.backends.cpu.get_cpu_capability()
    return ["scalar"] + ["avx2"] * (flags != "DEFAULT") + ["avx512"] * (flags == "AVX512")
