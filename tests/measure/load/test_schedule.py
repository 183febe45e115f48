from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from repo_builder.core.errors import MeasureError
from repo_builder.measure.load import schedule


def test_constant_rate_is_even_and_begins_at_once() -> None:
    offsets = schedule.constant(100, 2)
    assert len(offsets) == 200
    assert offsets[0] == 0
    assert set(np.diff(offsets)) == {10_000_000}


def test_poisson_has_the_rate_and_the_spread_of_one() -> None:
    offsets = schedule.poisson(500, 20, seed=3)
    gaps = np.diff(offsets) / 1e9
    assert len(offsets) == pytest.approx(10_000, rel=0.05)
    assert gaps.mean() == pytest.approx(1 / 500, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # exponential
    assert offsets[-1] < 20e9
    assert np.array_equal(offsets, schedule.poisson(500, 20, seed=3))
    assert not np.array_equal(offsets[:100], schedule.poisson(500, 20, seed=4)[:100])


@pytest.mark.parametrize("draw", [schedule.constant, lambda rate, seconds: schedule.poisson(rate, seconds, 0)])
def test_more_arrivals_than_can_be_kept_are_refused(draw: Callable[[float, float], object]) -> None:
    with pytest.raises(
        MeasureError, match=r"--request-rate: 1e\+09 requests a second.* \(60 s\), are too many → ask for"
    ):
        draw(1e9, 60)


def write(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text)
    return path


def test_trace_is_read_from_its_first_arrival(tmp_path: Path) -> None:
    path = write(tmp_path, "time,what\n# a comment\n100.5,x\n100.75\n\n102\n")
    assert schedule.read_trace(path).tolist() == [0, 250_000_000, 1_500_000_000]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no arrival times"),
        ("1\n2\n1.5\n", "the 3. arrival time goes backwards"),
        ("1\nnow\n", "trace.csv:2: 'now' is no time"),
        ("1\nnan\n", "the 2. arrival time is nan"),
        ("0\n1e12\n", "lasts 1.16e\\+07 days → its times are read as seconds"),
    ],
)
def test_a_trace_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(MeasureError, match=message):
        schedule.read_trace(write(tmp_path, text))


def test_a_trace_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match="cannot be read"):
        schedule.read_trace(tmp_path / "none")
