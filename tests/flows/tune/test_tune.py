"""A search on a real server, with a tiny model: killed, gone on with, and its result placed."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import repo_builder as rb
from repo_builder.core import codec, servers
from repo_builder.core.errors import MeasureError, ObjectiveMissed, RepositoryError, ServeError
from repo_builder.flows.perf.built import Build
from repo_builder.flows.tune import Collected, TuneOptions, hosts, tune
from repo_builder.flows.tune.bench import Bench, difference
from repo_builder.measure.load.course import Pace
from repo_builder.measure.wire.transport import Endpoint
from repo_builder.repository import serving
from repo_builder.results import tuning
from repo_builder.results.tuning import Settings
from repo_builder.serve import Server
from tests.conftest import write_model

PACE = Pace(warmup_s=0.05, window_s=0.05, window_requests=5, until_stable=False, most_s=5.0)
DOCUMENTED = re.findall(
    r"^repo-builder .*$",
    re.findall(
        r"^```bash run\n(.*?)^```", (Path(__file__).resolve().parents[3] / "docs/tuning.md").read_text(), re.M | re.S
    )[0],
    re.M,
)
CHOICES = {"instances": (1, 2), "max_batch_size": (4, 8), "max_queue_delay_us": (0,)}


def options(folder: Path, **more: object) -> TuneOptions:
    usual: dict[str, object] = {
        "model": "batching", "repository": folder / "repository", "work": folder / "build", "dataset": "random",
        "choices": CHOICES, "pace": PACE, "rounds": 2, "budget_s": 60.0, "most_in_flight": 8, "workers": 1,
        "max_p99_ms": 2000.0,
    }  # fmt: skip
    return TuneOptions(**{**usual, **more})  # type: ignore[arg-type]


def notes_of(repository: Path) -> list[servers.ServerNote]:
    return [
        note for _, note in servers.notes() if note is not None and str(note.repository).startswith(str(repository))
    ]


def trials_in(database: Path) -> int:
    with suppress(sqlite3.Error), sqlite3.connect(f"file:{database}?mode=ro", uri=True) as found:
        return int(found.execute("select count(*) from trials where state = 'COMPLETE'").fetchone()[0])
    return 0


@pytest.mark.server
@pytest.mark.slow
def test_the_documented_search_goes_on_after_a_kill_and_places_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines of docs/tuning.md; the search is killed once, when its first trial has ended."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    build, search, validate = DOCUMENTED
    subprocess.run(shlex.split(build), cwd=tmp_path, check=True, capture_output=True)
    folder = tmp_path / "build" / "jsc-tiny" / "tune"
    with subprocess.Popen(
        shlex.split(search), cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as killed:
        deadline = time.monotonic() + 120
        while trials_in(folder / "trials.db") < 1 and killed.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert killed.poll() is None, "it ended before its first trial"
        (note,) = notes_of(folder)
        killed.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while note.server is not None and note.server.alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert note.server is not None
    assert not note.server.alive(), "a killed search leaves no server behind"

    done = subprocess.run(shlex.split(search), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "of 5 configurations" in done.stdout
    run = json.loads((tmp_path / "tuned.json").read_text())
    assert run["taken_over"] >= 1
    assert run["same_outputs"] == {"samples": 64, "bit_equal": True, "max_abs_diff": 0.0}
    for trial in run["trials"]:
        for level in trial["levels"]:
            assert level["p99_us"]["low"] <= level["p99_us"]["value"] <= level["p99_us"]["high"]
            assert level["limit"]
            assert level["server_cpu_us"] > 0
            assert level["memory_bytes"] > 1e6
    best = codec.build(Settings, run["best"])
    assert best in [codec.build(Settings, item["settings"]) for item in run["finalists"]]
    placed = (tmp_path / "model_repository" / "jsc-tiny" / "config.pbtxt").read_text()
    assert serving.settings_of(serving.of_text(placed, "placed")) == best
    assert list((folder / "before").glob("*-config.pbtxt"))
    assert (folder / "report.html").is_file()
    assert not list(folder.glob("repository.*")), "the links of the killed search are removed with its own"
    subprocess.run(shlex.split(validate), cwd=tmp_path, check=True, capture_output=True)


@pytest.mark.server
def test_a_server_that_dies_is_started_again_and_a_limit_that_nothing_keeps_is_said(tmp_path: Path) -> None:
    write_model(tmp_path / "repository", "batching")
    write_model(tmp_path / "other", "batching")
    given = options(tmp_path, max_p99_ms=0.001, most_trials=1, most_in_flight=2)
    host = hosts.open_host(options(tmp_path, builds=(tmp_path / "other" / "batching",)))
    bench = Bench(host, given, Build(), time.monotonic() + 60)
    try:
        bench.load(Settings(instances=1, max_batch_size=4, max_queue_delay_us=0))
        before = bench.answers()
        assert host.group is not None
        os.kill(host.group, signal.SIGKILL)
        with pytest.raises(MeasureError):
            bench.level(1)
        bench.revive()
        bench.load(Settings(instances=2, max_batch_size=8, max_queue_delay_us=0))
        assert bench.level(2).whole
        assert difference(before, bench.answers()) == (True, 0.0)
        bench.load(Settings(instances=1, max_batch_size=8, max_queue_delay_us=0, build=1))  # another build's model
        assert bench.level(1).whole
    finally:
        bench.close()
    assert notes_of(given.folder) == []

    missed = rb.tune(
        "batching", repository=given.repository, work=given.work, data="random", instances=(2, 1, 1),
        max_batch_size=(4, 8), queue_delay_us=(0,), budget=60, window_ms=50, rounds=2, workers=1, max_concurrency=2,
        max_p99_ms=0.001, trials=1, on_error="return",
    )  # fmt: skip
    assert isinstance(missed.error, ObjectiveMissed)
    assert re.search(r"the best found has .* ms with .* inferences/s", str(missed.error))
    assert missed.error.exit_code == 15
    assert missed.best is None
    assert [len(item.levels) > 0 for item in missed.trials] == [True]
    assert missed.run.space["instances"] == [1, 2]
    assert json.loads(tuning.dumps(missed.run)) == json.loads(json.dumps(missed.to_dict()))
    assert "batching" in missed.report(tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.server
def test_another_server_gets_back_its_configuration_and_one_that_allows_nothing_is_said(
    triton: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = options(tmp_path, endpoint=Endpoint.parse(triton.grpc_url, "grpc"))
    host = hosts.open_host(given)
    before = serving.settings_of(host.configs[0])
    host.load(Settings(instances=2, max_batch_size=2, max_queue_delay_us=0))
    host.close()
    again = hosts.open_host(options(tmp_path, endpoint=Endpoint.parse(triton.http_url, "http")))
    assert serving.settings_of(again.configs[0]) == before
    again.close()
    with pytest.raises(RepositoryError, match=r"is an ensemble.*tune identity, batching"):
        hosts.open_host(options(tmp_path, model="pair", endpoint=Endpoint.parse(triton.grpc_url, "grpc")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # whoever has no key
    with pytest.raises(ServeError, match="does not let this client load models"):
        hosts.open_host(given)


def test_what_cannot_be_searched_is_refused_before_a_server_is_started(tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match=r"5 s is too small.*give it"):
        tune(options(tmp_path, pace=Pace(), budget_s=5.0), Collected())
    with pytest.raises(RepositoryError, match="there is no such model"):
        tune(options(tmp_path), Collected())


def test_differences_of_outputs_are_found_to_the_bit() -> None:
    one = {"y": np.array([0.0, 1.0], np.float32)}
    assert difference([one], [dict(one)]) == (True, 0.0)
    assert difference([one], [{"y": np.array([-0.0, 1.0], np.float32)}]) == (False, 0.0)
    equal, apart = difference([one], [{"y": np.array([0.0, 1.5], np.float32)}])
    assert (equal, apart) == (False, 0.5)
    assert difference([one], [{"y": np.zeros(3, np.float32)}]) == (False, float("inf"))
    text = {"y": np.array([b"a"], object)}
    assert difference([text], [{"y": np.array([b"b"], object)}]) == (False, float("inf"))
