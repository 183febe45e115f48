"""sense and the search, on the smallest built-in network. Times are made up where a choice is to be told beforehand."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from repo_builder import datasets, recipes
from repo_builder.compile.onnxruntime import speed
from repo_builder.compile.onnxruntime.target import OnnxRuntimeTarget
from repo_builder.core import files
from repo_builder.core.details import SpeedRecord, TriedRecord
from repo_builder.core.errors import DataError, DepartureError, MeasureError, RecipeError
from repo_builder.core.graphs import DQ
from repo_builder.core.recipe import Recipe, SearchSpec, parse, reading
from repo_builder.flows import build as building
from repo_builder.flows import search
from repo_builder.flows.build import BuildOptions, BuildResult, compiling
from repo_builder.flows.search import written
from repo_builder.flows.search.bench import Bench
from repo_builder.flows.search.choices import Choice, searched
from repo_builder.flows.search.front import pareto
from repo_builder.flows.search.looks import Look, drop

Pace = Callable[[int], float]  # DequantizeLinear nodes of a graph → times as fast as one without


@pytest.fixture
def paced(monkeypatch: pytest.MonkeyPatch) -> Callable[[Pace], list[int]]:
    """Let a table of the test's own stand for the clock; it counts how often it is asked."""

    def pace(table: Pace) -> list[int]:
        asked = [0]
        nodes = lambda path: sum(node.op_type == DQ for node in onnx.load(path).graph.node)  # noqa: E731
        plain = speed.Timer.__init__

        def remember(self: speed.Timer, reference: Path, *rest: object, **more: object) -> None:
            plain(self, reference, *rest, **more)  # type: ignore[arg-type]
            self.slow = 1 / table(nodes(reference))  # type: ignore[attr-defined]

        def against(self: speed.Timer, candidate: Path) -> tuple[SpeedRecord, ...]:
            asked[0] += 1
            fast = 1 / table(nodes(candidate))
            ratio = self.slow / fast  # type: ignore[attr-defined]
            row = SpeedRecord(
                batch_size=1,
                reference_us=100 * self.slow,
                candidate_us=100 * fast,
                low=ratio * 0.99,
                high=ratio * 1.01,  # type: ignore[attr-defined]
            )
            return (row,)

        monkeypatch.setattr(speed.Timer, "__init__", remember)
        monkeypatch.setattr(speed.Timer, "against", against)
        return asked

    return pace


def options(folder: Path, *settings: str, **changes: Any) -> BuildOptions:
    made = BuildOptions(
        recipe=recipes.load("jsc", settings),
        work=folder / "build",
        repository=folder / "repository",
        target="onnxruntime",
        search=SearchSpec(max_drop=1.0, samples=400),
    )
    return dataclasses.replace(made, **changes)


def build(folder: Path, *settings: str, **changes: Any) -> BuildResult:
    return building.build(options(folder, *settings, **changes))


def find(folder: Path, *settings: str, timings: Path | None = None, **changes: Any) -> search.Found:
    """Search alone, without the build behind it."""
    asked = options(folder, *settings, **changes)
    recipe = asked.recipe
    dataset = datasets.load(recipe.data, inputs=recipe.model.inputs, seed=recipe.seed)
    assert asked.search is not None
    return search.search(asked, compiling.choose(asked), dataset, asked.search, timings)


def taken(tried: Iterable[TriedRecord]) -> str:
    return next(row.what for row in tried if row.chosen)


