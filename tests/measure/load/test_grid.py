from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_builder.core.errors import MeasureError
from repo_builder.measure.load import grid
from repo_builder.results import Level


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("4", (4,)),
        ("1,4,16", (1, 4, 16)),
        ("1:16:x2", (1, 2, 4, 8, 16)),
        ("2:10:4", (2, 6, 10)),
        ("1:4", (1, 2, 3, 4)),
        ("1,1:3,8", (1, 2, 3, 8)),
        (" 2 , 4 ", (2, 4)),
    ],
)
def test_numbers_and_ranges(text: str, found: tuple[int, ...]) -> None:
    assert grid.whole_numbers(text, "--concurrency") == found


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "4:1", "1:8:x1", "1:8:x0.5", "1:2:3:4", "1:8:-1", "1.5", "a:b"])
def test_what_is_no_number_names_the_option(text: str) -> None:
    with pytest.raises(MeasureError, match=r"--batch-size: .*neither numbers"):
        grid.whole_numbers(text, "--batch-size")


def test_rates_may_be_fractions() -> None:
    assert grid.numbers("0.5,100:300:100", "--request-rate") == (0.5, 100, 200, 300)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=8, unique=True))
def test_lists_come_back(values: list[int]) -> None:
    assert list(grid.whole_numbers(",".join(map(str, values)), "-")) == values


def test_shapes() -> None:
    assert grid.shapes("ids:128") == {"ids": (128,)}
    assert grid.shapes("image:3,8,8; mask:1,8,8") == {"image": (3, 8, 8), "mask": (1, 8, 8)}
    for text in ("ids", "ids:", ":3", "ids:0", "ids:a"):
        with pytest.raises(MeasureError, match="--shape"):
            grid.shapes(text)


def asked(**changes: object) -> tuple[Level, ...]:
    values: dict[str, object] = {
        "concurrency": (1, 4), "rates": (), "poisson": False, "trace": "", "batch_sizes": (1, 8), "shape_sets": (),
        "shared_memory": "none", "most_in_flight": 64,
    }  # fmt: skip
    return grid.levels(**(values | changes))  # type: ignore[arg-type]


def test_the_grid_is_the_product() -> None:
    assert [str(item) for item in asked()] == [
        "concurrency 1 × batch 1",
        "concurrency 4 × batch 1",
        "concurrency 1 × batch 8",
        "concurrency 4 × batch 8",
    ]
    shaped = asked(shape_sets=({"a": (1,)}, {"a": (2,)}))
    assert len(shaped) == 8
    assert str(shaped[0]) == "concurrency 1 × batch 1 × a[1]"


def test_open_loops() -> None:
    rate = asked(rates=(50.0,), batch_sizes=(1,))[0]
    assert (rate.mode, rate.request_rate, rate.concurrency) == ("rate", 50.0, 64)
    assert str(asked(rates=(50.0,), poisson=True)[0]) == "50 requests/s (Poisson) × batch 1"
    assert str(asked(trace="t.csv")[0]) == "trace t.csv × batch 1"


def test_too_many_levels_are_refused() -> None:
    with pytest.raises(MeasureError, match="600 levels"):
        asked(concurrency=tuple(range(1, 301)))
