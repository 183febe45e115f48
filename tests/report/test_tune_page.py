"""What a search came to, on a terminal and as a page: everything measured stands there, and nothing is claimed."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from repo_builder.report import tune_page, tune_terminal, tuned
from repo_builder.results.tuning import (
    Comparison,
    Estimate,
    Finalist,
    QueueModel,
    SameOutputs,
    Settings,
    Trial,
    TrialLevel,
    TuneRun,
    dumps,
    front,
)


def exact(value: float) -> Estimate:
    return Estimate(value=value, low=value * 0.9, high=value * 1.1)


def level(concurrency: int, rate: float, p99_us: float, **more: object) -> TrialLevel:
    made = TrialLevel(
        concurrency=concurrency, batch_size=1, requests=100, whole=True, infer_per_s=exact(rate),
        p50_us=exact(p99_us / 2), p99_us=exact(p99_us), mean_us=p99_us / 2, mean_batch=3.0, queue_us=100.0,
        compute_us=p99_us / 4, limit="compute", advice="larger batches", cpu_utilisation=0.97, server_cpu_us=321.0,
        memory_bytes=123e6,
    )  # fmt: skip
    return replace(made, **more)


SLOW, FAST = Settings(instances=1, max_batch_size=8, threads=1), Settings(instances=2, max_batch_size=32, threads=1)
TRIALS = (
    Trial(number=0, settings=SLOW, origin="present", levels=(level(1, 500, 3000), level(16, 900, 40_000))),
    Trial(number=1, settings=FAST, levels=(level(8, 1500, 9000),)),
    Trial(number=2, settings=replace(FAST, threads=2), state="failed", reason="the server <died>"),
)
RUN = TuneRun(
    model="m<x>", backend="onnxruntime", server="embedded, started for it", date="2026-11-28", objective="throughput",
    max_p99_ms=20.0, batch_size=1, data="digits", budget_s=60.0, seconds=55.0, storage="sqlite:///t.db", study="m-1",
    cores=2, space={"instances": [1, 2]}, space_size=12, builds=("model_repository/m",),
    queue_model=QueueModel(fixed_us=10, sample_us=5, outside_us=100, cpu_us=50, cores=2, tail=2.0), trials=TRIALS,
    present=SLOW, best=FAST, best_level=TRIALS[1].levels[0],
    finalists=(
        Finalist(settings=FAST, concurrency=8, infer_per_s=(1490.0, 1510.0), p99_us=(9000.0, 9100.0), chosen=True),
        Finalist(settings=SLOW, concurrency=1, infer_per_s=(500.0, 510.0), p99_us=(3000.0, 3100.0), present=True),
    ),
    comparisons=(Comparison(what="the chosen over the present", ratio=exact(3.0), rounds=2, kept=True),),
    same_outputs=SameOutputs(samples=64, bit_equal=True, max_abs_diff=0.0), environment={"cpu": "x"},
)  # fmt: skip


def test_the_page_is_whole_and_names_everything() -> None:
    text = tune_page.render(RUN)
    HTMLParser().feed(text)
    assert "m&lt;x&gt;" in text
    assert "the server &lt;died&gt;" in text
    assert "<script" not in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    for word in (
        "Pareto front",
        "1,500<br><small>[1,350 – 1,650]</small>",
        "same to the bit",
        "321 µs",
        "123 MB",
        "queueing model",
    ):
        assert word in text, word


def test_a_column_that_nothing_was_measured_for_is_absent() -> None:
    text = tune_page.render(RUN)
    assert ">memory</th>" in text
    assert ">GPU</th>" not in text
    assert ">CPU energy an inference</th>" not in text
    measured = replace(TRIALS[1], levels=(level(8, 1500, 9000, gpu_utilisation=0.5, energy_j=0.25, cpu_energy_j=0.5),))
    text = tune_page.render(replace(RUN, trials=(TRIALS[0], measured)))
    for word in (">GPU</th>", ">250 mJ</td>", ">500 mJ</td>", ">50 %</td>"):
        assert word in text, word
    assert ">GPU memory</th>" not in text


def test_the_front_has_what_nothing_beats_in_both() -> None:
    pairs = [(trial, item) for trial in TRIALS for item in trial.levels]
    assert [item.infer_per_s.value for _, item in front(pairs)] == [500, 1500]


def test_the_terminal_shows_every_trial_and_the_sentences() -> None:
    out = io.StringIO()
    tune_terminal.show(RUN, Console(file=out, width=160))
    for word in ("2 instances", "the server <died>", "chosen", "present", "✓ best under 20 ms", "what limits there"):
        assert word in out.getvalue(), word


@pytest.mark.parametrize("width", [60, 80])
def test_on_a_narrow_terminal_no_cell_of_its_tables_is_cut(width: int) -> None:
    out = io.StringIO()
    tune_terminal.show(RUN, Console(file=out, width=width))
    printed = out.getvalue()
    assert "…" not in printed
    tables = printed.partition("Trials")[2].partition(" configurations, ")[0].rpartition("\n")[0]
    assert all(len(line) <= width for line in tables.splitlines())
    for trial in RUN.trials:
        assert str(trial.settings) in tables
        for item in trial.levels[:1]:
            assert item.limit in tables
    for heading in ("infer/s, median", "p99, median", "rounds", "CPU", "limit"):
        assert heading in tables


@pytest.mark.parametrize(
    ("changes", "tone", "said"),
    [
        ({"best": None, "finalists": (), "best_level": None}, "bad", "nothing keeps 20 ms; the best found"),
        ({"stopped": "interrupted"}, "bad", "its trials are kept"),
        (
            {"same_outputs": SameOutputs(samples=64, bit_equal=False, max_abs_diff=0.5)},
            "warning",
            "differ by up to 0.5",
        ),
        ({"best": SLOW, "present": SLOW}, "good", "stands there already"),
        (
            {"comparisons": (Comparison(what="a over b", ratio=exact(1.0), rounds=2, kept=True),)},
            "warning",
            "no difference that these rounds can tell",
        ),
        (
            {"comparisons": (Comparison(what="preferred x", ratio=exact(1.0), rounds=2, kept=False),)},
            "good",
            "none are written",
        ),
        ({"objective": "cost"}, "good", "1,500 inferences/s (750 for each core or instance reserved)"),
        ({"applied": ("a.toml",)}, "good", "written: a.toml"),
    ],
)
def test_what_is_not_so_is_not_claimed(changes: dict[str, object], tone: str, said: str) -> None:
    found = tuned.sentences(replace(RUN, **changes))  # type: ignore[arg-type]
    assert any(said in text and told == tone for told, text in found), found


def test_a_search_without_a_level_is_a_page_too() -> None:
    empty = replace(RUN, trials=TRIALS[2:], best=None, best_level=None, finalists=(), comparisons=(), max_p99_ms=None)
    assert "nothing could be measured" in tune_page.render(empty)


def test_the_json_has_its_schema_and_every_trial() -> None:
    value = json.loads(dumps(RUN))
    assert (value["schema"], value["schema_version"]) == ("repo-builder/tune", 1)
    assert [item["number"] for item in value["trials"]] == [0, 1, 2]
