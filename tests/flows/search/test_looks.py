from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_builder.core.details import DropRecord
from repo_builder.flows.search.looks import Look, drop


@given(st.integers(0, 50), st.integers(0, 50), st.integers(100, 5000))
def test_points_are_those_of_the_samples_that_changed_sides(lost: int, won: int, count: int) -> None:
    found = drop(lost, won, count, labelled=True)
    assert found.points == pytest.approx(100 * (lost - won) / count)
    assert found.low <= found.points <= found.high
    none = drop(0, 0, count, labelled=True)  # n samples do not show less than 3 in n, whether none changed or one
    assert found.high - found.points >= min(none.high, 100 - found.points) - 1e-9
    assert found.points - found.low >= min(-none.low, 100 + found.points) - 1e-9


def test_a_limit_is_kept_to_the_sample() -> None:
    def look(points: float, departs: str = "") -> Look:
        return Look(sqnr_db=20, drop=DropRecord(points=points, low=0, high=1, samples=1000), departs=departs)

    many = DropRecord(points=0.3, low=-2, high=2, samples=1000, changed=100)
    assert Look(sqnr_db=20, drop=many).fits(0.3)  # a hundred changed sides: what was lost decides, chance orders
    assert many.likely > 1.2

    assert look(0.3).fits(0.3)
    assert not look(0.4).fits(0.3)
    assert not look(0.0, "output 'y': too little").fits(0.3)
    assert Look(sqnr_db=20).fits(0.0)  # no classes: what departs says all
    assert not Look.refused("no kernel").fits(100)
    assert Look.refused("no kernel").refusal == "no kernel"
    assert look(0.0, "output 'y': too little").refusal == look(0.4).refusal == ""


@given(st.integers(0, 40), st.integers(0, 40), st.integers(100, 5000), st.floats(0, 3))
def test_more_samples_are_asked_where_a_limit_is_kept_by_chance_and_nowhere_else(
    lost: int, won: int, count: int, limit: float
) -> None:
    look = Look(sqnr_db=20, drop=drop(lost, won, count, labelled=True))
    assert look.drop is not None
    assert look.by_chance(limit) == (look.fits(limit) and look.drop.high > limit)
    assert look.samples == count
    refused = Look(sqnr_db=20, drop=look.drop, departs="output 'y': too little")
    assert not refused.by_chance(limit)


def test_outputs_without_classes_ask_for_no_more_samples() -> None:
    assert not Look(sqnr_db=20).by_chance(0.3)


def test_noise_of_layers_adds_up_as_powers() -> None:
    assert Look(sqnr_db=20).noise == pytest.approx(0.01)
