"""Builds with ``[finetune]``: from a torch module to a graph in which what was trained is what is placed."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

pytest.importorskip("torch", reason="torch is not installed")

from repo_builder import cli, recipes
from repo_builder.core.errors import DataError, QuantizeError, RecipeError, RepoBuilderError
from repo_builder.core.recipe import Recipe, parse
from repo_builder.flows import build as building
from repo_builder.flows.build import BuildOptions, BuildResult, finetuning

FORMS = ["fp32", "exported", "fine-tuned", "placed", "onnxruntime"]
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, seen):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, 2))
        self.head = nn.Linear(54, 3)
        self.seen = seen

    def forward(self, x):
        found = self.body(x) + 0.5
        if self.seen == "hardmax":
            found = torch.ops.aten.grid_sampler(found, torch.zeros(x.shape[0], 3, 3, 2), 0, 0, True)
        return self.head(torch.flatten(found, 1))

def make(seen="plain"):
    return Net(seen).eval()
"""


def options(folder: Path, recipe: Recipe) -> BuildOptions:
    return BuildOptions(
        recipe=recipe, work=folder / "build", repository=folder / "model_repository", target="onnxruntime"
    )


def jsc(**spec: object) -> Recipe:
    recipe = recipes.load("jsc-tiny", ("quantize.backend=modelopt",))
    return recipe.changed(finetune={"epochs": 2, "batch_size": 512, **spec})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BuildResult, str]:
    """What the command of docs/finetuning.md builds, and what it prints."""
    folder = tmp_path_factory.mktemp("tuned")
    page = (Path(__file__).parents[3] / "docs/finetuning.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^```bash run\n(.*)\n```", page, re.MULTILINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = CliRunner().invoke(cli.group, shlex.split(line)[1:])
    assert done.exit_code == 0, done.output
    result = building.build(options(folder, jsc()))
    assert result.skipped == ("export", "compile", "place")
    return folder, result, done.output


def weights(result: BuildResult) -> dict[str, np.ndarray]:
    model = onnx.load(result.exported.model)
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


def test_a_build_tunes_places_and_says_what_it_changed(built: tuple[Path, BuildResult, str]) -> None:
    folder, result, printed = built
    assert "fine-tuning (modelopt, for onnxruntime-cpu, kept epoch" in printed
    assert [item.form for item in result.engine.accuracy] == FORMS
    placed = next(item for item in result.engine.accuracy if item.form == "placed")
    assert placed.sqnr_db is not None
    assert placed.sqnr_db > 40, "the placed graph computes what was trained"
    tuned = result.exported.details.finetuned
    assert tuned is not None
    assert (tuned.backend, tuned.placement, tuned.epochs) == ("modelopt", "onnxruntime-cpu", 2)
    assert [item.epoch for item in tuned.history] == [0, 1, 2]
    assert tuned.best_epoch > 0
    assert tuned.history[tuned.best_epoch].validation_loss < tuned.history[0].validation_loss
    assert tuned.before.form == "calibrated"
    assert tuned.before.top1 is not None
    assert result.to_dict()["finetuned"]["best_epoch"] == tuned.best_epoch
    assert [item.got for item in result.engine.layers] == ["int8"], "what was trained to be int8 stays so"
    assert not list((folder / "build" / "jsc-tiny").glob("*.resume"))


def test_the_other_back_end_for_another_target(tmp_path: Path) -> None:
    """An artifact that is trained for one target and placed for another says so."""
    recipe = jsc(target="tensorrt", epochs=1).changed(quantize={"backend": "pytorch-quantization"})
    result = building.build(options(tmp_path, recipe))
    tuned = result.exported.details.finetuned
    assert tuned is not None
    assert (tuned.backend, tuned.placement) == ("pytorch-quantization", "tensorrt")
    said = "was fine-tuned for tensorrt and is placed for onnxruntime-cpu"
    assert any(said in note for note in result.engine.details.notes)
    assert recipe.finetune is not None
    as_compiled = dataclasses.replace(recipe.finetune, target="auto")
    assert finetuning.placement(as_compiled, ("onnxruntime-cpu", "7 bits")) == ("onnxruntime-cpu", "7 bits")


def own(folder: Path, *, task: str = "other", labels: bool = True, **changes: object) -> Recipe:
    """Return the recipe of a user's module, with data of a user's."""
    (folder / "net.py").write_text(NET)
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(120, 1, 8, 8)).astype(np.float32)}
    if labels:
        data["labels"] = rng.integers(0, 3, 120)
    np.savez(folder / "data.npz", **data)
    value = {
        "name": "own",
        "model": {
            "source": f"{folder / 'net.py'}:make",
            "inputs": [{"name": "x", "dtype": "fp32", "shape": [1, 8, 8]}],
            "outputs": [{"name": "y", "dtype": "fp32", "shape": [3]}],
        },
        "data": {"source": str(folder / "data.npz"), "calibration": 16},
        "quantize": {"layers": [{"precision": "int8"}]},
        "measure": {"task": task},
        "finetune": {"epochs": 1, "batch_size": 16, "learning_rate": 1e-3},
    }
    return parse(value).changed(**changes)


