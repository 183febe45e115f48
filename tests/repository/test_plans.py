"""TensorRT plans against their configuration and this machine, as `validate` and `serve` ask; no TensorRT, no GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from repo_builder.core import environment
from repo_builder.core.artifacts import EngineArtifact
from repo_builder.core.environment import Gpu
from repo_builder.core.errors import CompileError, MissingDependency
from repo_builder.core.profiles import PlanSignature
from repo_builder.core.tensors import DType, ShapeProfile, TensorSpec
from repo_builder.repository import layout
from repo_builder.repository import validate as validate_module
from repo_builder.repository.checks.findings import Finding, Missing
from repo_builder.repository.validate import preflight, validate

H200 = Gpu(name="NVIDIA H200", compute_capability="9.0", memory_mib=143771, driver="580.159.04")
H100 = Gpu(name="NVIDIA H100", compute_capability="9.0", memory_mib=81559, driver="580.159.04")
T4 = Gpu(name="Tesla T4", compute_capability="7.5", memory_mib=15360, driver="580.159.04")
AGAIN = "repo-builder compile build/toy --target tensorrt, on this machine"
VARYING = {
    "source": "jsc",
    "inputs": [{"name": "x", "dtype": "fp32", "shape": [3, -1]}],
    "outputs": [{"name": "y", "dtype": "fp32", "shape": [4]}],
}
Place = Callable[..., Path]


def _profile(low: list[int], high: list[int]) -> dict[str, dict[str, list[int]]]:
    return {"x": {"min": low, "opt": high, "max": high}}


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """This machine, to be changed: the one that the plans are built for."""
    machine: dict[str, Any] = {"gpus": (H200,), "tensorrt": "8.5.3.1"}
    monkeypatch.setattr(environment, "gpus", lambda: machine["gpus"])
    monkeypatch.setattr(environment, "version", machine.get)
    return machine


@pytest.fixture
def place(make_engine: Callable[..., EngineArtifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Return what places a plan, with its manifest, in a repository."""

    monkeypatch.setattr(validate_module, "refuse_staged", lambda *_: None)  # what is wrong is placed here, to be found

    def make(*, tables: dict[str, Any] | None = None, **details: Any) -> Path:
        made_for = {"gpu": "NVIDIA H200", "compute_capability": "9.0", "tensorrt_version": "8.5.3.1"}
        details = {"profiles": [_profile([1, 4], [64, 4])], **made_for, **details}
        return layout.place(make_engine(target="tensorrt", details=details, **(tables or {})), tmp_path / "r")

    return make


def no_tensorrt(plan: Path) -> PlanSignature:
    raise MissingDependency("TensorRT is not here")


def checked(folder: Path, ask_engine: Any = no_tensorrt) -> tuple[Finding, ...]:
    return validate(folder.parent, ask_engine=ask_engine)


def started(folder: Path, ask_engine: Any = no_tensorrt) -> tuple[Finding, ...]:
    return preflight(folder.parent, [folder.name], ask_engine=ask_engine)


def refusal(folder: Path, ask_engine: Any = no_tensorrt) -> Finding:
    """The one error, which both commands tell alike."""
    (found,) = checked(folder, ask_engine)
    assert started(folder, ask_engine) == (found,)
    assert found.level == "error"
    return found


def edit(folder: Path, old: str, new: str) -> None:
    text = (folder / "config.pbtxt").read_text()
    assert old in text
    (folder / "config.pbtxt").write_text(text.replace(old, new))


def record(folder: Path, **details: Any) -> None:
    """Change what the manifest says of the plan."""
    manifest = folder / "1" / "manifest.json"
    document = json.loads(manifest.read_text())
    document["details"].update(details)
    manifest.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_batch_size: 64", "max_batch_size: 128", "max_batch_size is 128, and the plan's profiles end at 64"),
        ("dims: [ 4 ]", "dims: [ 5 ]", "input 'x' has dims [5], and the plan's profiles take [4] to [4]"),
        ("dims: [ 4 ]", "dims: [ 5 ]", "output 'y' has dims [5], and the plan [4]"),
        ('name: "x"', 'name: "z"', "input 'z' is not in the plan"),
        ('name: "x"', 'name: "z"', "does not name the plan's input 'x'"),
        ('name: "y"', 'name: "z"', "output 'z' is not in the plan"),
        ("TYPE_FP32", "TYPE_FP16", "input 'x' is TYPE_FP16, and TYPE_FP32 in the plan"),
        ("KIND_GPU", 'KIND_GPU profile: [ "1" ]', "names the optimization profile 1, and the plan has 1"),
    ],
)
def test_a_plan_must_cover_the_configuration(place: Place, old: str, new: str, message: str) -> None:
    folder = place()
    assert checked(folder) == started(folder) == ()
    edit(folder, old, new)
    for found in (checked(folder), started(folder)):
        assert any(message in item.message for item in found if item.level == "error"), found


