"""Whether a plan in a model repository can be served on this machine, told before Triton starts. No TensorRT needed.

A plan loads on the TensorRT version and the kind of GPU that it was built for, and runs the shapes that its profiles
cover. The manifest beside it says which those are; where there is none, the engine is asked, if TensorRT is here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repo_builder import environment, loading
from repo_builder import profiles as trt_profiles
from repo_builder.artifacts import MANIFEST
from repo_builder.environment import Gpu
from repo_builder.errors import CompileError, MissingDependency
from repo_builder.profiles import Profile


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One reason why Triton would refuse a plan, or a request to it would fail.

    Attributes:
        path: The plan or config.pbtxt.
        message: What does not fit.
        hint: The command or change that repairs it.
    """

    path: Path
    message: str
    hint: str

    def __str__(self) -> str:
        """Return ``path: message → hint``."""
        return f"{self.path}: {self.message} → {self.hint}"


def preflight(
    model_folder: Path,
    *,
    installed: str | None = None,
    gpus: Sequence[Gpu] | None = None,
    container: bool = False,
    only_bare: bool = False,
) -> list[Problem]:
    """Return what keeps the plans of a model from being served here; empty for a model without plans.

    Args:
        model_folder: The model's folder in the repository, with config.pbtxt and version folders.
        installed: TensorRT's version here; None asks for the installed one.
        gpus: The GPUs here; None asks the driver.
        container: Whether Triton runs in a container, which brings its own TensorRT.
        only_bare: Look at plans without a manifest only: what their engines tell.
    """
    config = _config(model_folder / "config.pbtxt")
    name = (config.default_model_filename if config else "") or "model.plan"
    plans = sorted(model_folder.glob(f"*/{name}")) if name.endswith(".plan") else []
    plans = [plan for plan in plans if not (only_bare and (plan.parent / MANIFEST).exists())]
    here = environment.gpus() if gpus is None else tuple(gpus)
    version = installed or environment.version("tensorrt")
    problems: list[Problem] = []
    for plan in plans:
        details = _details(plan)
        found = [] if container else _library(plan, details, version, model_folder.name)
        found += _gpu(plan, details, here, model_folder.name)
        profiles, unreadable = _profiles(plan, details, readable=not found)
        problems += found + unreadable
        if config is not None and profiles:
            problems += _coverage(model_folder, config, profiles)
    return problems


def _details(plan: Path) -> dict[str, Any]:
    """Return what the manifest beside a plan says of it; nothing where there is none or it is damaged."""
    try:
        found = json.loads((plan.parent / MANIFEST).read_text(encoding="utf-8"))["details"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return dict(found) if isinstance(found, Mapping) else {}


def _library(plan: Path, details: Mapping[str, Any], version: str | None, model: str) -> list[Problem]:
    built = details.get("tensorrt_version")
    if version is None:
        return [
            Problem(
                path=plan, message="needs TensorRT, which is not installed", hint="pip install 'repo-builder[tensorrt]'"
            )
        ]
    if built is not None and built != version:
        message = f"was built by TensorRT {built}, and here is {version}"
        return [Problem(path=plan, message=message, hint=_rebuild(model))]
    return []


def _gpu(plan: Path, details: Mapping[str, Any], gpus: Sequence[Gpu], model: str) -> list[Problem]:
    if not gpus:
        message, hint = "needs an NVIDIA GPU, and nvidia-smi lists none", "serve it where the GPU is"
        return [Problem(path=plan, message=message, hint=hint)]
    capability, name = details.get("compute_capability"), details.get("gpu")
    if capability is not None and all(item.compute_capability != capability for item in gpus):
        message = f"was built for {name} (compute capability {capability}), and here is {_list(gpus)}"
        return [Problem(path=plan, message=message, hint=_rebuild(model))]
    if name is not None and all(item.name != name for item in gpus):
        message = f"was tuned for {name}, and here is {_list(gpus)}"
        return [Problem(path=plan, message=message, hint=_rebuild(model))]
    return []


def _list(gpus: Sequence[Gpu]) -> str:
    return ", ".join(f"{item.name} ({item.compute_capability})" for item in gpus)


def _rebuild(model: str) -> str:
    return f"repo-builder compile build/{model} --target tensorrt, on this machine"


def _profiles(plan: Path, details: Mapping[str, Any], *, readable: bool) -> tuple[tuple[Profile, ...], list[Problem]]:
    """Return a plan's profiles, from its manifest or from the engine, and why they cannot be read."""
    if details.get("profiles"):
        try:
            return trt_profiles.from_json(details["profiles"]), []
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            message = f"the profiles in it are damaged ({error!r})"
            return (), [Problem(path=plan.parent / MANIFEST, message=message, hint=_rebuild(plan.parents[1].name))]
    if not readable:
        return (), []
    try:
        load = loading.load("repo_builder.compile.trt_plan:Plan", extra="tensorrt").load
        profiles: tuple[Profile, ...] = load(plan).profiles
    except MissingDependency:
        return (), []
    except CompileError as error:
        return (), [Problem(path=plan, message=error.message, hint=error.hint or _rebuild(plan.parents[1].name))]
    return profiles, []


def _config(path: Path) -> Any:  # noqa: ANN401 - a ModelConfig message
    """Parse config.pbtxt; None where it is missing or no ModelConfig, which is not this module's to report."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (OSError, ValueError, text_format.ParseError):
        return None


def _coverage(model_folder: Path, config: Any, profiles: Sequence[Profile]) -> list[Problem]:  # noqa: ANN401
    """Compare config.pbtxt with the profiles that its instance groups use."""
    path = model_folder / "config.pbtxt"
    used = {int(name) for group in config.instance_group for name in group.profile if name.isdigit()} or {0}
    mine = [profile for place, profile in enumerate(profiles) if place in used]
    problems = [
        Problem(
            path=path,
            message=f"names the optimization profile {place}, and the plan has {len(profiles)}",
            hint="remove it from instance_group.profile, or add it to compile.tensorrt.profiles and compile again",
        )
        for place in sorted(used)
        if place >= len(profiles)
    ]
    largest, asked = trt_profiles.max_batch(mine), config.max_batch_size
    if mine and asked > largest:
        problems.append(
            Problem(
                path=path,
                message=f"max_batch_size is {asked}, and the plan's profiles end at {largest}",
                hint=f"set max_batch_size: {largest}, or compile with --set repository.max_batch_size={asked}",
            )
        )
    for item in config.input:
        problems += _dims(path, item.name, list(item.dims), bool(config.max_batch_size), mine)
    return problems


def _dims(path: Path, name: str, dims: list[int], batched: bool, profiles: Sequence[Profile]) -> list[Problem]:
    shapes = [profile[name] for profile in profiles if name in profile]
    if profiles and not shapes:
        there = ", ".join(profiles[0])
        return [Problem(path=path, message=f"the plan has no input '{name}'", hint=f"its inputs are {there}")]
    for shape in shapes:
        low, high = (shape.min[1:], shape.max[1:]) if batched else (shape.min, shape.max)
        if len(low) == len(dims) and all(
            size == -1 or a <= size <= b for a, size, b in zip(low, dims, high, strict=True)
        ):
            return []
    if not shapes:
        return []
    bounds = f"{list(shapes[0].min[1:])} to {list(shapes[0].max[1:])}" if batched else f"{list(shapes[0].min)} and on"
    message = f"the input '{name}' has dims {dims}, and the plan's profiles take {bounds}"
    return [Problem(path=path, message=message, hint="set dims to what the plan takes, or compile again")]
