"""The search on a surface that was recorded: every configuration and load of a real grid, no server in between."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from repo_builder.core import codec
from repo_builder.core.errors import MeasureError
from repo_builder.flows.tune import finals
from repo_builder.flows.tune.loads import Terms
from repo_builder.flows.tune.search import Search
from repo_builder.flows.tune.space import Space
from repo_builder.flows.tune.study import Study, url_of
from repo_builder.results.tuning import Estimate, Settings, Trial, TrialLevel

SURFACE = json.loads((Path(__file__).parent / "recorded_surface.json").read_text(encoding="utf-8"))
SPACE = Space(choices={name: tuple(item) for name, item in SURFACE["choices"].items()})
LADDER = tuple(SURFACE["concurrency"])
PRESENT = Settings(instances=1, max_batch_size=32, max_queue_delay_us=0, threads=1)


def level(row: dict[str, Any]) -> TrialLevel:
    exact = {key: Estimate(value=row[key], low=row[key], high=row[key]) for key in ("infer_per_s", "p50_us", "p99_us")}
    rest = {key: value for key, value in row.items() if key not in exact}
    return TrialLevel(batch_size=1, requests=1000, **exact, **rest)


RECORDED = {
    (codec.build(Settings, row["settings"]), row["level"]["concurrency"]): level(row["level"])
    for row in SURFACE["rows"]
}


class Replay:
    """A rig that answers from the recording; some configurations may be broken."""

    def __init__(self, broken: Callable[[Settings], bool] = lambda _: False) -> None:
        self._broken = broken
        self._loaded = PRESENT
        self.measured: list[tuple[Settings, int]] = []
        self.revived = 0

    def load(self, settings: Settings) -> None:
        if self._broken(settings):
            raise MeasureError("the server died")
        self._loaded = settings

    def level(self, concurrency: int) -> TrialLevel:
        self.measured.append((self._loaded, concurrency))
        return RECORDED[self._loaded, concurrency]

    def revive(self) -> None:
        self.revived += 1

    def left_s(self) -> float:
        return 1000.0


def terms(**changes: Any) -> Terms:
    usual: dict[str, Any] = {
        "objective": "throughput", "max_p99_us": SURFACE["max_p99_ms"] * 1000, "batch_size": 1, "ladder": LADDER,
        "cores": 2,
    }  # fmt: skip
    return Terms(**{**usual, **changes})


def run(rig: Replay, given: Terms, seed: int = 0, url: str = "sqlite://") -> tuple[tuple[Trial, ...], Search]:
    study = Study(url, "s", SPACE, seed=seed, fresh=False)
    search = Search(rig, study, SPACE, given, PRESENT, lambda _: None)
    try:
        search.run()
        return study.trials(), search
    finally:
        study.close()


def best_of(found: tuple[Trial, ...], given: Terms) -> float:
    return max(value for item in found if (value := given.value(item)) is not None)


def test_a_third_of_the_loads_finds_what_the_whole_grid_has() -> None:
    given = terms(most_levels=len(RECORDED) // 3 - 6)
    rig = Replay()
    found, search = run(rig, given)
    top = max(item.infer_per_s.value for item in RECORDED.values() if item.within(given.max_p99_us))
    assert best_of(found, given) >= 0.97 * top
    assert len(rig.measured) <= len(RECORDED) // 3
    assert search.ended == "as many loads as asked for were measured"
    assert search.model is not None


def test_no_configuration_is_measured_twice_and_a_small_space_ends_the_search() -> None:
    rig = Replay()
    found, search = run(rig, terms())
    measured = [item.settings for item in found]
    assert len(measured) == len(set(measured)) == sum(1 for _ in SPACE.all())
    assert len(rig.measured) == len(set(rig.measured))
    assert search.ended == "every configuration was tried"


def test_patience_and_a_number_of_trials_end_it() -> None:
    found, search = run(Replay(), terms(most_trials=3))
    assert len(found) == 3
    found, search = run(Replay(), terms(patience=2))
    assert "were no better" in search.ended
    assert len(found) < sum(1 for _ in SPACE.all())


def test_a_search_that_goes_on_measures_nothing_again(tmp_path: Path) -> None:
    url = url_of(None, tmp_path)
    first = Replay()
    run(first, terms(most_trials=4), url=url)
    second = Replay()
    found, search = run(second, terms(most_trials=8), url=url)
    assert not {item for item, _ in first.measured} & {item for item, _ in second.measured}
    assert len(found) == 8
    assert search.model is not None  # fitted to what the first has measured


def test_a_server_that_dies_in_a_trial_fails_that_trial_alone() -> None:
    rig = Replay(broken=lambda settings: settings.instances == 2 and settings.max_batch_size == 32)
    found, _ = run(rig, terms(most_trials=4))
    failed = [item for item in found if item.state == "failed"]
    assert failed
    assert rig.revived == len(failed)
    assert all("the server died" in item.reason and item.settings.max_batch_size == 32 for item in failed)
    assert len(found) == 4 + len(failed)


def test_a_search_on_which_all_fails_after_a_while_ends_with_what_it_has() -> None:
    rig = Replay(broken=lambda settings: settings != PRESENT)
    found, search = run(rig, terms())
    assert [item.state for item in found] == ["complete"] + ["failed"] * 6
    assert search.ended == "6 configurations in a row failed, the last one since the server died"


def test_a_server_on_which_nothing_runs_ends_the_search() -> None:
    with pytest.raises(MeasureError, match="the server died"):
        run(Replay(broken=lambda _: True), terms())


def test_a_limit_that_nothing_keeps_prunes_and_scores_by_how_far_it_is_missed() -> None:
    given = terms(max_p99_us=1.0, most_trials=4)
    found, _ = run(Replay(), given)
    assert all(item.best(given.max_p99_us) is None for item in found)
    assert all((score := given.score(item)) is not None and score < -1 for item in found)
    assert finals.entries(found, given, PRESENT) == []


def test_cost_counts_the_cores_that_are_reserved() -> None:
    given = terms(objective="cost", most_levels=36)
    found, _ = run(Replay(), given)
    best = max(found, key=lambda item: given.value(item) or 0.0)
    assert given.value(best) == pytest.approx(
        best.best(given.max_p99_us).infer_per_s.value / (best.settings.instances * best.settings.threads)  # type: ignore[union-attr,operator]
    )
    most = max(
        item.infer_per_s.value / (key[0].instances * (key[0].threads or 2))
        for key, item in RECORDED.items()
        if item.within(given.max_p99_us) and not key[0].preferred_batch_sizes
    )
    assert best_of(found, given) >= 0.97 * most
