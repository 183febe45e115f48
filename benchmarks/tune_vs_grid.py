"""What ``repo-builder tune`` finds beside the exhaustive grid: the same space, the same server, the same levels.

    python benchmarks/tune_vs_grid.py vgg jsc resnet --output benchmarks/results/tune_vs_grid.json

The grid is every configuration under every concurrency; the search may measure a third as many loads, the best ones in
turns and preferred sizes included. Which is better is not read off either, for the best of a hundred noisy levels is
too good by chance: the grid's best three configurations and the search's choice are measured again in turns, the best
of the three is the grid's best, and the median of the ratios to it is the result, which one round that the machine's
other work disturbs does not move (the mean with its interval stands beside it). Beside it stands ``grid_share``: what
the grid's own single levels say of the configuration that the search chose. ``vgg`` and ``jsc``
are built-in recipes (``repo-builder build vgg``), ``resnet`` is a residual network of 32 x 32 images with seeded
weights, made here. What is there already in the output is not measured again, so that it can be run in pieces.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tune_network import make_resnet

from repo_builder.core import codec, environment, files
from repo_builder.core.errors import MeasureError
from repo_builder.flows.perf import built
from repo_builder.flows.tune import Collected, TuneOptions, finals, hosts, tune
from repo_builder.flows.tune.bench import Bench
from repo_builder.flows.tune.loads import Terms
from repo_builder.flows.tune.space import canonical
from repo_builder.measure.judge import estimates
from repo_builder.measure.load.course import Pace
from repo_builder.results.tuning import Finalist, Settings, TrialLevel

CHOICES = {
    "instances": (1, 2),
    "max_batch_size": (1, 8, 32),
    "max_queue_delay_us": (0, 500),
    "threads": (1, 2),
}
CONCURRENCY = (4, 16, 64)
LIMITS_MS = {"vgg": 30.0, "jsc": 15.0, "resnet": 60.0}
PACE = Pace(warmup_s=0.2, window_s=0.3, window_requests=20, until_stable=False, most_s=10.0)
ROUNDS = 24
RIVALS = 3
PAIRED = dataclasses.replace(PACE, warmup_s=0.1, window_s=0.2)  # short turns: what else the machine does hits both


def main() -> None:
    """Measure what is missing in the output, and write it after every step."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("models", nargs="+", choices=list(LIMITS_MS))
    options.add_argument("--repository", type=Path, default=Path("model_repository"))
    options.add_argument("--work", type=Path, default=Path("build"))
    options.add_argument("--output", type=Path, required=True)
    options.add_argument("--paired-anew", action="store_true", help="measure the best ones in turns once more")
    given = options.parse_args()
    result = json.loads(given.output.read_text()) if given.output.exists() else {}
    result.setdefault("about", _about())
    for model in given.models:
        asked = asked_of(model, given.repository, given.work)
        if model == "resnet" and not (given.repository / model).is_dir():
            make_resnet(given.repository / model)
        one: dict[str, Any] = result.setdefault(model, {"max_p99_ms": LIMITS_MS[model]})

        def save() -> None:
            write(given.output, result)

        if not one.get("grid", {}).get("whole"):
            _grid(asked, one, save)
        if "tune" not in one:
            one["tune"] = _tune(asked, len(one["grid"]["rows"]))
            save()
        one["grid_share"] = _share(one)
        save()
        if "paired" not in one or given.paired_anew:
            one["paired"] = _paired(asked, one)
            save()
        print(model, json.dumps(one["paired"]), json.dumps({k: one["tune"][k] for k in ("loads", "seconds")}))


def asked_of(model: str, repository: Path, work: Path) -> TuneOptions:
    """Return what the search is asked for."""
    return TuneOptions(
        model=model,
        repository=repository,
        work=work,
        recipe=model if model != "resnet" else None,
        dataset="random" if model == "resnet" else None,
        max_p99_ms=LIMITS_MS[model],
        choices=CHOICES,
        pace=PACE,
    )


def configurations() -> list[Settings]:
    """Return every configuration of the grid once, preferred sizes among them."""
    names = list(CHOICES)
    found: dict[Settings, None] = {}
    for values in itertools.product(*CHOICES.values()):
        plain = canonical(Settings(**dict(zip(names, values, strict=True))))
        for item in (plain, finals.with_preferred(plain, plain)):
            if item is not None:
                found[item] = None
    return list(found)


