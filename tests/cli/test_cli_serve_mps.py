"""What ``repo-builder serve`` says of CUDA MPS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from repo_builder.cli import serve_mps
from repo_builder.serve.run import embedded
from repo_builder.serve.run.mps import Mps

PLAN = 'backend: "tensorrt" max_batch_size: 8 '


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return what is said of a server without MPS on a repository: model → text of config.pbtxt."""
    monkeypatch.setattr(embedded, "mps_is_idle", lambda: True)

    def before(models: Sequence[str] = (), **configs: str) -> str:
        for name, text in configs.items():
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.pbtxt").write_text(text)
        serve_mps.before(SimpleNamespace(mps=None, models=tuple(models)), tmp_path)
        return capsys.readouterr().err

    return before


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (PLAN, 0),
        (PLAN + "instance_group [ { count: 4 kind: KIND_GPU } ]", 4),
        (PLAN + "instance_group [ { count: 4 } ]", 4),
        (PLAN + "instance_group [ { kind: KIND_GPU }, { kind: KIND_GPU } ]", 2),
        (PLAN + "instance_group [ { count: 1 gpus: [ 0, 1 ] } ]", 0),
        (PLAN + "instance_group [ { count: 2 gpus: [ 1 ] }, { count: 3 kind: KIND_GPU } ]", 5),
        (PLAN + "instance_group [ { count: 4 kind: KIND_CPU } ]", 0),
        (PLAN + "instance_group [ { count: ", 0),
        (PLAN.replace("tensorrt", "onnxruntime") + "# not tensorrt\ninstance_group [ { count: 4 } ]", 0),
    ],
)
def test_several_instances_of_a_plan_on_a_gpu_are_worth_a_hint(say: Any, text: str, count: int) -> None:
    expected = f"hint: the {count} instances of 'vgg' take turns on the GPU, each in a process of its own; "
    assert say(vgg=text) == (expected + "with --mps they use it at the same time\n" if count else "")


def test_the_most_crowded_of_the_models_served_is_named(say: Any) -> None:
    crowds = {name: f"{PLAN} instance_group [ {{ count: {count} }} ]" for name, count in (("a", 2), ("b", 9), ("c", 3))}
    assert "the 9 instances of 'b'" in say(**crowds)
    assert "the 3 instances of 'c'" in say(models=["a", "c"])


def test_where_mps_would_not_help_nothing_is_said(say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "mps_is_idle", lambda: False)
    assert say(vgg=PLAN + "instance_group [ { count: 4 } ]") == ""


def test_which_mps_is_used_is_said_where_it_is_not_the_server_s_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for started, said in ((True, ""), (False, "mps: the one that runs already is used (/pipes)\n")):
        mps = Mps(control=Path("/bin/false"), pipes=Path("/pipes"), started=started)
        serve_mps.before(SimpleNamespace(mps=mps, models=()), tmp_path)
        assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("clients", "said", "cell"),
    [
        (None, "warning: its control daemon does not answer", "no answer"),
        ([], "warning: no process of Triton uses it", "0 processes"),
        ([7], "1 process uses the GPU", "1 process"),
        ([7, 8], "2 processes share the GPU", "2 processes"),
    ],
)
def test_who_uses_it_is_said(monkeypatch: pytest.MonkeyPatch, clients: list[int] | None, said: str, cell: str) -> None:
    monkeypatch.setattr(Mps, "clients", lambda *_: clients)
    mps = Mps(control=Path("/bin/false"), pipes=Path("/pipes"), started=True)
    assert serve_mps.words(clients).startswith(said)
    assert serve_mps.cell(mps, 1) == cell
    shown = serve_mps.shown(mps, 1)
    assert shown == {"control": "/bin/false", "pipes": "/pipes", "started": True, "clients": clients}
    assert (serve_mps.cell(None, 1), serve_mps.shown(None, 1)) == ("-", None)
