"""Trials stay in their database: over a kill, and between searches that share it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from repo_builder.core.errors import MeasureError, MissingDependency
from repo_builder.flows.tune.space import Space
from repo_builder.flows.tune.study import Study, url_of
from repo_builder.results.tuning import Settings

SPACE = Space(choices={"instances": (1, 2), "max_batch_size": (1, 8), "max_queue_delay_us": (0, 500), "build": (0,)})
KILLED = """
import os, signal, sys
from repo_builder.flows.tune.space import Space
from repo_builder.flows.tune.study import Study
from repo_builder.results.tuning import Settings
space = Space(choices={"instances": (1, 2), "max_batch_size": (1, 8), "max_queue_delay_us": (0, 500), "build": (0,)})
study = Study(sys.argv[1], "s", space, seed=0, fresh=False)
study.tell(study.ask(Settings(instances=1, max_batch_size=8), "present"), 10.0)
study.ask(Settings(instances=2, max_batch_size=8, max_queue_delay_us=500), "queueing model")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Callable[..., Study]]:
    opened: list[Study] = []

    def opener(name: str = "s", *, fresh: bool = False) -> Study:
        opened.append(Study(url_of(str(tmp_path / "trials.db"), tmp_path), name, SPACE, seed=0, fresh=fresh))
        return opened[-1]

    yield opener
    for item in opened:
        with suppress(Exception):
            item.close()


def test_a_trial_is_asked_for_told_and_read_again(study: Callable[..., Study]) -> None:
    present = Settings(instances=1, max_batch_size=8, max_queue_delay_us=100, preferred_batch_sizes=(4, 8))
    first = study()
    trial = first.ask(present, "present")
    assert trial.settings == present  # as it is, though it lies between the choices
    first.tell(replace(trial, state="complete"), 10.0)
    (found,) = study().trials()
    assert found == replace(trial, state="complete")
    assert study("other").trials() == ()
    assert study(fresh=True).trials() == ()


def test_what_was_killed_is_ended_and_tried_again(study: Callable[..., Study], tmp_path: Path) -> None:
    url = url_of(str(tmp_path / "trials.db"), tmp_path)
    done = subprocess.run([sys.executable, "-c", KILLED, url], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    found = study()
    finished, left = found.trials()
    assert (finished.state, finished.settings) == ("running", Settings(instances=1, max_batch_size=8))
    assert left.state == "failed"
    assert "killed" in left.reason
    again = found.ask()
    assert again.settings == left.settings


def test_a_trial_that_another_living_search_runs_is_left_to_it(study: Callable[..., Study]) -> None:
    running = study().ask(Settings(instances=2, max_batch_size=1))
    (found,) = study().trials()
    assert found == running
    assert found.state == "running"
    assert found.where.endswith(f":{os.getpid()}")


SHARING = """
import sys
from repo_builder.flows.tune.study import Study
from tests.flows.tune.test_study import SPACE
study = Study(sys.argv[1], "s", SPACE, seed=int(sys.argv[2]), fresh=False)
for _ in range(4):
    trial = study.ask()
    study.tell(trial, float(trial.number))
print(len(study.trials()))
"""


def test_two_searches_at_the_same_time_share_one_storage(study: Callable[..., Study], tmp_path: Path) -> None:
    url = url_of(str(tmp_path / "trials.db"), tmp_path)
    mine = study()
    with subprocess.Popen([sys.executable, "-c", SHARING, url, "1"], stdout=subprocess.PIPE, text=True) as other:
        asked = []
        while other.poll() is None:
            asked.append(mine.ask())
            mine.tell(asked[-1], 1.0)
            time.sleep(0.1)
        assert other.stdout is not None
        assert int(other.stdout.read()) >= 4
    found = mine.trials()
    assert len(found) == 4 + len(asked)
    assert len({item.number for item in found}) == len(found)
    assert len({item.where for item in found}) == 2


def test_a_proposal_that_was_measured_already_is_no_trial(study: Callable[..., Study]) -> None:
    found = study()
    trial = found.ask()
    found.tell_again(trial, 1.0)
    assert found.trials() == ()


@pytest.mark.parametrize(
    ("url", "error", "said"),
    [
        ("nonsense://here/there", MeasureError, "the trials' database cannot be used"),
        ("postgresql://me:secret@127.0.0.1:1/x", MissingDependency, "DB access module"),
    ],
)
def test_a_database_that_cannot_be_used_is_named_without_its_password(
    url: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said) as caught:
        Study(url, "s", SPACE, seed=0, fresh=False)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_said(tmp_path: Path) -> None:
    (tmp_path / "trials.db").write_text("no database, and long enough to be looked at as one")
    with pytest.raises(MeasureError, match="the trials' database cannot be used"):
        Study(url_of(None, tmp_path), "s", SPACE, seed=0, fresh=False)