def test_a_search_takes_what_is_fast_and_writes_rules_that_build_the_same_without_it(
    paced: Callable[[Pace], list[int]], tmp_path: Path
) -> None:
    asked = paced(lambda count: 2.0 if count else 1.0)
    result = build(tmp_path)
    assert taken(result.engine.details.tried) == "all in int8"
    assert {row.got for row in result.engine.layers} == {"int8"}
    assert result.searched == tmp_path / "build/jsc/searched.toml"
    plain = BuildOptions(
        recipe=Recipe.load(result.searched), work=tmp_path / "plain", repository=tmp_path / "other",
        target="onnxruntime",
    )  # fmt: skip
    again = building.build(plain)
    assert again.engine.model.read_bytes() == result.engine.model.read_bytes()
    page = (tmp_path / "build/jsc/search/search.html").read_text(encoding="utf-8")
    assert "all in int8" in page
    found = json.loads((tmp_path / "build/jsc/search/search.json").read_text())
    chosen = next(row for row in found["tried"] if row["chosen"])
    assert chosen["holds"]
    assert chosen["held"]["samples"] == found["held_back"] > 0
    assert f"on {found['held_back']} samples that chose nothing" in result.searched.read_text()
    before = asked[0]
    assert build(tmp_path).skipped == ("export", "compile", "place")
    assert asked[0] == before  # what was measured is kept


def test_the_same_seed_and_recorded_timings_give_the_same_result(
    paced: Callable[[Pace], list[int]], tmp_path: Path
) -> None:
    paced(lambda count: 1.0 + count / 10)
    first = find(tmp_path / "one")
    measured = tmp_path / "one/build/jsc/search/measured.json"
    asked = paced(lambda count: 0.1 if count else 1.0)  # another machine: nothing of it may count
    second = find(tmp_path / "two", timings=measured)
    assert asked[0] == second.fresh == 0
    assert second.tried == first.tried
    assert {row.fits for row in first.tried if row.drop is None} <= {None}  # nobody looked at them
    assert {row.fits for row in first.tried if row.drop is not None} <= {True, False}
    assert second.recipe == first.recipe
    record = json.loads(measured.read_text())
    for key, row in record["measured"].items():  # what was faster is recorded as slower
        for item in row.get("speed", ()) if key.startswith("time") else ():
            item["candidate_us"], item["reference_us"] = item["reference_us"], item["candidate_us"]
            item["low"], item["high"] = 1 / item["high"], 1 / item["low"]
    files.write_json(tmp_path / "slow.json", record)
    third = find(tmp_path / "two", timings=tmp_path / "slow.json")
    assert taken(third.tried) == "all in fp32"
    assert third.recipe.quantize.layers == ()  # no rule says it plainly


def test_a_limit_that_chance_may_have_kept_is_looked_at_on_more_samples(
    paced: Callable[[Pace], list[int]], tmp_path: Path
) -> None:
    """Of 50 samples none says less than 3 in 50 about a limit of 2 points."""
    paced(lambda count: 2.0 if count else 1.0)
    found = find(tmp_path, search=SearchSpec(max_drop=2.0, samples=50))
    dropped = {row.what: row.drop for row in found.tried}
    int8 = dropped[taken(found.tried)]
    assert int8 is not None
    assert int8.samples > 50
    assert int8.points <= 2.0
    assert int8.high <= 2.0 < drop(0, 0, 50, labelled=True).high
    measured = json.loads((tmp_path / "build/jsc/search/measured.json").read_text())["measured"]
    drops = [row["drop"] for key, row in measured.items() if key.startswith("look")]
    assert all(row["high"] > 2.0 for row in drops if row["samples"] < int8.samples), "no more than decide"


def test_a_limit_that_all_in_int8_breaks_is_kept_by_giving_layers_back(
    paced: Callable[[Pace], list[int]], tmp_path: Path
) -> None:
    paced(lambda count: 1.0 + count / 10)
    found = find(tmp_path, "measure.task=other", "measure.output_sqnr_db=32")
    everything = next(row for row in found.tried if row.what == "all in int8")
    chosen = next(row for row in found.tried if row.chosen)
    assert not everything.fits
    assert chosen.fits
    assert chosen.sqnr_db is not None
    assert everything.sqnr_db is not None
    assert chosen.sqnr_db >= 32 > everything.sqnr_db
    assert 0 < len(chosen.left) < 4
    assert chosen.front


