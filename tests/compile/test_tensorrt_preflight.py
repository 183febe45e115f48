"""What keeps a plan from being served here, told from manifests; no TensorRT, no GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from repo_builder import loading
from repo_builder.compile import trt_preflight
from repo_builder.compile.trt_preflight import preflight
from repo_builder.environment import Gpu
from repo_builder.errors import CompileError, MissingDependency
from repo_builder.tensors import ShapeProfile

H200 = Gpu(name="NVIDIA H200", compute_capability="9.0", memory_mib=143771, driver="580.159.04")
H100 = Gpu(name="NVIDIA H100", compute_capability="9.0", memory_mib=81559, driver="580.159.04")
T4 = Gpu(name="Tesla T4", compute_capability="7.5", memory_mib=15360, driver="580.159.04")
DETAILS = {
    "tensorrt_version": "8.5.3.1",
    "gpu": "NVIDIA H200",
    "compute_capability": "9.0",
    "profiles": [{"image": {"min": [1, 3, 8, 8], "opt": [8, 3, 8, 8], "max": [16, 3, 8, 32]}}],
}
Make = Callable[..., Path]


@pytest.fixture
def model(tmp_path: Path) -> Make:
    def make(
        *, batch: int = 16, dims: str = "[3, 8, 8]", extra: str = "", manifest: bool = True, **details: Any
    ) -> Path:
        folder = tmp_path / "net"
        (folder / "1").mkdir(parents=True)
        (folder / "1" / "model.plan").write_bytes(b"plan")
        text = f'name: "net" backend: "tensorrt" max_batch_size: {batch}\n'
        text += f'input [ {{ name: "image" data_type: TYPE_FP32 dims: {dims} }} ]\n{extra}'
        (folder / "config.pbtxt").write_text(text)
        if manifest:
            (folder / "1" / "manifest.json").write_text(json.dumps({"details": DETAILS | details}))
        return folder

    return make


def told(folder: Path, **changes: Any) -> list[str]:
    here: dict[str, Any] = {"installed": "8.5.3.1", "gpus": (H200,)} | changes
    return [str(problem) for problem in preflight(folder, **here)]


def test_a_plan_for_this_machine_passes(model: Make) -> None:
    assert told(model()) == []


def test_a_model_without_plans_passes(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.onnx").write_bytes(b"")
    assert told(tmp_path, gpus=()) == []


@pytest.mark.parametrize(
    ("here", "said"),
    [
        ({"installed": "10.13.3.9"}, "was built by TensorRT 8.5.3.1, and here is 10.13.3.9"),
        ({"gpus": (T4,)}, "built for NVIDIA H200 (compute capability 9.0), and here is Tesla T4 (7.5)"),
        ({"gpus": (H100,)}, "was tuned for NVIDIA H200, and here is NVIDIA H100 (9.0)"),
    ],
)
def test_a_plan_for_another_machine_is_told_with_the_command(model: Make, here: dict[str, Any], said: str) -> None:
    (problem,) = told(model(), **here)
    assert said in problem
    assert problem.endswith("→ repo-builder compile build/net --target tensorrt, on this machine")


def test_without_a_gpu(model: Make) -> None:
    (problem,) = told(model(), gpus=())
    assert "needs an NVIDIA GPU" in problem


def test_without_tensorrt(model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt_preflight.environment, "version", lambda _: None)
    (problem,) = told(model(), installed=None)
    assert "pip install 'repo-builder[tensorrt]'" in problem


def test_a_container_brings_its_own_tensorrt(model: Make) -> None:
    assert told(model(), installed="10.13.3.9", container=True) == []


def test_one_of_several_gpus_is_enough(model: Make) -> None:
    assert told(model(), gpus=(T4, H200)) == []


def test_batches_beyond_the_profiles(model: Make) -> None:
    (problem,) = told(model(batch=64))
    assert "max_batch_size is 64, and the plan's profiles end at 16" in problem
    assert "--set repository.max_batch_size=64" in problem


@pytest.mark.parametrize("dims", ["[3, 8, 9]", "[3, 8, 32]", "[3, 8, -1]", "[-1, 8, 8]"])
def test_dims_within_the_profiles(model: Make, dims: str) -> None:
    assert told(model(dims=dims)) == []


@pytest.mark.parametrize("dims", ["[3, 8, 33]", "[1, 8, 8]", "[3, 8]"])
def test_dims_beyond_the_profiles(model: Make, dims: str) -> None:
    (problem,) = told(model(dims=dims))
    assert "the input 'image' has dims" in problem


def test_an_input_that_the_plan_has_not(model: Make) -> None:
    folder = model()
    text = (folder / "config.pbtxt").read_text()
    (folder / "config.pbtxt").write_text(text.replace('"image"', '"picture"'))
    (problem,) = told(folder)
    assert "the plan has no input 'picture'" in problem
    assert "its inputs are image" in problem


def test_whole_shapes_where_there_is_no_batching(model: Make) -> None:
    assert told(model(batch=0, dims="[-1, 3, 8, 8]")) == []


def test_a_profile_that_the_plan_has_not(model: Make) -> None:
    group = 'instance_group [ { kind: KIND_GPU profile: [ "0", "3" ] } ]'
    (problem,) = told(model(extra=group))
    assert "names the optimization profile 3, and the plan has 1" in problem


def test_only_profiles_in_use_count(model: Make) -> None:
    profiles = [DETAILS["profiles"][0], {"image": {"min": [1, 3, 8, 8], "opt": [64, 3, 8, 8], "max": [64, 3, 8, 8]}}]
    group = 'instance_group [ { kind: KIND_GPU profile: [ "0", "1" ] } ]'
    assert told(model(batch=64, extra=group, profiles=profiles)) == []


def test_a_second_problem_is_told_too(model: Make) -> None:
    assert len(told(model(batch=64), installed="10.0.1")) == 2


def test_without_a_manifest_the_engine_is_asked(model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    class Plan:
        profiles = ({"image": ShapeProfile(min=(1, 3, 8, 8), opt=(2, 3, 8, 8), max=(4, 3, 8, 8))},)

        @classmethod
        def load(cls, path: Path) -> Plan:
            return cls()

    monkeypatch.setattr(loading, "load", lambda *_, **__: Plan)
    folder = model(manifest=False)
    (problem,) = told(folder)
    assert "end at 4" in problem
    assert told(folder, only_bare=True) == [problem]


def test_plans_with_a_manifest_can_be_left_out(model: Make) -> None:
    folder = model(tensorrt_version="8.4.0.1")
    assert len(told(folder)) == 1
    assert told(folder, only_bare=True) == []


@pytest.mark.parametrize("damage", ["", "{", '{"details": 3}', "[]"])
def test_a_damaged_manifest_is_none(model: Make, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise MissingDependency("TensorRT is not here")

    monkeypatch.setattr(loading, "load", load)
    folder = model()
    (folder / "1" / "manifest.json").write_text(damage)
    assert told(folder) == []


@pytest.mark.parametrize("profiles", ["x", [3], [{"image": 3}], [{"image": {"min": [1]}}]])
def test_damaged_profiles_are_told(model: Make, profiles: Any) -> None:
    (problem,) = told(model(profiles=profiles))
    assert "manifest.json: the profiles in it are damaged" in problem
    assert "repo-builder compile build/net" in problem


def test_an_engine_that_does_not_load_is_told(model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    class Plan:
        @staticmethod
        def load(path: Path) -> Any:
            raise CompileError("TensorRT 8.5.3.1 cannot load the plan: magic tag does not match")

    monkeypatch.setattr(loading, "load", lambda *_, **__: Plan)
    (problem,) = told(model(manifest=False))
    assert "magic tag does not match → repo-builder compile build/net" in problem