def placed_db(result: BuildResult) -> float:
    return next(item.sqnr_db or 0.0 for item in result.engine.accuracy if item.form == "placed")


def accepting(folder: Path, recipe: Recipe) -> BuildOptions:
    """Noise is data here, whose classes no network tells apart."""
    return dataclasses.replace(options(folder, recipe), accept_departure=True)


@pytest.fixture(scope="module")
def with_labels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, BuildResult]:
    folder = tmp_path_factory.mktemp("own")
    recipe = own(folder, task="classification", finetune={"loss": "cross-entropy", "epochs": 2})
    return recipe, building.build(accepting(folder, recipe))


def test_a_user_s_module_with_labels(with_labels: tuple[Recipe, BuildResult]) -> None:
    _, result = with_labels
    tuned = result.exported.details.finetuned
    assert tuned is not None
    assert (tuned.backend, tuned.loss, len(tuned.history)) == ("onnxruntime", "cross-entropy", 3)
    assert tuned.history[0].validation_top1 is not None
    assert placed_db(result) > 35


def test_a_user_s_module_without_labels(tmp_path: Path) -> None:
    result = building.build(accepting(tmp_path, own(tmp_path, labels=False)))
    tuned = result.exported.details.finetuned
    assert tuned is not None
    assert tuned.loss == "distillation"
    assert tuned.history[0].validation_top1 is tuned.before.top1 is None
    assert tuned.before.sqnr_db is not None
    assert placed_db(result) > 35


KILLED = """
import json, os, signal, sys
from pathlib import Path
from repo_builder.core.recipe import parse
from repo_builder.flows import build as building
from repo_builder.models import finetuning

remember = finetuning.remember

def killed(*arguments):
    remember(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)

finetuning.remember = killed
folder = Path(sys.argv[1])
building.build(building.BuildOptions(recipe=parse(json.loads(sys.argv[2])), work=folder / "build",
    repository=folder / "model_repository", target="onnxruntime"))
"""


def test_a_killed_build_goes_on_where_it_was(with_labels: tuple[Recipe, BuildResult], tmp_path: Path) -> None:
    recipe, whole = with_labels
    state = finetuning.state_file(tmp_path / "build", recipe).with_suffix(".resume")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), json.dumps(recipe.to_dict())], capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert state.is_file()
    assert not list((tmp_path / "model_repository").glob("*"))
    result = building.build(accepting(tmp_path, recipe))
    assert result.exported.details.finetuned == whole.exported.details.finetuned
    for name, value in weights(whole).items():
        np.testing.assert_array_equal(weights(result)[name], value)
    assert not state.exists()


REFUSED: list[tuple[str, dict[str, object], type[RepoBuilderError], str]] = [
    ("an .onnx file", {"model": {"source": "net.onnx"}}, RecipeError, "a torch module is fine-tuned, and the model is"),
    ("no int8", {"quantize": {"layers": [{"precision": "fp16"}]}}, RecipeError, "no rule asks for int8"),
    ("no classes", {"finetune": {"loss": "cross-entropy"}}, RecipeError, "cross-entropy is for outputs"),
    ("all held out", {"data": {"arguments": {"split": "test"}}}, DataError, "every sample is held out"),
    ("an operator", {"model": {"arguments": {"seen": "hardmax"}}}, QuantizeError, "the operator GridSample"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "changes", "kind", "said"), REFUSED, ids=[item[0] for item in REFUSED])
def test_what_cannot_be_tuned_is_refused_in_a_sentence(
    tmp_path: Path, what: str, changes: dict[str, object], kind: type[RepoBuilderError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        building.build(options(tmp_path, own(tmp_path, labels=False, **changes)))
    assert not list((tmp_path / "model_repository").glob("*"))
