"""Range finders against brute force, against the published definition, and against pytorch-quantization."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from repo_builder.core.errors import QuantizeError
from repo_builder.quantize.calibrators import BINS, Calibrator, Histogram, entropy_edges, mse_edges, percentile_edges

NAMES = ("max", "percentile", "mse", "entropy")
floats = st.floats(-1e4, 1e4, width=32, allow_subnormal=False) | st.sampled_from([0.0, 2.0**-10, 3 * 2.0**-17])
# subnormal numbers, the smallest and the largest float32 among others: a range may be any of them
extremes = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from(
    [0.0, 2.0**-149, 2.0**-126, 1.1754943508222875e-38, 2.0**-111, 2.0**-100, 3.4028234663852886e38]
)
ordinary = nps.arrays(np.float32, st.integers(1, 200), elements=floats)
arrays = nps.arrays(np.float32, st.integers(1, 200), elements=floats | extremes)


def found(name: str, values: np.ndarray, percentile: float | None = None) -> float:
    calibrator = Calibrator(name, percentile)
    calibrator.observe(values)
    return float(calibrator.amax()[0])


def percentile_of(name: str) -> float | None:
    return 99.9 if name == "percentile" else None


def padded(counts: list[int] | np.ndarray) -> np.ndarray:
    row = np.zeros((1, BINS), np.int64)
    row[0, : len(counts)] = counts
    return row


# --- the histogram --------------------------------------------------------------------------------------------------


@given(values=arrays, seed=st.integers(0, 99), cuts=st.lists(st.integers(0, 200), max_size=4))
def test_a_histogram_knows_neither_order_nor_batches(values: np.ndarray, seed: int, cuts: list[int]) -> None:
    whole, parts = Histogram(), Histogram()
    whole.add(np.abs(values)[None])
    shuffled = np.random.default_rng(seed).permutation(np.abs(values))
    for part in np.split(shuffled, sorted(min(cut, len(values)) for cut in cuts)):
        if len(part):
            parts.add(part[None])
    for key in ("counts", "exponents", "zeros"):
        np.testing.assert_array_equal(getattr(whole, key), getattr(parts, key))


@given(values=arrays)
def test_a_histogram_counts_every_value_once_in_its_bin(values: np.ndarray) -> None:
    histogram = Histogram()
    histogram.add(np.abs(values)[None])
    assert histogram.counts.sum() + histogram.zeros[0] == len(values)
    edges = np.arange(BINS + 1) * histogram.widths[0]
    expected, _ = np.histogram(np.abs(values[values != 0]).astype(np.float64), edges)
    np.testing.assert_array_equal(histogram.counts[0], expected)
    if values.any():
        assert BINS // 2 <= np.flatnonzero(histogram.counts[0])[-1] < BINS  # at least half of the bins are in use


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "value", [2.0**-149, 1.1754943508222875e-38, 2.0**-126, 2.0**-100, 2.0**127, 3.4028234663852886e38]
)
def test_one_value_of_any_size_is_its_range(name: str, value: float) -> None:
    histogram = Histogram()
    histogram.add(np.full((1, 1), value, np.float32))
    assert BINS // 2 <= int(np.flatnonzero(histogram.counts[0])[0]) < BINS
    assert found(name, np.full(3, value, np.float32), percentile_of(name)) == np.float32(value)


def test_a_batch_of_zeros_does_not_widen_the_range() -> None:
    values = np.random.default_rng(0).uniform(0, 1e-3, 1000).astype(np.float32)
    early, late = Histogram(), Histogram()
    early.add(np.zeros((1, 50), np.float32))
    early.add(values[None])
    late.add(np.append(values, np.zeros(50, np.float32))[None])
    assert early.exponents[0] == late.exponents[0] == -9
    np.testing.assert_array_equal(early.counts, late.counts)


def test_memory_does_not_grow_with_samples_or_range() -> None:
    histogram = Histogram()
    for exponent in range(-90, 120, 7):
        histogram.add(np.full((1, 1000), 2.0**exponent, np.float32))
    assert histogram.counts.shape == (1, BINS)
    assert histogram.counts.sum() == 30 * 1000


def test_channels_do_not_see_each_other() -> None:
    rows = np.random.default_rng(0).standard_normal((5, 300)).astype(np.float32) * np.logspace(-3, 3, 5)[:, None]
    for name in NAMES:
        together = Calibrator(name, percentile_of(name), channels=5)
        together.observe(rows)
        apart = [found(name, row, percentile_of(name)) for row in rows.astype(np.float32)]
        np.testing.assert_array_equal(together.amax(), np.array(apart, np.float32))


# --- every calibrator -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)
@given(values=arrays)
def test_a_range_is_above_zero_and_not_above_the_largest_value(name: str, values: np.ndarray) -> None:
    largest = float(np.abs(values).max())
    if name == "percentile" and np.percentile(np.abs(values), 99.9, method="inverted_cdf") == 0 < largest:
        with pytest.raises(QuantizeError, match="take a larger percentile"):
            found(name, values, 99.9)
        return
    amax = found(name, values, percentile_of(name))
    assert amax <= largest
    assert (amax > 0) == (largest > 0)


@pytest.mark.parametrize("name", NAMES)
@given(values=ordinary, exponent=st.integers(-20, 20))
@settings(deadline=None)
def test_a_range_scales_with_the_values(name: str, values: np.ndarray, exponent: int) -> None:
    """By powers of two exactly, as bins do."""
    assume(np.abs(values).max() > 1e-3)
    percentile = 100.0 if name == "percentile" else None
    scaled = found(name, np.ldexp(values, exponent), percentile)
    assert scaled == pytest.approx(math.ldexp(found(name, values, percentile), exponent), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused_and_the_layer_is_named(name: str, bad: float) -> None:
    calibrator = Calibrator(name, percentile_of(name), where="features.3")
    with pytest.raises(QuantizeError, match=r"features\.3: the values to calibrate on hold NaN or infinity"):
        calibrator.observe(np.array([1.0, bad], np.float32))


@pytest.mark.parametrize("name", NAMES)
def test_no_values_are_refused_and_the_layer_is_named(name: str) -> None:
    calibrator = Calibrator(name, percentile_of(name), where="features.3")
    calibrator.observe(np.zeros((0, 4), np.float32))
    with pytest.raises(QuantizeError, match=r"features\.3: no value reached the calibrator"):
        calibrator.amax()


def test_zeros_only_give_range_zero() -> None:
    for name in ("max", "mse", "entropy"):
        assert found(name, np.zeros(10, np.float32)) == 0


@pytest.mark.parametrize("name", ["max", "mse", "entropy"])
def test_zeros_after_a_relu_change_nothing(name: str) -> None:
    values = np.abs(np.random.default_rng(3).standard_normal(4000)).astype(np.float32)
    assert found(name, np.concatenate([values, np.zeros(50_000, np.float32)])) == found(name, values)


# --- max and percentile ---------------------------------------------------------------------------------------------


@given(values=arrays)
def test_max_and_percentile_100_are_the_largest_absolute_value(values: np.ndarray) -> None:
    assert found("max", values) == np.abs(values).max()
    assert found("percentile", values, 100.0) == np.abs(values).max()


@given(values=arrays, percentile=st.floats(0.01, 100))
def test_a_percentile_keeps_that_share_and_at_most_one_bin_more(values: np.ndarray, percentile: float) -> None:
    magnitudes = np.abs(values).astype(np.float64)
    exact = np.percentile(magnitudes, percentile, method="inverted_cdf")
    if exact == 0:
        with pytest.raises(QuantizeError) if values.any() else np.errstate():
            found("percentile", values, percentile)
        return
    amax = found("percentile", values, percentile)
    width = 2.0 ** math.frexp(float(magnitudes.max()))[1] / BINS
    assert exact <= amax * (1 + 1e-6)
    step = float(np.spacing(np.float32(exact / 2))) * 2  # the largest float32 has no spacing
    assert amax <= (exact + width) * (1 + 1e-6) + step


def test_percentile_of_whole_shares_is_not_moved_by_rounding() -> None:
    values = np.arange(1, 1001, dtype=np.float32)
    for percentile in (0.1, 10, 33.3, 50, 99, 99.9):
        kept = np.count_nonzero(values <= found("percentile", values, percentile))
        assert kept == pytest.approx(percentile * 10, abs=1)


# --- mse ------------------------------------------------------------------------------------------------------------


def squared_error(centres: np.ndarray, counts: np.ndarray, edge: float) -> float:
    scale = edge / 127
    rounded = np.clip(np.rint(centres / scale), -128, 127) * scale
    return float((counts * (rounded - centres) ** 2).sum())


@pytest.mark.parametrize("kind", ["normal", "laplace", "uniform", "outlier", "two_values"])
def test_mse_is_what_brute_force_over_every_edge_finds(kind: str) -> None:
    rng = np.random.default_rng(1)
    values = {
        "normal": rng.standard_normal(3000),
        "laplace": rng.laplace(size=3000),
        "uniform": rng.uniform(-3, 3, 3000),
        "outlier": np.append(rng.standard_normal(3000), 40.0),
        "two_values": np.array([0.25, 1.5]),
    }[kind].astype(np.float32)
    histogram = Histogram()
    histogram.add(np.abs(values)[None])
    counts = histogram.counts[0]
    last = np.flatnonzero(counts)[-1] + 1
    centres = np.arange(BINS) + 0.5
    errors = {edge: squared_error(centres, counts, edge) for edge in range(128, last + 1)}
    best = min(errors.values())
    edge = int(mse_edges(histogram.counts)[0])
    assert errors[edge] <= best * (1 + 1e-6)
    assert edge == max(item for item, error in errors.items() if error <= best * (1 + 1e-9))


@pytest.mark.parametrize("kind", ["normal", "outlier"])
def test_mse_of_fp8_is_what_brute_force_over_every_edge_finds(kind: str) -> None:
    rng = np.random.default_rng(2)
    values = np.abs(rng.standard_normal(3000) if kind == "normal" else np.append(rng.laplace(size=3000), 60.0))
    histogram = Histogram()
    histogram.add(values.astype(np.float32)[None])
    counts, centres = histogram.counts[0], np.arange(BINS) + 0.5
    errors = {}
    for edge in range(128, np.flatnonzero(counts)[-1] + 2):
        scale = edge / 448
        codes = np.minimum(centres / scale, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
        errors[edge] = float((counts * (codes * scale - centres) ** 2).sum())
    edge = int(mse_edges(histogram.counts, "fp8")[0])
    assert errors[edge] <= min(errors.values()) * (1 + 1e-6)
    calibrator = Calibrator("entropy", precision="fp8")
    calibrator.observe(values)
    with pytest.raises(ValueError, match="no entropy calibrator of fp8"):
        calibrator.amax()


@pytest.mark.parametrize("seed", range(3))
def test_mse_is_near_the_best_range_for_the_values_themselves(seed: int) -> None:
    values = np.random.default_rng(seed).laplace(size=20_000).astype(np.float32)
    ranges = np.linspace(0.2, 1, 400) * np.abs(values).max()
    errors = [squared_error(values, np.ones(len(values)), amax) for amax in ranges]
    assert squared_error(values, np.ones(len(values)), found("mse", values)) <= min(errors) * 1.02


# --- entropy --------------------------------------------------------------------------------------------------------


def expand(counts: np.ndarray, levels: int) -> np.ndarray:
    """Quantize counts to levels and spread each level over its bins that are not empty (the published example)."""
    level = np.arange(len(counts)) * levels // len(counts)
    result = np.zeros(len(counts))
    for index in range(levels):
        members = (level == index) & (counts > 0)
        if members.any():
            result[members] = counts[level == index].sum() / members.sum()
    return result


def divergences(counts: np.ndarray) -> dict[int, float]:
    """The published search, written down as published: KL(P‖Q) for every number of bins."""
    last = int(np.flatnonzero(counts)[-1]) + 1
    result = {}
    for size in range(128, max(last, 128) + 1):
        p = counts[:size].astype(np.float64)
        q = expand(counts[:size], 128)
        p[-1] += counts[size:].sum()
        if q.sum() == 0:
            continue
        p, q = p / p.sum(), q / q.sum()
        used = p > 0
        with np.errstate(divide="ignore"):
            result[size] = float((p[used] * np.log(p[used] / q[used])).sum())
    return result


def test_the_reference_spreads_counts_as_in_the_published_example() -> None:
    np.testing.assert_allclose(expand(np.array([1, 0, 2, 3, 5, 3, 1, 7]), 2), [2, 0, 2, 2, 4, 4, 4, 4])


counts_arrays = nps.arrays(
    np.int64, st.integers(130, 400), elements=st.sampled_from([0, 0, 0, 1, 1, 2, 3, 5, 8, 40, 200])
)


@settings(deadline=None, max_examples=40)
@given(counts=counts_arrays)
def test_entropy_is_what_the_published_search_finds(counts: np.ndarray) -> None:
    assume(counts.any())
    expected = divergences(counts)
    edge = int(entropy_edges(padded(counts))[0])
    best = min(expected.values())
    assert expected[edge] <= best + 1e-8
    assert edge >= max(size for size, value in expected.items() if value <= best + 1e-10), "of ties the widest wins"


def test_entropy_on_a_real_shape_clips_the_tail() -> None:
    values = np.random.default_rng(0).laplace(size=200_000).astype(np.float32)
    histogram = Histogram()
    histogram.add(np.abs(values)[None])
    expected = divergences(histogram.counts[0])
    edge = int(entropy_edges(histogram.counts)[0])
    assert expected[edge] == pytest.approx(min(expected.values()), abs=1e-9)
    assert found("entropy", values) < 0.9 * np.abs(values).max()


# --- pytorch-quantization, where it is right ------------------------------------------------------------------------


def test_entropy_agrees_with_pytorch_quantization() -> None:
    """It overwrites the first bin with the second, so both are made equal here."""
    library = pytest.importorskip(
        "pytorch_quantization.calib.histogram", reason="pytorch-quantization is not installed"
    )
    rng = np.random.default_rng(5)
    for values in (rng.standard_normal(4000), rng.laplace(size=4000), rng.exponential(size=4000)):
        counts, edges = np.histogram(np.abs(values), bins=300, range=(0, np.abs(values).max()))
        counts[0] = counts[1]
        theirs = float(library._compute_amax_entropy(counts.copy(), edges, 8, False))
        assert edges[entropy_edges(padded(counts))[0]] == pytest.approx(theirs)


def test_percentile_agrees_with_pytorch_quantization_within_its_bin() -> None:
    """It reports the lower edge of the bin in which the percentile lies, which can keep less than was asked for."""
    library = pytest.importorskip(
        "pytorch_quantization.calib.histogram", reason="pytorch-quantization is not installed"
    )
    histogram = Histogram()
    histogram.add(np.abs(np.random.default_rng(2).standard_normal((1, 50_000))).astype(np.float32))
    edges = np.arange(BINS + 1).astype(np.float64)
    for percentile in (50, 90, 99, 99.9, 99.99):
        theirs = float(library._compute_amax_percentile(histogram.counts[0], edges, percentile))
        assert int(percentile_edges(histogram, percentile)[0]) == theirs + 1