def test_a_profile_is_a_number_and_a_plan_runs_on_gpus(place: Place) -> None:
    for new, message in (("KIND_CPU", "runs on GPUs only"), ('KIND_GPU profile: [ "a" ]', "names the profile 'a'")):
        folder = place()
        edit(folder, "KIND_GPU", new)
        assert message in checked(folder)[0].message


def test_batches_beyond_the_profiles_are_told_with_both_repairs(place: Place) -> None:
    folder = place()
    edit(folder, "max_batch_size: 64", "max_batch_size: 128")
    assert refusal(folder).hint == "set max_batch_size: 64, or compile with --set repository.max_batch_size=128"


@pytest.mark.parametrize("dims", ["3, 8", "3, 1", "3, 9", "3, -1", "-1, 8"])
def test_dims_within_the_profiles(place: Place, dims: str) -> None:
    folder = place(tables={"model": VARYING}, profiles=[_profile([1, 3, 1], [64, 3, 9])])
    edit(folder, "dims: [ 3, -1 ]", f"dims: [ {dims} ]")
    assert started(folder) == ()


@pytest.mark.parametrize("dims", ["3, 10", "1, 8", "3"])
def test_dims_beyond_the_profiles(place: Place, dims: str) -> None:
    profiles = [_profile([1, 3, 1], [64, 3, 4]), _profile([1, 3, 5], [64, 3, 9])]
    folder = place(tables={"model": VARYING}, profiles=profiles)
    edit(folder, "dims: [ 3, -1 ]", f"dims: [ {dims} ]")
    (found,) = started(folder)
    assert found.message.endswith("the plan's profiles take [3, 1] to [3, 4], [3, 5] to [3, 9]")
    assert found.hint.endswith(AGAIN)


def test_whole_shapes_where_there_is_no_batching(place: Place) -> None:
    folder = place(max_batch_size=0)
    assert "dims: [ -1, 4 ]" in (folder / "config.pbtxt").read_text()
    assert checked(folder) == started(folder) == ()


def test_inputs_that_sequences_fill_are_named(place: Place) -> None:
    folder = place(profiles=[{**_profile([1, 4], [64, 4]), "START": {"min": [1, 1], "opt": [8, 1], "max": [64, 1]}}])
    assert refusal(folder).message == "does not name the plan's input 'START'"
    control = '[ { name: "START" control { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } } ]'
    text = (folder / "config.pbtxt").read_text().partition("dynamic_batching")[0]
    (folder / "config.pbtxt").write_text(f"{text}\nsequence_batching {{ control_input {control} }}")
    assert started(folder) == ()


@pytest.mark.parametrize("profiles", ["x", [3], [{"x": 3}], [{"x": {"min": [1]}}], [{}], [_profile([], [])]])
def test_damaged_profiles_are_told(place: Place, profiles: Any) -> None:
    folder = place()
    record(folder, profiles=profiles)
    assert started(folder) == checked(folder)
    first, second = checked(folder)
    assert (first.level, first.path) == ("warning", "toy/1/manifest.json")
    assert "is damaged (details" in first.message
    assert (second.level, second.path) == ("info", "toy/1/model.plan")


def test_several_profiles_cover_together(place: Place) -> None:
    folder = place(profiles=[_profile([1, 4], [1, 4]), _profile([2, 4], [64, 4])])
    assert checked(folder) == ()
    edit(folder, 'profile: [ "0", "1" ]', 'profile: [ "0" ]')
    assert "end at 1" in refusal(folder).message
    assert "name those of the plan's profiles that go further" in refusal(folder).hint
    edit(folder, 'profile: [ "0" ]', 'profile: [ "1" ]')
    assert refusal(folder).message == "Triton may send x [1, 4], and the plan's profiles do not take that"


