"""What the layers of a compiled model are, told by the manifest beside it, by the engine, or by both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repo_builder.compile.tensorrt import inspector
from repo_builder.compile.tensorrt.inspector import EngineLayer
from repo_builder.core import artifacts, codec, environment, files, loading, pipelines
from repo_builder.core.artifacts import MANIFEST, EngineArtifact
from repo_builder.core.details import TensorRTDetails
from repo_builder.core.errors import CompileError, MissingDependency, RepositoryError
from repo_builder.core.profiles import PlanSignature
from repo_builder.core.records import Verdict
from repo_builder.core.tensors import TensorSpec

if TYPE_CHECKING:
    from repo_builder.compile.tensorrt.plan import Plan

_FACTS = (
    "tensorrt_version", "cuda_version", "driver", "gpu", "compute_capability", "flags", "build_seconds", "plan_bytes",
    "precision_counts", "profiles",
)  # fmt: skip
_REPAIR = "place the model again, or remove the manifest"
_SUFFIXES = (".plan", ".onnx", ".engine", ".trt")  # the latter two are what others call plans


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was found.

    Attributes:
        model: The file that was looked at.
        source: Where it was told: ``manifest``, ``engine`` or both, as in ``manifest, engine``.
        facts: What the model was built with and for, as plain JSON values.
        verdicts: Layers of the recipe, asked against got; empty without a manifest.
        layers: Layers of the engine; empty without TensorRT and a GPU.
        ignored: Why the manifest beside the model was not believed; empty where it was, or where there is none.
    """

    model: Path
    source: str
    facts: dict[str, Any]
    verdicts: tuple[Verdict, ...]
    layers: tuple[EngineLayer, ...]
    ignored: str = ""


def locate(path: Path) -> Path:
    """Return the model file that a path means.

    Args:
        path: A .plan or .onnx file, a version's folder, a model's folder (its newest version) or ``build/NAME``.

    Raises:
        RepositoryError: There is no model there.
    """
    if path.is_file():
        if path.suffix not in _SUFFIXES:
            hint = "name a .plan or an .onnx file, or a model's folder"
            raise RepositoryError("is neither a plan nor an ONNX file by its name", where=str(path), hint=hint)
        return path
    if not path.is_dir():
        raise RepositoryError("there is no such file or folder", where=str(path), hint="repo-builder build makes one")
    models = pipelines.marked(path).get("models", [])
    inside = [path.parent / Path(str(name)).name for name in models if str(name).endswith(f".{pipelines.NETWORK}")]
    if inside and inside[0] != path and not list(path.glob("*/model.*")):  # an ensemble: the network among its models
        return locate(inside[0])
    versions = sorted((item for item in path.iterdir() if item.name.isdigit()), key=lambda item: int(item.name))
    for folder in (path, path / "engine", *reversed(versions)):
        for name in ("model.plan", "model.onnx"):
            if (folder / name).is_file():
                return folder / name
    raise RepositoryError(
        "holds no model.plan and no model.onnx", where=str(path), hint="name a model's folder, as model_repository/vgg"
    )


def inspect_plan(plan: Path) -> Inspection:
    """Ask the manifest beside a plan, if it is this plan's, and the engine, if it can be loaded here.

    Raises:
        MissingDependency: There is no manifest, and TensorRT is not installed.
        CompileError: There is no manifest, and TensorRT cannot load the plan.
        RepositoryError: There is one that is damaged or about another plan, and the engine cannot be asked.
    """
    facts, verdicts, ignored = _from_manifest(plan)
    layers: tuple[EngineLayer, ...] = ()
    told_by_manifest = bool(facts)
    if environment.gpus() or not facts:
        try:
            loaded = _load(plan)
        except (MissingDependency, CompileError) as error:
            if ignored:
                message = f"{ignored}, and the engine cannot be asked: {error.message}"
                raise RepositoryError(message, where=str(plan.parent / MANIFEST), hint=_REPAIR) from error
            if not facts:  # with them the manifest is enough, also for another machine's plan
                raise
        else:
            layers = inspector.parse(loaded.inspect())
            facts.setdefault("profiles", codec.plain(loaded.profiles))
    told = [name for name, there in (("manifest", told_by_manifest), ("engine", layers)) if there]
    source = ", ".join(told)
    return Inspection(model=plan, source=source, facts=facts, verdicts=verdicts, layers=layers, ignored=ignored)


def ask_engine(plan: Path) -> PlanSignature:
    """Return the tensors and the optimization profiles that a plan's engine has.

    Raises:
        MissingDependency: TensorRT is not installed.
        CompileError: TensorRT cannot load the plan.
    """
    loaded = _load(plan)
    inputs, outputs = (
        tuple(TensorSpec(name=item.name, dtype=item.dtype, shape=tuple(item.shape[1:])) for item in tensors)
        for tensors in (loaded.inputs, loaded.outputs)
    )
    return PlanSignature(inputs=inputs, outputs=outputs, profiles=loaded.profiles)


def _load(plan: Path) -> Plan:
    with loading.needs("tensorrt", what="looking into a plan"):
        from repo_builder.compile.tensorrt.plan import Plan
    return Plan.load(plan)


def _from_manifest(plan: Path) -> tuple[dict[str, Any], tuple[Verdict, ...], str]:
    """Return what the manifest beside a plan tells, and why it tells nothing where it is not believed."""
    if not (plan.parent / MANIFEST).exists():
        return {}, (), ""
    try:
        artifact = artifacts.read(EngineArtifact, plan.parent)
    except RepositoryError as error:
        return {}, (), error.message
    details = artifact.details
    told = codec.plain(details)
    facts = {name: told[name] for name in _FACTS if told.get(name)}
    if not artifact.files or not isinstance(details, TensorRTDetails) or not facts:
        return {}, (), f"does not say which {plan.name} it is about, or what that was made for"
    if files.sha256_of(plan) not in artifact.files.values():
        return {}, (), f"is about another {plan.name} (its sha256 differs)"
    return facts, details.precisions, ""