def _grid(asked: TuneOptions, one: dict[str, Any], save: Callable[[], None]) -> None:
    """Measure the grid, beginning where a run before has ended."""
    grid = one.setdefault("grid", {"rows": [], "seconds": 0.0, "whole": False})
    done = {codec.build(Settings, row["settings"]) for row in grid["rows"] if row["last"]}
    grid["rows"] = [row for row in grid["rows"] if codec.build(Settings, row["settings"]) in done]
    bench = open_bench(asked)
    try:
        for settings in configurations():
            if settings in done:
                continue
            started = time.monotonic()
            bench.load(settings)
            for concurrency in CONCURRENCY:
                level = bench.level(concurrency)
                last = concurrency == CONCURRENCY[-1]
                grid["rows"].append({"settings": codec.plain(settings), "level": _short(level), "last": last})
            grid["seconds"] = round(grid["seconds"] + time.monotonic() - started, 1)
            save()
    finally:
        bench.close()
    grid["whole"] = True
    save()


def _tune(asked: TuneOptions, loads: int) -> dict[str, Any]:
    """Run the search with a third of the grid's loads, the end's among them."""
    rounds = 2
    end = 4 * rounds + 2 * rounds  # the best three and the present one, then preferred sizes
    collected = Collected()
    shutil.rmtree(asked.folder, ignore_errors=True)
    tune(
        dataclasses.replace(
            asked,
            most_in_flight=max(CONCURRENCY),
            rounds=rounds,
            most_levels=loads // 3 - end - 3,
            patience=None,
            budget_s=400.0,
            fresh=True,
        ),
        collected,
    )
    run = collected.run
    if run is None or run.best is None or run.best_level is None:
        raise SystemExit(f"{asked.model}: the search found nothing")
    spent = run.levels + sum(len(item.infer_per_s) for item in run.finalists)
    spent += sum(2 * item.rounds for item in run.comparisons if "preferred" in item.what)
    chosen = next(item for item in run.finalists if item.chosen)
    return {
        "loads": spent,
        "configurations": len(run.trials),
        "seconds": run.seconds,
        "best": codec.plain(run.best),
        "concurrency": chosen.concurrency,
        "queue_model": codec.plain(run.queue_model) if run.queue_model else None,
        "trials": [
            {"settings": str(item.settings), "origin": item.origin, "state": item.state}
            | {"levels": [_short(level) for level in item.levels]}
            for item in run.trials
        ],
        "finalists": codec.plain(list(run.finalists)),
        "comparisons": codec.plain(list(run.comparisons)),
        "same_outputs": codec.plain(run.same_outputs) if run.same_outputs else None,
    }


def _share(one: dict[str, Any]) -> float | None:
    """Return what the grid itself measured of the search's best configuration, as a share of the grid's best."""

    def best(rows: list[dict[str, Any]]) -> float:
        held = [row["level"] for row in rows if row["level"]["p99_us"] <= one["max_p99_ms"] * 1000]
        return max((level["infer_per_s"] for level in held), default=0.0)

    rows = one["grid"]["rows"]
    chosen = codec.build(Settings, one["tune"]["best"])
    mine = [row for row in rows if codec.build(Settings, row["settings"]) == chosen]
    return round(best(mine) / best(rows), 4) if mine else None


def rivals(rows: list[dict[str, Any]], limit_us: float) -> list[tuple[Settings, int]]:
    """Return the best configurations of the grid, each under its best load that keeps the limit."""
    held = [row for row in rows if row["level"]["p99_us"] <= limit_us]
    found: dict[Settings, int] = {}
    for row in sorted(held, key=lambda row: -row["level"]["infer_per_s"]):
        found.setdefault(codec.build(Settings, row["settings"]), row["level"]["concurrency"])
    return list(found.items())[:RIVALS]