def test_what_is_held_back_chooses_nothing_and_repairs_are_those_of_the_recipe_that_is_written(tmp_path: Path) -> None:
    asked = options(tmp_path)
    dataset = datasets.load(asked.recipe.data, inputs=asked.recipe.model.inputs, seed=asked.recipe.seed)
    with search._bench(asked, compiling.choose(asked), dataset, SearchSpec(samples=400), None) as bench:
        chooses, confirms = set(bench.looker._order), set(bench._holder._order)
        assert not chooses & confirms
        assert len(chooses) + len(confirms) == len(dataset.split("validation"))
        assert len(confirms) == bench.held == min(4 * 400, (len(chooses) + len(confirms)) // 2)
        choice = Choice().but(bench.space.free[:1], "fp32")
        choice = dataclasses.replace(choice, repaired=True)
        made, plain = bench.make(choice), bench.make(dataclasses.replace(choice, repaired=False))
        assert made is not None
        assert plain is not None
        trial = made.path.read_bytes()
        assert trial != plain.path.read_bytes()
        rules = written.rules(asked.recipe, bench.space, bench.space.planned(choice))
        recipe = searched(asked.recipe, rules, repaired=True)
        assert parse(reading.parsed(written.toml(recipe))) == recipe
    again = building.build(dataclasses.replace(asked, recipe=recipe, search=None, work=tmp_path / "plain"))
    assert again.engine.model.read_bytes() == trial


def test_what_loses_on_samples_that_chose_nothing_gives_way_to_what_is_more_careful(
    paced: Callable[[Pace], list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All in int8 is fastest and keeps the limit where it was chosen; on what is held back only half of it does."""
    paced(lambda count: 1.0 + count / 10)
    plain = Bench.hold

    def hold(self: Bench, choice: Choice) -> Look:
        left = len(choice.of("fp32"))
        worse = drop(0 if left > 1 else 40, 0, 1000, labelled=True)
        return dataclasses.replace(plain(self, choice), drop=worse)

    monkeypatch.setattr(Bench, "hold", hold)
    found = find(tmp_path)
    everything = next(row for row in found.tried if row.what == "all in int8")
    chosen = next(row for row in found.tried if row.chosen)
    assert (everything.fits, everything.holds) == (True, False)
    assert chosen.holds
    assert 2 <= len(chosen.left) < 4
    assert chosen.sqnr_db > everything.sqnr_db + 0.9


def test_a_limit_that_nothing_keeps_names_the_best(paced: Callable[[Pace], list[int]], tmp_path: Path) -> None:
    paced(lambda _: 1.0)
    settings = ('quantize.layers=[{name="layers.0", precision="int8"}]', "measure.task=other")
    with pytest.raises(DepartureError, match=r"nothing that was tried keeps the limit .* best is") as caught:
        find(tmp_path, *settings, "measure.output_sqnr_db=150")
    assert caught.value.exit_code == 14


def test_a_budget_under_one_trial_is_refused_with_what_it_needs(
    paced: Callable[[Pace], list[int]], tmp_path: Path
) -> None:
    paced(lambda _: 1.0)
    with pytest.raises(MeasureError, match=r"budget of 0\.001 s") as caught:
        find(tmp_path, search=SearchSpec(budget_s=0.001, samples=100))
    assert "--budget at least" in str(caught.value.hint)


def test_no_validation_samples_are_an_error_that_says_so(tmp_path: Path) -> None:
    inputs = {"features": np.zeros((8, 16), np.float32), "labels": np.zeros(8, np.int64)}
    np.savez(tmp_path / "held.npz", **inputs)  # type: ignore[arg-type]
    settings = (f"data.source={tmp_path / 'held.npz'}", 'data.arguments={split="test"}')
    with pytest.raises(DataError, match="validation part is empty"):
        find(tmp_path, *settings)


def test_sense_measures_each_layer_alone_and_goes_on_where_it_was_stopped(
    paced: Callable[[Pace], list[int]], tmp_path: Path
) -> None:
    asked = paced(lambda count: 1.0 + count / 10)
    first = search.sense(options(tmp_path), budget_s=60)
    names = {row.name for row in first.rows}
    assert len(names) == len(first.rows) == 4
    assert all(row.faster and row.saved_us[0] > 0 for row in first.rows)
    assert all(row.sqnr_db > first.everything.sqnr_db - 1 for row in first.rows)
    assert all(row.drop is not None and row.drop.samples == first.samples for row in first.rows)
    # as after a kill: the record has lost its last layers
    path = tmp_path / "build/jsc/search/measured.json"
    record = json.loads(path.read_text())
    lost = [key for key in record["measured"] if key.startswith("time")][-1]
    del record["measured"][lost]
    files.write_json(path, record)
    before = asked[0]
    again = search.sense(options(tmp_path), budget_s=60)
    assert asked[0] == before + 1
    assert again.fresh == 1
    assert {row.name: row.sqnr_db for row in again.rows} == {row.name: row.sqnr_db for row in first.rows}


def test_sense_tells_the_loss_of_what_the_target_lacks_and_no_time_for_it(
    paced: Callable[[Pace], list[int]], tmp_path: Path
) -> None:
    paced(lambda _: 3.0)  # whatever a clock would say of a simulation
    asked = options(tmp_path, recipe=recipes.load("jsc-tiny"))
    rows = {row.precision: row for row in search.sense(asked, budget_s=60, also=("fp8", "fp16", "int8")).rows}
    assert list(rows) == ["int8", "fp16", "fp8"] or set(rows) == {"int8", "fp8", "fp16"}
    assert rows["int8"].speed
    for precision in ("fp8", "fp16"):
        assert (rows[precision].speed, rows[precision].saved_us, rows[precision].faster) == ((), None, False)
        assert rows[precision].untimed == f"unknown: onnxruntime here has no {precision}"
    assert 10 < rows["fp8"].sqnr_db < rows["fp16"].sqnr_db


def test_a_search_tries_fp8_where_the_target_has_it_and_writes_it_as_rules(
    paced: Callable[[Pace], list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # E4M3 alone has two DequantizeLinear a layer and no more: the clock of this test likes it best
    paced(lambda count: 2.0 if count == 8 else 1.0)
    monkeypatch.setattr(OnnxRuntimeTarget, "below_fp32", lambda _self, _recipe: ("int8", "fp8"))
    found = find(tmp_path)
    assert taken(found.tried) == "all in fp8"
    assert {rule.precision for rule in found.recipe.quantize.layers} == {"fp8"}
    assert Recipe.load(found.path).quantize.layers == found.recipe.quantize.layers


def test_the_front_is_what_none_beats() -> None:
    assert pareto([(1.0, 3.0), (2.0, 2.0), (2.0, 3.0), None, (3.0, 1.0)]) == [True, True, False, False, True]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("quantize.repair.rounding=adaptive", "made for one choice of layers"),
        ("finetune.epochs=1", "trained for"),
        (
            'quantize.layers=[{name = "dense_layers.0", precision = "int8", input = {calibrator = "best"}}]',
            "leaves 'dense_layers.0' as its rule says",
        ),
    ],
)
def test_what_is_made_for_one_choice_of_layers_is_not_searched(tmp_path: Path, setting: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        build(tmp_path, setting)
    assert not (tmp_path / "build").exists()


def test_best_by_type_gives_way_to_what_the_search_finds(paced: Callable[[Pace], list[int]], tmp_path: Path) -> None:
    paced(lambda count: 2.0 if count else 1.0)
    rule = 'quantize.layers=[{type = "Linear", precision = "int8", input = {calibrator = "best"}}]'
    found = find(tmp_path, rule)
    assert "best" not in {item.input.calibrator for item in found.recipe.quantize.layers}