def test_batches_between_two_profiles_are_refused(place: Place) -> None:
    found = refusal(place(profiles=[_profile([1, 4], [4, 4]), _profile([8, 4], [64, 4])]))
    assert found.message == "Triton may send x [5, 4], and the plan's profiles do not take that"
    assert "without a gap" in found.hint


def test_each_instance_group_must_cover_the_largest_batch(place: Place) -> None:
    folder = place(profiles=[_profile([1, 4], [4, 4]), _profile([1, 4], [64, 4])])
    text = (folder / "config.pbtxt").read_text()
    before, _, rest = text.partition("instance_group [")
    behind = rest[rest.index("dynamic_batching") :]
    for second, messages in (
        ("", ["max_batch_size is 64, and the profiles of instance_group 1 end at 4"]),  # the first profile
        ('profile: [ "0", "1" ]', []),
    ):
        groups = f'{{ name: "a" kind: KIND_GPU profile: [ "1" ] }}, {{ kind: KIND_GPU {second} }}'
        (folder / "config.pbtxt").write_text(f"{before}instance_group [ {groups} ]\n{behind}")
        assert checked(folder) == started(folder)
        assert [item.message for item in checked(folder)] == messages


def test_the_largest_batch_must_be_there_for_every_length(place: Place) -> None:
    folder = place(profiles=[_profile([1, 4], [4, 512]), _profile([1, 4], [64, 16])])
    assert checked(folder) == ()  # of the four elements that the configuration says
    edit(folder, "dims: [ 4 ]\n  }\n]\noutput", "dims: [ -1 ]\n  }\n]\noutput")
    assert refusal(folder).message == "Triton may send x [5, 17], and the plan's profiles do not take that"


def test_an_input_without_a_batch_goes_with_no_batching(place: Place) -> None:
    folder = place()
    (folder / "1" / "manifest.json").unlink()

    def ask(plan: Path) -> PlanSignature:
        number = ShapeProfile(min=(), opt=(), max=())
        return PlanSignature(
            inputs=(), outputs=(), profiles=({"x": ShapeProfile(min=(1, 4), opt=(64, 4), max=(64, 4)), "k": number},)
        )

    assert "an input of the plan has no batch" in started(folder, ask)[-1].message


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tensorrt": "10.13.3.9"}, "was built by TensorRT 8.5.3.1, and 10.13.3.9 is installed here"),
        ({"gpus": (T4, T4)}, "was built for NVIDIA H200 (compute capability 9.0), and here is Tesla T4 (7.5)"),
        ({"gpus": (H100,)}, "was tuned for NVIDIA H200, and here is NVIDIA H100 (9.0)"),
    ],
)
def test_a_plan_for_another_machine_is_told_with_the_command(
    place: Place, here: dict[str, Any], changed: dict[str, Any], said: str
) -> None:
    folder = place()
    here.update(changed)
    found = refusal(folder)
    assert (found.path, found.message, found.hint) == ("toy/1/model.plan", said, AGAIN)


def test_one_of_several_gpus_is_enough(place: Place, here: dict[str, Any]) -> None:
    here["gpus"] = (T4, H200)
    assert started(place()) == ()


def test_a_second_problem_is_told_too(place: Place, here: dict[str, Any]) -> None:
    folder = place()
    edit(folder, "max_batch_size: 64", "max_batch_size: 128")
    here["tensorrt"] = "10.0.1"
    assert len(started(folder)) == 2


def test_what_is_not_here_keeps_a_plan_from_being_served_and_tells_nothing_else(
    place: Place, here: dict[str, Any]
) -> None:
    folder = place()
    here["tensorrt"] = None
    assert checked(folder) == ()
    assert started(folder)[0].hint == "pip install 'repo-builder[tensorrt]'"
    assert isinstance(started(folder)[0], Missing)
    here.update(gpus=(), tensorrt="10.0.1")
    assert checked(folder) == ()
    (found,) = started(folder)
    assert "needs an NVIDIA GPU" in found.message


def test_a_container_brings_its_own_tensorrt(place: Place, here: dict[str, Any]) -> None:
    for version in ("10.13.3.9", None):
        here["tensorrt"] = version
        assert started(place(), None) == ()


def test_only_versions_that_are_served_count(place: Place) -> None:
    folder = place(tensorrt_version="8.4.0.1")
    (folder / "2").mkdir()
    (folder / "2" / "model.plan").write_bytes(b"plan")
    assert [item.level for item in started(folder)] == ["info"]  # of version 2


