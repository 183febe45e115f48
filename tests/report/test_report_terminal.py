from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from repo_builder.report import numbers, svg, terminal
from repo_builder.report.verdict import best, verdict
from repo_builder.results import PerfRun


def shown(run: PerfRun, *, colour: bool = False) -> str:
    out = io.StringIO()
    terminal.show(run, Console(file=out, width=160, force_terminal=colour, color_system="standard" if colour else None))
    return out.getvalue()


def test_every_part_is_on_the_terminal(perf_run: PerfRun) -> None:
    text = shown(perf_run)
    for part in (
        "Confusion matrix",
        "Accuracy ladder",
        "departs",
        "Latency and throughput",
        "p99 from due",
        "Where the time goes",
        "of which preprocess",
        "GPUs",
        "312 W",
        "Against the baseline",
        "worse",
        "150 requests/s (Poisson) × batch 1",
        "largest is",
        "ended early",
        "unstable",
    ):
        assert part in text, part
    assert "\x1b" not in text
    assert "\x1b" in shown(perf_run, colour=True)


def test_square_brackets_of_servers_are_text(perf_run: PerfRun) -> None:
    run = dataclasses.replace(perf_run, stopped="[red]unexpected shape [2,10][/red]", notes=("a [link=x]note[/link]",))
    assert "[red]unexpected shape [2,10][/red]" in shown(run)
    assert "[link=x]note[/link]" in shown(run)


@pytest.mark.parametrize(
    "label", ["[/x]", "[red]c", "two\nlines", "tab\there", "\x1b[31mred", "[link=http://x]y[/link]"]
)
def test_labels_are_text_whatever_they_are(perf_run: PerfRun, label: str) -> None:
    assert perf_run.accuracy is not None
    names = (label, *perf_run.accuracy.classes[1:])
    run = dataclasses.replace(perf_run, accuracy=dataclasses.replace(perf_run.accuracy, classes=names))
    text = shown(run)
    assert numbers.one_line(label) in text
    assert "\x1b" not in text
    assert label.split("\n")[0].encode("unicode_escape").decode() in text


@pytest.mark.parametrize(
    "change",
    [
        {"stable": False},
        {"errors": 3, "failures": {"no": 3}},
        {"refused": 3},
        {"stopped": "gone"},
        {"requests": 0, "latency": None},
    ],
)
def test_no_figure_gets_a_tick_that_does_not_stand_for_the_model(perf_run: PerfRun, change: dict[str, object]) -> None:
    level = dataclasses.replace(perf_run.levels[0], notes=(), **change)  # type: ignore[arg-type]
    run = dataclasses.replace(perf_run, levels=(level,), comparison=None, knee=None, notes=())
    assert best(run) is None
    assert not [item for item in verdict(run) if item.tone == "good" and "throughput" in item.text]
    hits = dataclasses.replace(perf_run.levels[0].server[0], cache_hits=5)
    cached = dataclasses.replace(perf_run.levels[0], server=(hits,))
    assert best(dataclasses.replace(run, levels=(cached,))) is None


def test_an_empty_comparison_is_bad(perf_run: PerfRun) -> None:
    assert perf_run.comparison is not None
    empty = dataclasses.replace(perf_run.comparison, findings=())
    found = verdict(dataclasses.replace(perf_run, comparison=empty))
    assert any("Nothing could be compared" in item.text and item.tone == "bad" for item in found)


def test_what_is_not_the_build_is_said(perf_run: PerfRun) -> None:
    run = dataclasses.replace(perf_run, not_the_build="the model that runs is not the build in build/m", layers=())
    assert "The model that runs is not the build in build/m." in shown(run)


def test_many_classes_have_no_matrix_on_the_terminal(perf_run: PerfRun) -> None:
    assert perf_run.accuracy is not None
    many = dataclasses.replace(perf_run.accuracy, classes=tuple(map(str, range(13))), confusion=((0,) * 13,) * 13)
    assert "Confusion matrix" not in shown(dataclasses.replace(perf_run, accuracy=many))


def test_the_verdict_begins_with_what_is_bad(perf_run: PerfRun) -> None:
    found = verdict(perf_run)
    tones = [item.tone for item in found]
    assert tones == sorted(tones, key=["bad", "warning", "good"].index)
    text = " ".join(item.text for item in found if item.tone == "bad")
    assert "ended early: no response within 10 s" in text
    assert "'served' departs from 'engine' by more than the tolerance: top-1 falls from 99.26 % to 95.00 %" in text
    assert "Worse than the baseline: p50 at concurrency 1 × batch 1, bootstrap interval" in text
    assert "2 requests failed" in text
    doubts = " ".join(item.text for item in found if item.tone == "warning")
    assert "Not stable" in doubts
    assert "others used the model meanwhile" in doubts


def test_the_verdict_of_a_good_run_is_good(perf_run: PerfRun) -> None:
    level = dataclasses.replace(perf_run.levels[2], notes=())
    run = dataclasses.replace(
        perf_run, levels=(perf_run.levels[0], level), ladder=None, comparison=None, stopped="", notes=(), knee=None
    )
    assert {item.tone for item in verdict(run)} == {"good"}
    assert best(run) is max(run.levels, key=lambda item: item.infer_per_s)


def test_the_level_that_a_search_chose_is_the_best(perf_run: PerfRun) -> None:
    assert perf_run.knee == 0
    assert best(perf_run) is perf_run.levels[0]
    assert "Highest throughput with p99 under 20 ms" in " ".join(item.text for item in verdict(perf_run))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.4, "0 µs"),
        (999, "999 µs"),
        (1000, "1.00 ms"),
        (12_345, "12.3 ms"),
        (123_456, "123 ms"),
        (2.5e6, "2.50 s"),
    ],
)
def test_times_have_three_digits_and_a_unit(value: float | None, text: str) -> None:
    assert numbers.time_us(value) == text


def test_other_numbers() -> None:
    assert numbers.rate(12345.6) == "12,346"
    assert numbers.rate(3.14159) == "3.14"
    assert numbers.percent(0.98765) == "98.77 %"
    assert numbers.interval(0.5, None) == "–"
    assert numbers.energy(0.00123) == "1.23 mJ"
    assert numbers.bytes_(2_100_000_000) == "2.10 GB"
    assert numbers.bytes_(None) == "–"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 937), (0.97, 0.995), (0, 1e-4), (120, 5000)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    ticks = svg.Axis(title="", low=low, high=high).ticks()
    assert 3 <= len(ticks) <= 12
    assert all(low - 1e-12 <= item <= high * (1 + 1e-9) for item in ticks)


def test_logarithmic_places() -> None:
    axis = svg.Axis(title="", low=0.1, high=10, log=True)
    assert axis.place(1, 0, 100) == pytest.approx(50)
    assert axis.ticks() == pytest.approx([0.1, 0.2, 0.5, 1, 2, 5, 10])
