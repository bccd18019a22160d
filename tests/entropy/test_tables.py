"""Tables: published values, the quantiser's rules, and everything that is no table."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecodec.entropy import (
    Encoder,
    Encoder32,
    EntropyTables,
    compressai_scales,
    dcvc_gaussian16_zigzag_tables,
    evc_factorized_tables,
    evc_gaussian_tables,
    gaussian_tables,
    pmf_to_quantized_cdf,
    tables_from_pmf,
)
from sparsecodec.errors import UsageError
from sparsecodec.nn import BitEstimator


def test_evc_gaussian_rows():
    tables = evc_gaussian_tables()
    assert tables.digest == "0f8f8a0a98a176b7"
    assert tables.cdf[60, : tables.lengths[60]].tolist() == [0, 75, 10140, 55395, 65460, 65535, 65536]
    assert (tables.rows, tables.lengths.min(), tables.lengths.max()) == (256, 7, 103)
    assert np.array_equal(tables.offsets, -(tables.lengths - 3) // 2)


def test_evc_gaussian_rows_follow_their_recipe():
    """The stored integers are what the recipe of docs/bitstream.md gives; a machine's erf may move a value by one."""
    tables = evc_gaussian_tables()
    scales = torch.exp(torch.linspace(np.log(0.11), np.log(64.0), 256))
    for row in range(0, 256, 15):
        law = torch.distributions.Normal(0.0, scales[row])
        reach = -int(tables.offsets[row])
        k = torch.arange(-reach, reach + 1).float()
        pmf = torch.cat([law.cdf(k + 0.5) - law.cdf(k - 0.5), 2 * law.cdf(-k[-1:] - 0.5)])
        stored = torch.from_numpy(tables.cdf[row, : tables.lengths[row]].copy())
        assert (pmf_to_quantized_cdf(pmf) - stored).abs().max() <= 1


def test_evc_factorized_rows_of_zero_parameters():
    model = BitEstimator(3)
    for parameter in model.parameters():
        parameter.data.zero_()
    tables = evc_factorized_tables(model.cdf, 3)
    for row in tables.cdf:
        assert row.tolist()[:4] == [0, 1, 2, 3] and row.tolist()[-3:] == [65444, 65445, 65536]
    assert tables.lengths.tolist() == [83] * 3 and tables.offsets.tolist() == [-40] * 3


def test_evc_factorized_rows_have_their_own_ends():
    """A channel that is narrow and shifted, one wide: ends where the tails fall below 1e-4, at least 2, at most 50."""
    centre, width = torch.tensor([3.0, 0.0]).view(1, 2, 1, 1), torch.tensor([0.5, 40.0]).view(1, 2, 1, 1)
    tables = evc_factorized_tables(lambda x: torch.sigmoid((x - centre) / width), 2)
    # logit(1e-4) = -9.21: narrow ends are 3 - 4.6 -> -2 and 3 + 4.6 -> 8; wide ones are capped
    assert tables.offsets.tolist() == [-2, -50]
    assert tables.lengths.tolist() == [8 + 2 + 1 + 2, 103]


def test_evc_factorized_escape_counts_from_the_end_of_the_longest_row():
    centre, width = torch.tensor([60.0, 0.0]).view(1, 2, 1, 1), torch.tensor([10.0, 40.0]).view(1, 2, 1, 1)
    tables = evc_factorized_tables(lambda x: torch.sigmoid((x - centre) / width), 2)
    assert (tables.offsets[0], tables.lengths[0]) == (-33, 33 + 50 + 1 + 2)
    # CDF(50.5) = 0.2789 is plain; the longest row has 101 symbols, and 1 - CDF(101 - 33 - 0.5) = 0.3208
    assert abs(65536 - int(tables.cdf[0, 84]) - 65536 * 0.3208 / (0.2789 + 0.3208)) < 50


def test_quantiser_on_hand_computed_values():
    def quantise(*probabilities):
        return pmf_to_quantized_cdf(torch.tensor(probabilities)).tolist()

    assert quantise(0.5, 0.25, 0.25) == [0, 32768, 49152, 65536]
    assert quantise(0.25, 0.25) == [0, 32768, 65536]  # rescaled to 65536
    assert quantise(1.0) == [0, 65536]
    assert quantise(0.5, 0.0, 0.5) == [0, 32767, 32768, 65536]  # the first of two equal donors, left of the gap
    assert quantise(0.75, 0.0, 0.25) == [0, 49152, 49153, 65536]  # the smaller donor, right of the gap
    assert quantise(0.0, 2 / 65536, 1.0, 0.0) == [0, 1, 2, 65535, 65536]  # 2 gives 1, then has none to spare
    assert quantise(0.5 / 65536, 1.0) == [0, 1, 65536]  # halves round up


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=300))
def test_quantised_rows_are_valid_and_close(probabilities):
    pmf = torch.tensor(probabilities, dtype=torch.float32)
    if (pmf * 65536 + 0.5).floor().sum() == 0:
        with pytest.raises(UsageError, match="rounds to 0"):
            pmf_to_quantized_cdf(pmf)
        return
    frequency = pmf_to_quantized_cdf(pmf).diff()
    assert frequency.sum() == 65536 and frequency.min() >= 1
    if pmf.sum() > 0.01:
        expected = pmf.double() / pmf.double().sum() * 65536
        # rounding moves a frequency before it is rescaled and by the rescaling's share, every empty symbol takes 1, the
        # last gets what is left
        slack = 2 + 1 / pmf.double().sum() + len(pmf) * (1 + expected / (pmf.double().sum() * 65536))
        assert ((frequency - expected).abs() <= slack).all()


