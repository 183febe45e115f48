from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from repo_builder import profiles
from repo_builder.tensors import ShapeProfile


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=4))
def test_profiles_survive_json(triples: list[tuple[int, int, int]]) -> None:
    made = tuple(
        {"x": ShapeProfile(min=(low, 2), opt=(low + more, 2), max=(low + more + most, 2))}
        for low, more, most in triples
    )
    assert profiles.from_json(profiles.to_json(made)) == made
    assert profiles.max_batch(made) == max(sum(item) for item in triples)
    assert profiles.min_batch(made) == min(low for low, _, _ in triples)


def test_a_profile_takes_what_all_its_inputs_take() -> None:
    few, many = (ShapeProfile(min=(low,), opt=(low,), max=(high,)) for low, high in ((1, 4), (2, 8)))
    assert profiles.max_batch([{"x": few, "y": many}]) == 4
    assert profiles.min_batch([{"x": few, "y": many}]) == 2
    assert profiles.max_batch([]) == 0
