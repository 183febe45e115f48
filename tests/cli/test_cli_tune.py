"""The options of ``repo-builder tune``: what they ask for, and what is refused before anything starts."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import repo_builder as rb
from repo_builder import flows
from repo_builder.cli import run, tune
from repo_builder.core.errors import MeasureError
from repo_builder.core.recipe import reading
from repo_builder.flows.tune import TuneOptions
from tests.conftest import write_model


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)
    found: list[TuneOptions] = []
    monkeypatch.setattr(flows.tune, "tune", lambda options, _: found.append(options))

    def ask(*words: str) -> TuneOptions:
        done = CliRunner().invoke(tune.command, list(words), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return found[-1]

    return ask


def test_options_become_what_is_asked_for(asked: Any) -> None:
    made = asked(
        "vgg", "--max-p99-ms", "20", "--objective", "cost", "--budget", "2m", "--instances", "1:4:x2",
        "--queue-delay-us", "0,100", "--threads", "0,2", "--window-ms", "100", "--patience", "0",
    )  # fmt: skip
    assert (made.model, made.recipe, made.recipe_file) == ("vgg", "vgg", None)
    assert made.budget_s == 120.0
    assert made.choices == {"instances": (1, 2, 4), "max_queue_delay_us": (0, 100), "threads": (0, 2)}
    assert made.pace.window_s == 0.1
    assert made.patience is None
    assert made.apply == frozenset()


def test_python_asks_for_the_same(asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model_repository").mkdir()
    found: list[TuneOptions] = []
    monkeypatch.setattr(flows.tune.run, "tune", lambda options, _: found.append(options))

    def told(model: str, **arguments: Any) -> TuneOptions:
        with pytest.raises(rb.RepoBuilderError, match="nothing was measured"):
            rb.tune(model, **arguments)
        return found[-1]

    assert told("vgg") == asked("vgg")
    assert told(
        "vgg", max_p99_ms=20, objective="cost", budget=120, instances=(4, 1, 2), queue_delay_us=[100, 0],
        threads=(0, 2), window_ms=100, patience=0, trials=5, builds=["other"], shapes={"x": (3, 4)}, batch_size=2,
        apply="both", data="random", url="gpu-7:8001", metrics_url="gpu-7:8002", cores=8,
    ) == asked(
        "vgg", "--max-p99-ms", "20", "--objective", "cost", "--budget", "2m", "--instances", "1:4:x2",
        "--queue-delay-us", "0,100", "--threads", "0,2", "--window-ms", "100", "--patience", "0", "--trials", "5",
        "--build", "other", "--shape", "x:3,4", "--batch-size", "2", "--apply", "both", "--data", "random",
        "--url", "gpu-7:8001", "--metrics-url", "gpu-7:8002", "--cores", "8",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"instances": (0,)}, "instances: 0 is not a whole number from 1"),
        ({"threads": ()}, "threads: there is nothing to choose from"),
        ({"batch_size": 0}, "above 0"),
        ({"rounds": 1}, "rounds: 1 is not a whole number from 2"),
        ({"budget": 3.0}, "too small"),
        ({"budget": float("nan")}, "budget: nan is not a number above 0"),
        ({"max_p99_ms": 0}, "max_p99_ms: 0 is not a number above 0"),
        ({"timeout_s": -1}, "timeout_s: -1 is not a number above 0"),
        ({"objective": "joy"}, "objective: 'joy' is none of throughput, cost"),
        ({"apply": "all"}, "apply: 'all' is not something to write"),
        ({"apply": "config", "url": "gpu-7:8001"}, "none at 'model_repository'"),
        ({"on_error": "retry"}, "on_error"),
    ],
)
def test_python_refuses_in_one_sentence(
    arguments: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MeasureError, match=said):
        rb.tune("vgg", **arguments)


def test_a_recipe_file_names_the_model_and_flags_may_come_first(asked: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(reading.built_in()["jsc"].read_text(encoding="utf-8").replace('"jsc"', '"mine"', 1))
    made = asked("--apply", "mine.toml")
    assert (made.model, made.recipe_file, made.apply) == ("mine", Path("mine.toml"), {"config", "recipe"})
    assert asked("--json", "vgg").model == "vgg"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["vgg", "--objective", "joy"], 2, "'joy' is not one of 'throughput', 'cost'"),
        (["vgg", "--budget", "soon"], 2, "write 90s, 10m or 1h"),
        (["vgg", "--budget", "0s"], 2, "is no time"),
        (["vgg", "--budget", "3s"], 11, "too small"),
        (["vgg", "--max-p99-ms", "nan"], 2, "no number to measure with"),
        (["vgg", "--apply", "all"], 2, "--apply config, recipe or both"),
        (["vgg", "--instances", "0"], 11, "neither numbers above 0"),
        (["vgg"], 9, "repo-builder build"),
        (["nobody.toml"], 3, "nobody.toml"),
        ([], 2, "Missing argument 'MODEL'"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    words: list[str], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(["tune", *words]) == code
    assert said in capsys.readouterr().err


def test_a_port_that_is_taken_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model_repository", "identity")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run(["tune", "identity", "--http-port", str(port)]) == 10
    assert f"port {port} on 127.0.0.1 is in use" in capsys.readouterr().err


def test_a_library_that_is_missing_is_named_with_its_command(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["optuna"] = None
from repo_builder.flows.tune.space import Space
from repo_builder.flows.tune.study import Study
Study("sqlite://", "s", Space(choices={}), seed=0, fresh=False)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert "MissingDependency: tune needs the library 'optuna'" in done.stderr
    assert "pip install 'repo-builder[tune]'" in done.stderr
