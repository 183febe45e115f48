"""What a load costs, and the sentence on what could not be had."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from repo_builder.flows.tune import meter
from repo_builder.flows.tune.meter import Meter, unmeasured
from repo_builder.measure.load import rapl
from repo_builder.results.tuning import Estimate, Settings, Trial, TrialLevel
from tests.measure.load.test_rapl import counter

_ONE = Estimate(value=1.0, low=1.0, high=1.0)
LEVEL = TrialLevel(
    concurrency=1, batch_size=1, requests=1, whole=True, infer_per_s=_ONE, p50_us=_ONE, p99_us=_ONE, mean_us=1.0
)


def test_cpu_and_energy_are_those_of_the_end_of_what_was_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter(tmp_path, "intel-rapl:0", 0)
    monkeypatch.setattr(meter, "Packages", lambda: rapl.Packages(tmp_path))
    with Meter(os.getpgid(0)) as found:
        for step in range(1, 1000):
            counter(tmp_path, "intel-rapl:0", step * 1_500_000)  # 30 W
            time.sleep(0.05)
            if len(found._energy) == 4:
                break
    assert found.cpu_rate(0.4) is not None
    energy_j = found.energy_j(0.4, infer_per_s=100.0)
    assert energy_j is not None
    assert 0.02 < energy_j < 0.9
    assert found.memory_bytes
    with Meter(None) as nothing:
        pass
    assert (nothing.cpu_rate(1.0), nothing.energy_j(1.0, 10.0), nothing.memory_bytes) == (None, None, None)


@pytest.mark.parametrize(
    ("seen", "rate"),
    [
        ([(0.0, 0.0), (1.0, 9.0), (1.2, 9.4), (1.4, 9.8)], 2.0),
        ([(0.0, 0.0), (1.0, 9.0), (3.0, 10.0)], 0.5),  # a machine that is busy: one look in the last seconds
        ([(3.0, 10.0)], None),
        ([], None),
    ],
)
def test_a_late_look_goes_back_to_the_one_before(seen: list[tuple[float, float]], rate: float | None) -> None:
    assert meter._slope(seen, 0.5) == (None if rate is None else pytest.approx(rate))


def test_processes_that_end_or_begin_in_between_take_nothing_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the configuration before are still ending when the next one is measured."""
    now: dict[int, float] = {}
    monkeypatch.setattr(meter.processes, "members", lambda group: list(now))
    monkeypatch.setattr(meter.processes, "cpu_s", lambda pids: sum(now[pid] for pid in pids))
    found = Meter(1)
    for look in ({1: 10.0, 2: 90.0}, {1: 10.5, 2: 90.1, 3: 7.0}, {1: 11.0, 3: 7.25}):
        now.clear()
        now.update(look)
        found._look(1)
    assert [used for _, used in found._seen] == pytest.approx([0.0, 0.6, 1.35])


def test_what_no_load_has_a_figure_of_is_named_with_its_reason() -> None:
    some = Trial(number=0, settings=Settings(), levels=(LEVEL,))
    said = unmeasured([some], local=False)
    assert "energy of the CPU (the server was not started here)" in said
    assert "GPU (the server publishes no GPU metrics" in said
    whole = TrialLevel(**{**vars(LEVEL), **dict.fromkeys(meter._COLUMNS, 0.5)})
    assert unmeasured([some, Trial(number=1, settings=Settings(), levels=(whole,))], local=True) == ""
    assert unmeasured([], local=True) == ""
