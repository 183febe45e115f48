from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from repo_builder.flows.search.moves import fewest


@given(st.integers(1, 200), st.data())
def test_the_fewest_that_keep_a_limit_are_found(count: int, data: st.DataObject) -> None:
    needed = data.draw(st.integers(1, count))
    assert fewest(count, lambda some: some >= needed, lambda: True) == needed


@given(st.integers(2, 200), st.data())
def test_a_budget_that_is_over_leaves_a_mix_where_one_of_a_few_looks_finds_it(count: int, data: st.DataObject) -> None:
    """Without any budget: few go back where few are enough, and never so many that nothing is int8."""
    needed, looked = data.draw(st.integers(1, count * 7 // 8)), list[int]()

    def keeps(some: int) -> bool:
        looked.append(some)
        return some >= needed

    found = fewest(count, keeps, lambda: False)
    assert needed <= found < count
    assert found <= max(2 * needed, -(-count // 16))
    assert looked == sorted(looked)
    assert len(looked) <= 6
    assert looked[0] <= max(1, -(-count // 16))