def test_longest_possible_row():
    assert pmf_to_quantized_cdf(torch.full((65536,), 1 / 65536)).tolist() == list(range(65537))
    lonely = torch.zeros(3000)
    lonely[0] = 1
    assert pmf_to_quantized_cdf(lonely).diff().tolist() == [65536 - 2999] + [1] * 2999


@pytest.mark.parametrize(
    ("pmf", "complaint"),
    [
        (torch.tensor([0.5, -0.1]), r"pmf\[1\] = -0.1"),
        (torch.tensor([float("nan"), 1]), r"pmf\[0\] = nan"),
        (torch.tensor([1, float("inf")]), r"pmf\[1\] = inf"),
        (torch.tensor([1e30, 1]), r"pmf\[0\] = 1e\+30"),
        (torch.zeros(4), "rounds to 0"),
        (torch.zeros(0), "0 symbols"),
        (torch.full((65537,), 1e-5), "65537 symbols"),
        (torch.tensor([0.5, 0.5], dtype=torch.float64), "float64"),
        (torch.ones(2, 2), r"shape \(2, 2\)"),
    ],
)
def test_no_distribution_is_refused(pmf, complaint):
    with pytest.raises(UsageError, match=complaint):
        pmf_to_quantized_cdf(pmf)


def _arguments(**changes):
    arguments = {
        "cdf": np.array([[0, 30000, 60000, 65536, 9], [0, 1, 65536, 9, 9]], np.int32),
        "lengths": np.array([4, 3], np.int32),
        "offsets": np.array([-1, 0], np.int32),
    }
    for name, (place, value) in changes.items():
        arguments[name][place] = value
    return arguments


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"cdf": ((1, 0), 1)}, r"cdf\[1\]\[0\] = 1 \(needs 0\)"),
        ({"cdf": ((0, 2), 30000)}, r"cdf\[0\]\[2\] = 30000 after 30000"),
        ({"cdf": ((0, 2), -5)}, r"cdf\[0\]\[2\] = -5"),
        ({"cdf": ((0, 3), 65535)}, r"cdf\[0\]\[3\] = 65535 \(needs 65536"),
        ({"cdf": ((0, 3), 65537)}, r"cdf\[0\]\[3\] = 65537 \(needs 65536"),
        ({"lengths": (0, 6)}, r"lengths\[0\] = 6 \(needs 2 to 5\)"),
        ({"lengths": (1, 1)}, r"lengths\[1\] = 1"),
        ({"lengths": (1, -3)}, r"lengths\[1\] = -3"),
        ({"lengths": (0, 5)}, r"cdf\[0\]\[4\] = 9 after 65536"),
        ({"offsets": (1, 1 << 31 - 1)}, r"offsets\[1\]"),
        ({"offsets": (1, -(1 << 30) - 1)}, r"offsets\[1\]"),
    ],
)
def test_damaged_tables_are_refused(changes, complaint):
    EntropyTables(**_arguments())
    if changes.get("offsets", (0, 0))[1] == 1 << 30:
        changes = {"offsets": (1, (1 << 30) + 1)}
    with pytest.raises(UsageError, match=complaint):
        EntropyTables(**_arguments(**changes))


def test_tables_of_the_wrong_shape_are_refused():
    good = _arguments()
    for name, value, complaint in (
        ("cdf", good["cdf"][0], "1 dimensions"),
        ("cdf", good["cdf"].astype(np.int64), "cdf: int64"),
        ("cdf", np.empty((0, 5), np.int32), "lengths 2"),
        ("lengths", np.array([4], np.int32), "cdf has 2 rows, lengths 1"),
        ("offsets", [0, 0], "offsets: list"),
    ):
        with pytest.raises(UsageError, match=complaint):
            EntropyTables(**{**good, name: value})


def test_tables_do_not_follow_their_source():
    arguments = _arguments()
    tables = EntropyTables(**arguments)
    arguments["cdf"][:] = 0
    assert tables.cdf[0, 1] == 30000
    with pytest.raises(ValueError):
        tables.cdf[0, 0] = 1


def test_gaussian_tables_of_bad_scales_are_refused():
    assert gaussian_tables([1.0]).lengths.tolist() == [2 * 7 + 3]
    assert len(compressai_scales()) == 64
    for scales in ([], [0.0, 1.0], [2.0, 1.0], [-1.0], [float("inf")]):
        with pytest.raises(UsageError, match="scales="):
            gaussian_tables(scales)
    with pytest.raises(UsageError, match="tail_mass=0"):
        gaussian_tables([1.0], tail_mass=0)


def test_tables_from_pmf_ignore_what_lies_behind_a_row():
    pmf = torch.tensor([[0.5, 0.25, float("nan")], [0.25, 0.25, 0.25]])
    tables = tables_from_pmf(pmf, torch.tensor([0.25, 0.25]), torch.tensor([2, 3]), torch.tensor([-1, -1]))
    assert tables.cdf.tolist() == [[0, 32768, 49152, 65536, 0], [0, 16384, 32768, 49152, 65536]]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda tables: pickle.loads(pickle.dumps(tables))])
def test_copies_of_tables_code_the_same(copied):
    symbols, indexes = np.array([0, 1, -1, 2, 40], np.int32), np.full(5, 100, np.int32)
    for tables, coder in ((evc_gaussian_tables(), Encoder()), (dcvc_gaussian16_zigzag_tables(), Encoder32())):
        payloads = []
        for each in (tables, copied(tables)):
            coder.push(symbols, indexes, each)
            payloads.append(coder.finish())
        assert payloads[0] == payloads[1]
