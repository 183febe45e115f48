from __future__ import annotations

import json
from pathlib import Path

import pytest

from repo_builder.core.errors import MeasureError
from repo_builder.flows.search.ledger import Ledger


def test_what_was_measured_is_not_measured_again_and_its_seconds_are_spent_all_the_same(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "measured.json", "here")
    assert first.get("a", lambda: {"x": 1})["x"] == 1
    assert first.fresh == 1
    again = Ledger(tmp_path / "measured.json", "here")
    assert again.get("a", lambda: {"x": 2})["x"] == 1
    assert (again.fresh, again.spent_s) == (0, first.spent_s)


def test_times_of_another_machine_are_no_times_of_this_one_but_may_be_replayed(tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    Ledger(path, "there").get("a", lambda: {"x": 1})
    replayed = Ledger(tmp_path / "own.json", "here", replayed=path)
    assert replayed.get("a", lambda: {"x": 2})["x"] == 1
    assert Ledger(path, "here").get("a", lambda: {"x": 3})["x"] == 3
    assert json.loads((tmp_path / "own.json").read_text())["machine"] == "here"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 1, "measured": {"a": {}}}', '{"schema": 9, "measured": {}}']
)
def test_a_file_that_holds_no_measurements_is_refused_and_a_damaged_own_one_is_begun_anew(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "measured.json"
    path.write_text(text)
    with pytest.raises(MeasureError, match=r"measured\.json"):
        Ledger(tmp_path / "own.json", "here", replayed=path)
    assert Ledger(path, "here").get("a", lambda: {"x": 1})["x"] == 1
