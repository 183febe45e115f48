"""The space of configurations: each once, found again by its places, without what does nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_builder.core.errors import MeasureError
from repo_builder.flows.tune import space
from repo_builder.results.tuning import Settings

PRESENT = Settings(instances=1, max_batch_size=16, max_queue_delay_us=100, threads=1)


def usual(**given: tuple[int, ...]) -> space.Space:
    return space.usual(PRESENT, given, cores=4, on_gpu=False, batch_size=1, most_batch=16, max_p99_us=3000.0, builds=1)


def test_the_usual_space_follows_the_machine_the_model_and_the_limit() -> None:
    made = usual()
    assert dict(made.choices) == {
        "instances": (1, 2, 4, 8),
        "max_batch_size": (1, 2, 4, 8, 16),
        "max_queue_delay_us": (0, 100, 500),  # 2,000 µs are more than half of the limit
        "threads": (1, 2, 4),
        "build": (0,),
    }
    assert "build" not in made.free


def test_every_configuration_is_there_once_and_has_no_delay_without_batches() -> None:
    found = list(usual().all())
    assert len(found) == len(set(found)) == 4 * 3 * (1 + 4 * 3)
    assert not any(item.max_queue_delay_us for item in found if item.max_batch_size == 1)


@given(st.sampled_from(list(usual().all())), st.sampled_from(list(usual().all())))
def test_places_lead_back_and_distance_is_one(one: Settings, other: Settings) -> None:
    made = usual()
    assert made.settings(made.places(one)) == one
    assert made.distance(one, other) == made.distance(other, one)
    assert (made.distance(one, other) == 0) == (one == other)


@pytest.mark.parametrize(
    ("given", "most", "said"),
    [
        ({"max_batch_size": (1, 8)}, 16, "less than the 4 samples of a request"),
        ({"max_queue_delay_us": (0, 100)}, 0, "does not batch"),
    ],
)
def test_a_choice_that_is_none_is_refused(given: dict[str, tuple[int, ...]], most: int, said: str) -> None:
    with pytest.raises(MeasureError, match=said):
        space.usual(PRESENT, given, cores=4, on_gpu=False, batch_size=4, most_batch=most, max_p99_us=None, builds=1)


def test_threads_are_refused_where_the_backend_has_none() -> None:
    with pytest.raises(MeasureError, match="no such setting"):
        space.usual(
            Settings(max_batch_size=4), {"threads": (1, 2)}, cores=4, on_gpu=True, batch_size=1, most_batch=4,
            max_p99_us=None, builds=1,
        )  # fmt: skip


def test_a_model_that_is_not_batched_has_instances_and_threads_alone() -> None:
    made = space.usual(
        Settings(threads=1), {}, cores=2, on_gpu=False, batch_size=1, most_batch=0, max_p99_us=None, builds=1
    )
    assert set(made.free) == {"instances", "threads"}