def _paired(asked: TuneOptions, one: dict[str, Any]) -> dict[str, Any]:
    """Measure the grid's best ones and the search's choice again, in turns; the best of the grid's is its best."""
    limit_us = (asked.max_p99_ms or 0.0) * 1000
    theirs = rivals(one["grid"]["rows"], limit_us)
    ours = (codec.build(Settings, one["tune"]["best"]), one["tune"]["concurrency"])
    contest = [item for item in theirs if item != ours] + [ours]
    bench = open_bench(dataclasses.replace(asked, pace=PAIRED))
    try:
        entries = [finals.Entry(settings=settings, level=level_of(line)) for settings, line in contest]
        found = finals.in_turns(bench, entries, ROUNDS, 1.0)
    finally:
        bench.close()
    if len(found) < len(contest):
        raise MeasureError("a configuration could not be measured again", where=asked.model)
    *others, mine = found
    terms = Terms(
        objective="throughput", max_p99_us=limit_us, batch_size=1, ladder=CONCURRENCY, cores=os.cpu_count() or 1
    )
    best = finals.winner(found if ours in theirs else others, terms)
    load = os.getloadavg()[0]  # of the last minute: its own load is about 4 on two cores
    shown = [_finalist(item) for item in found]
    if best is None or best == mine:
        return {
            "median_ratio": 1.0,
            "same": best == mine,
            "tune": _named(mine),
            "in_turns": shown,
            "load_average": load,
        }
    ratios = sorted(other / first for first, other in zip(best.infer_per_s, mine.infer_per_s, strict=True))
    # the sign test's 95 % interval of a median: order statistics, as for a percentile
    middle = estimates.quantile(ratios, 50.0)
    told = finals.compare("tune over grid", best, mine, terms)
    return {
        "grid": _named(best),
        "tune": _named(mine),
        "median_ratio": round(statistics.median(ratios), 4),
        "median_interval": [round(middle.low, 4), round(middle.high, 4)],
        "mean_ratio": {key: round(value, 4) for key, value in dataclasses.asdict(told.ratio).items()},
        "rounds": told.rounds,
        "in_turns": shown,
        "load_average": load,
        "tune_keeps_limit": statistics.median(mine.p99_us) <= limit_us,
        "same": False,
    }


def open_bench(asked: TuneOptions) -> Bench:
    """Return a server and its client."""
    build = built.find(asked.model, asked.recipe, asked.work)
    return Bench(hosts.open_host(asked), asked, build, time.monotonic() + 3600)


def _named(item: Finalist) -> str:
    return f"{item.settings} at concurrency {item.concurrency}"


def _finalist(item: Finalist) -> dict[str, Any]:
    return {
        "what": _named(item),
        "infer_per_s": [round(value, 1) for value in item.infer_per_s],
        "p99_us": [round(value) for value in item.p99_us],
    }


def _short(level: TrialLevel) -> dict[str, Any]:
    """Return what is kept of a level."""
    value = {
        "concurrency": level.concurrency,
        "infer_per_s": round(level.infer_per_s.value, 1),
        "mean_us": round(level.mean_us, 1),
        "p50_us": round(level.p50_us.value, 1),
        "p99_us": round(level.p99_us.value, 1),
        "whole": level.whole,
    }
    for name in ("mean_batch", "queue_us", "compute_us", "cpu_utilisation", "server_cpu_us"):
        found = getattr(level, name)
        value[name] = None if found is None else round(found, 3)
    return value


def level_of(concurrency: int) -> TrialLevel:
    """Return a load of which nothing is measured yet."""
    from repo_builder.results.tuning import Estimate

    none = Estimate(value=0.0, low=0.0, high=0.0)
    return TrialLevel(
        concurrency=concurrency, batch_size=1, requests=0, whole=True, infer_per_s=none, p50_us=none, p99_us=none,
        mean_us=0.0,
    )  # fmt: skip


def _about() -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "environment": environment.describe(),
        "choices": {name: list(item) for name, item in CHOICES.items()},
        "preferred_batch_sizes": "none, or a quarter, a half and all of max_batch_size",
        "concurrency": list(CONCURRENCY),
        "pace": codec.plain(PACE),
    }


def write(path: Path, value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Write JSON with one row of a list a line."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    import re

    files.write_text(path, re.sub(r"\{[^{}\[\]]*\}", lambda found: " ".join(found[0].split()), text) + "\n")


if __name__ == "__main__":
    main()
