"""The tables of the DCVC family: published values, and the recipes that they come from."""

import math

import numpy as np
import pytest
import torch

from sparsecodec.entropy import (
    dcvc_gaussian16_tables,
    dcvc_gaussian16_zigzag_tables,
    dcvc_laplace16_tables,
    dcvc_laplace64_tables,
    evc_factorized_tables,
    evc_gaussian_tables,
    pmf_to_quantized_cdf,
    rt_factorized_tables,
    uf_factorized_tables,
)
from sparsecodec.entropy.computed_tables import computed_gaussian16_tables
from sparsecodec.nn import BitEstimator

NORMAL, LAPLACE = torch.distributions.Normal, torch.distributions.Laplace
# tables, digest, law, scales, levels, cap, threshold of the half-range
PUBLISHED = {
    "G64": (evc_gaussian_tables, "0f8f8a0a98a176b7", NORMAL, (0.11, 64), 256, 50, 0.9999),
    "L64": (dcvc_laplace64_tables, "34192d53b1f08c8f", LAPLACE, (0.01, 64), 256, 50, 0.9999),
    "L16": (dcvc_laplace16_tables, "0dde49e68ddc9bd0", LAPLACE, (0.01, 16), 64, 50, 0.9999),
    "G16": (dcvc_gaussian16_tables, "2b842ed0e943ccec", NORMAL, (0.11, 16), 128, 8, 0.9999),
    "G16z": (dcvc_gaussian16_zigzag_tables, "8e18c19310f9b11c", NORMAL, (0.11, 16), 128, 8, 0.999),
}


def zigzag_places(reach: int) -> list[int]:
    """Of 0, 1, -1, 2, .. among -reach .. reach."""
    return [reach] + [reach + sign * k for k in range(1, reach + 1) for sign in (1, -1)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_digests(name):
    make, digest, _, _, levels, cap, _ = PUBLISHED[name]
    tables = make()
    assert tables.digest == digest and tables.rows == levels
    assert (tables.lengths.min(), tables.lengths.max()) == (7, 2 * cap + 3)
    assert np.array_equal(tables.offsets, 0 * tables.lengths if tables.zigzag else -(tables.lengths - 3) // 2)
    assert tables.zigzag == (name == "G16z") and make() is tables


@pytest.mark.parametrize(
    "make, row, values, length",
    [
        (evc_gaussian_tables, 60, [0, 75, 10140, 55395, 65460, 65535, 65536], 7),
        (dcvc_laplace64_tables, 128, [0, 7, 33, 124, 437, 1510], 17),
        (dcvc_gaussian16_tables, 64, [0, 1, 28, 316, 2116, 8766], 15),
        (dcvc_gaussian16_zigzag_tables, 64, [0, 18894, 33448, 48002, 54652, 61302], 13),
    ],
)
def test_samples(make, row, values, length):
    assert make().lengths[row] == length and make().cdf[row, : len(values)].tolist() == values


@pytest.mark.parametrize("name", PUBLISHED)
def test_stored_rows_follow_their_recipe(name):
    """A machine's erf, expm1 and exp may move a value by one, and nothing by more."""
    make, _, law, (low, high), levels, cap, threshold = PUBLISHED[name]
    tables, scales = make(), torch.exp(torch.linspace(math.log(low), math.log(high), levels))
    for row in range(0, levels, 7):
        cdf = law(0.0, scales[row]).cdf
        reach = next((i for i in range(2, cap) if cdf(torch.tensor(float(i))) > threshold), cap)
        k = torch.arange(-reach, reach + 1).float()
        mass = cdf(k + 0.5) - cdf(k - 0.5)
        mass = mass[zigzag_places(reach)] if tables.zigzag else mass
        expected = pmf_to_quantized_cdf(torch.cat([mass, 2 * cdf(k[:1] - 0.5)]))
        assert tables.lengths[row] == len(expected)
        assert (torch.from_numpy(tables.cdf[row, : len(expected)].copy()) - expected).abs().max() <= 1


def test_computed_rows_of_rt_are_the_stored_ones_but_for_roundings():
    stored, computed = dcvc_gaussian16_tables(), computed_gaussian16_tables()
    assert np.array_equal(stored.lengths, computed.lengths) and np.array_equal(stored.offsets, computed.offsets)
    difference = np.abs(stored.cdf.astype(int) - computed.cdf)
    assert difference.max() <= 1 and np.count_nonzero(difference) <= 4


# Tables of learnt distributions

ZEROS_RT = [0, 1759, 3825, 6216, 8937, 11973, 15289, 18826, 22505, 26234, 29913, 33450, 36766, 39802, 42523, 44914]
ZEROS_RT += [46980, 48739, 65536]


@pytest.fixture
def zeros():
    model = BitEstimator(3)
    for parameter in model.parameters():
        parameter.data.zero_()
    return model.cdf


def test_rows_of_zero_parameters(zeros):
    old, rt, uf = (make(zeros, 3) for make in (evc_factorized_tables, rt_factorized_tables, uf_factorized_tables))
    assert old.lengths.tolist() == [83] * 3 and old.offsets.tolist() == [-40] * 3
    assert rt.cdf.tolist() == [ZEROS_RT] * 3 and rt.offsets.tolist() == [-8] * 3 and not rt.zigzag
    frequencies = np.diff(ZEROS_RT)
    expected = np.concatenate([frequencies[zigzag_places(8)], frequencies[-1:]]).cumsum()
    assert uf.cdf[:, 1:].tolist() == [expected.tolist()] * 3 and uf.offsets.tolist() == [0] * 3 and uf.zigzag


def logistic(*laws: tuple[float, float]):
    centre, width = torch.tensor(laws).T[:, None, :, None, None]
    return lambda x: torch.sigmoid((x - centre) / width)


def row(tables, index: int) -> torch.Tensor:
    return torch.from_numpy(tables.cdf[index, : tables.lengths[index]].copy())


def test_rt_rows_have_their_own_ends_and_a_tail_from_the_middle_of_the_last_symbol():
    cumulative = logistic((1.0, 0.3), (0.0, 20.0))
    tables = rt_factorized_tables(cumulative, 2)
    # logit(1e-4) = -9.21: the narrow row ends at 1 - 2.8 -> -2 and 1 + 2.8 -> 4, the wide one is capped
    assert tables.offsets.tolist() == [-2, -8] and tables.lengths.tolist() == [2 + 4 + 1 + 2, 19]

    def at(*places):
        return cumulative(torch.tensor(places).view(1, 1, -1, 1).expand(1, 2, -1, 1))[0, :, :, 0]

    k = torch.arange(-2.0, 5.0)
    tail = at(-2.5)[0, 0] + (1 - at(4.0)[0, 0])
    mass = at(*(k + 0.5).tolist())[0] - at(*(k - 0.5).tolist())[0]
    assert row(tables, 0).tolist() == pmf_to_quantized_cdf(torch.cat([mass, tail[None]])).tolist()


def test_uf_rows_end_alike_on_both_sides():
    tables = uf_factorized_tables(logistic((1.0, 0.3), (0.0, 20.0), (0.0, 0.1), (-1.0, 0.3)), 4)
    # logit(1e-3) = -6.91: 1 + 2.1 -> 4 on the far side, and so on the near one
    assert tables.lengths.tolist() == [2 * 4 + 3, 19, 2 * 2 + 3, 2 * 4 + 3] and tables.zigzag
    frequencies = row(tables, 0).diff()
    assert frequencies[1] == frequencies[:9].max()  # the symbol 1, in second place
    assert frequencies[3] > 50 * frequencies[4]  # 2 and -2, three and a half widths farther from the centre
