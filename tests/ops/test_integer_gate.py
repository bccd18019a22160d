"""Claims of `integer_gate` beside conformance, and of the tables that are made for it."""

from __future__ import annotations

import hashlib

import pytest
import torch

from sparsecodec.errors import NoBackendError, UsageError
from sparsecodec.nn.integer_functions import gate_table, sigmoid_table
from sparsecodec.ops import integer_gate, use_backend
from sparsecodec.ops._registry import bind
from sparsecodec.ops.integer_gate import INTEGER_GATE

EXPONENTS = (-30, -20, -16, -13, -12, -11, -10, -7, -3, 0)


def _gate(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(4 * x)


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_the_gate_is_rounded_correctly(exponent):
    """Against float64, whose own error is far below the slack."""
    x = torch.arange(-(2**15), 2**15).double() * 2.0**exponent
    expected = (_gate(x) * 2.0**-exponent).clamp(-(2**15), 2**15 - 1)
    assert float((gate_table(exponent) - expected).abs().max()) <= 0.5 + 1e-4


@pytest.mark.parametrize("exponent", [-28, *EXPONENTS[1:]])
def test_the_sigmoid_is_rounded_correctly(exponent):
    x = torch.arange(-(2**15), 2**15).double() * 2.0**exponent
    expected = (torch.sigmoid(x) * 2**15).clamp(max=2**15 - 1)
    assert float((sigmoid_table(exponent) - expected).abs().max()) <= 0.5 + 1e-4


def test_the_tables_are_those_of_every_version():
    """Golden: other digests are other streams, which no file made before opens."""
    values = torch.cat([gate_table(exponent) for exponent in EXPONENTS] + [sigmoid_table(-11)])
    digest = hashlib.sha256(values.numpy().astype("<i2").tobytes()).hexdigest()
    assert digest.startswith("c3de46d816b32f2d")


def test_entries_and_sums():
    table = torch.zeros(2**16, dtype=torch.int16)
    table[0], table[2**15], table[-1], table[2**15 + 7] = 11, 22, 33, -(2**15)
    x = torch.tensor([-(2**15), 7, 0, 7, 2**15 - 1, 1], dtype=torch.int16).view(1, 6, 1, 1)
    with use_backend("cpu"):
        assert integer_gate(x, table).flatten().tolist() == [11, -(2**15), 22, -(2**15), 33, 0]
        assert integer_gate(x, table, 2).flatten().tolist() == [11 - 2**15, -(2**15) + 33, 22]
        assert integer_gate(x, table, 3).flatten().tolist() == [66, -(2**15)]


def test_bits_do_not_depend_on_threads():
    x = torch.randint(-(2**15), 2**15, (1, 64, 33, 29), generator=torch.Generator().manual_seed(0))
    x = x.to(torch.int16).contiguous(memory_format=torch.channels_last)
    run = bind(INTEGER_GATE, x=x, table=gate_table(-12), chunks=2).run
    expected, threads = run(x=x), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(run(x=x), expected)
    finally:
        torch.set_num_threads(threads)


def test_refuses_what_it_cannot_compute():
    x, table = torch.zeros(1, 6, 2, 2, dtype=torch.int16), gate_table(-12)
    with use_backend("reference"):
        with pytest.raises(UsageError, match="chunks=4 of 6 channels"):
            integer_gate(x, table, 4)
        with pytest.raises(UsageError, match="needs \\[65536\\]"):
            integer_gate(x, table[1:])
    with use_backend("cpu"):
        with pytest.raises(NoBackendError, match="channels innermost"):
            integer_gate(x, table, 2)
        with pytest.raises(NoBackendError, match="x.dtype=int32"):
            integer_gate(x.int().contiguous(memory_format=torch.channels_last), table)
