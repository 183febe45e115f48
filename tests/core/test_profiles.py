from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_builder.core import profiles
from repo_builder.core.tensors import ShapeProfile


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=4))
def test_batches_of_several_profiles(triples: list[tuple[int, int, int]]) -> None:
    made = tuple(
        {"x": ShapeProfile(min=(low, 2), opt=(low + more, 2), max=(low + more + most, 2))}
        for low, more, most in triples
    )
    profiles.check_profiles(made)
    assert profiles.max_batch(made) == max(sum(item) for item in triples)
    assert profiles.min_batch(made) == min(low for low, _, _ in triples)


def test_a_profile_takes_what_all_its_inputs_take() -> None:
    few, many = (ShapeProfile(min=(low,), opt=(low,), max=(high,)) for low, high in ((1, 4), (2, 8)))
    assert profiles.max_batch([{"x": few, "y": many}]) == 4
    assert profiles.min_batch([{"x": few, "y": many}]) == 2
    assert profiles.max_batch([]) == 0


@pytest.mark.parametrize(
    "made",
    [
        [{}],
        [{"x": ShapeProfile(min=(), opt=(), max=())}],
        [{"x": ShapeProfile(min=(1,), opt=(1,), max=(1,))}, {"y": ShapeProfile(min=(1,), opt=(1,), max=(1,))}],
    ],
)
def test_profiles_without_inputs_or_a_batch_are_none(made: list[profiles.Profile]) -> None:
    with pytest.raises(ValueError, match="are missing in a profile"):
        profiles.check_profiles(made)


def profile(batch: tuple[int, int], *sizes: tuple[int, int]) -> profiles.Profile:
    low, high = ((batch[end], *(size[end] for size in sizes)) for end in (0, 1))
    return {"x": ShapeProfile(min=low, opt=high, max=high)}


@pytest.mark.parametrize(
    ("made", "dims", "hole"),
    [
        ([profile((1, 8), (4, 4))], [4], None),
        ([profile((1, 4), (4, 4)), profile((5, 8), (4, 4))], [4], None),
        ([profile((5, 8), (4, 4)), profile((1, 4), (4, 4))], [4], None),  # whatever their order
        ([profile((1, 3), (4, 4)), profile((6, 8), (4, 4))], [4], (4, 4)),
        ([profile((2, 8), (4, 4))], [4], (1, 4)),
        ([profile((1, 4), (1, 9)), profile((1, 8), (1, 3))], [3], None),
        ([profile((1, 4), (1, 9)), profile((1, 8), (1, 3))], [-1], (5, 4)),
        ([profile((1, 4), (1, 9)), profile((5, 8), (1, 3)), profile((5, 8), (4, 9))], [-1], None),
        ([profile((1, 8), (1, 3)), profile((1, 8), (5, 9))], [-1], None),  # 4 is refused alone too
        ([profile((1, 8), (1, 3)), profile((1, 8), (5, 9))], [4], (1, 4)),
    ],
)
def test_holes(made: list[profiles.Profile], dims: list[int], hole: tuple[int, ...] | None) -> None:
    assert profiles.first_hole(made, {"x": dims}, largest=8) == (hole and {"x": hole})


def test_inputs_that_vary_together_are_no_hole() -> None:
    short, long = ({name: profile((1, 8), size)["x"] for name in "xy"} for size in ((1, 3), (4, 9)))
    assert profiles.first_hole([short, long], {"x": [-1], "y": [-1]}, largest=8) is None
    assert profiles.first_hole([short], {"x": [-1]}, largest=8, of=[short, long]) == {"x": (1, 4), "y": (1, 4)}
    assert profiles.first_hole([short, long], {"x": [2], "y": [5]}, largest=8) == {"x": (1, 2), "y": (1, 5)}
    assert profiles.first_hole([short, long], {"x": [-1, 2]}, largest=0) is None
    assert profiles.in_words({"x": (1, 2), "y": ()}) == "x [1, 2], y []"


_RANGE = st.tuples(st.integers(1, 5), st.integers(0, 4)).map(lambda pair: (pair[0], sum(pair)))


@given(st.lists(st.builds(profile, _RANGE, _RANGE), min_size=1, max_size=4))
def test_a_hole_is_what_counting_finds(made: list[profiles.Profile]) -> None:
    lengths = {length for item in made for length in range(item["x"].min[1], item["x"].max[1] + 1)}
    missing = [
        shape for shape in itertools.product(range(1, 6), lengths) if not any(item["x"].covers(shape) for item in made)
    ]
    hole = profiles.first_hole(made, {"x": [-1]}, largest=5)
    assert hole is None if not missing else hole is not None and hole["x"] in missing