def test_a_configuration_that_is_none_is_left_to_triton(place: Place) -> None:
    folder = place()
    (folder / "config.pbtxt").write_text("max_batchsize: 4")
    assert started(folder) == ()
    assert [item.level for item in checked(folder)] == ["error"]


# --- without a manifest ---------------------------------------------------------------------------------------------


def test_the_engine_is_asked(place: Place) -> None:
    folder = place()
    (folder / "1" / "manifest.json").unlink()
    (found,) = checked(folder)
    assert (found.level, found.path) == ("info", "toy/1/model.plan")
    assert "only its engine can tell" in found.message
    assert started(folder, None) == (found,)

    def ask(plan: Path) -> PlanSignature:
        assert plan == folder / "1" / "model.plan"
        return engine(8)

    assert "end at 8" in refusal(folder, ask).message
    edit(folder, "max_batch_size: 64", "max_batch_size: 8")
    assert started(folder, ask) == ()
    edit(folder, 'name: "x"', 'name: "z"')
    assert started(folder, ask)[0].hint == "there are: x"


def engine(largest: int, *output: int) -> PlanSignature:
    """What an engine says of itself that takes batches of up to ``largest``."""
    return PlanSignature(
        inputs=(TensorSpec(name="x", dtype=DType.FP32, shape=(4,)),),
        outputs=(TensorSpec(name="y", dtype=DType.FP32, shape=output or (4,)),),
        profiles=({"x": ShapeProfile(min=(1, 4), opt=(2, 4), max=(largest, 4))},),
    )


def test_types_and_outputs_are_those_of_the_engine(place: Place) -> None:
    folder = place()
    (folder / "1" / "manifest.json").unlink()
    assert checked(folder, lambda _: engine(64)) == ()
    assert checked(folder, lambda _: engine(64, -1)) == ()  # what varies may be said
    assert "dims [4], and the plan [5]" in refusal(folder, lambda _: engine(64, 5)).message
    edit(folder, "TYPE_FP32", "TYPE_FP16")
    edit(folder, 'name: "y"', 'name: "z"')
    assert checked(folder, lambda _: engine(64)) == started(folder, lambda _: engine(64))
    assert [item.message for item in checked(folder, lambda _: engine(64))] == [
        "input 'x' is TYPE_FP16, and TYPE_FP32 in the plan",
        "output 'z' is not in the plan",
    ]


def test_no_engine_is_asked_where_it_cannot_be_loaded(place: Place, here: dict[str, Any]) -> None:
    folder = place()
    (folder / "1" / "manifest.json").unlink()
    here["gpus"] = ()

    def ask(plan: Path) -> PlanSignature:
        raise AssertionError

    assert [item.level for item in checked(folder, ask)] == ["info"]
    assert [item.level for item in started(folder, ask)] == ["error"]


def test_an_engine_that_does_not_load_is_told(place: Place) -> None:
    folder = place()
    (folder / "1" / "manifest.json").unlink()

    def ask(plan: Path) -> PlanSignature:
        raise CompileError("TensorRT 8.5.3.1 cannot load the plan: magic tag does not match")

    found = refusal(folder, ask)
    assert "magic tag does not match" in found.message
    assert found.hint == AGAIN


def test_a_manifest_that_is_damaged_or_about_another_file_says_nothing(place: Place) -> None:
    folder = place()
    plan, manifest = folder / "1" / "model.plan", folder / "1" / "manifest.json"
    plan.write_bytes(b"another")
    whole = json.loads(manifest.read_text())
    for text, level, message in (
        (manifest.read_text(), "error", "is about another model.plan"),
        ("{", "warning", "cannot be understood"),
        (json.dumps({"schema": 2, "kind": "engine"}), "warning", "is damaged (the key 'key' is missing)"),
        (json.dumps(whole | {"details": []}), "warning", "is damaged (details: expected a table, found [])"),
        (json.dumps(whole | {"files": {}}), "warning", "does not say which model.plan it is about"),
    ):
        manifest.write_text(text)
        assert started(folder) == checked(folder)
        first, second = checked(folder)
        assert (first.level, first.path) == (level, "toy/1/manifest.json")
        assert message in first.message
        assert (second.level, second.path) == ("info", "toy/1/model.plan")
        assert "has no manifest" not in second.message
