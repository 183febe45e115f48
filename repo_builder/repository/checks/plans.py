"""Whether a TensorRT plan goes with its configuration and with this machine.

A plan loads on the TensorRT version and the kind of GPU that it was built for, and runs the shapes that its
optimization profiles hold. The manifest beside it says which those are; where none does, the engine itself is asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from repo_builder.core import environment
from repo_builder.core.artifacts import MANIFEST, EngineArtifact
from repo_builder.core.details import TensorRTDetails
from repo_builder.core.errors import CompileError, MissingDependency, RepositoryError
from repo_builder.core.profiles import PlanSignature, Profile, first_hole, in_words, max_batch
from repo_builder.repository import protobuf
from repo_builder.repository.checks.findings import Finding, error, info, missing
from repo_builder.repository.checks.folder import ModelFolder, shape_of

AskEngine = Callable[[Path], PlanSignature]


def check(
    folder: ModelFolder, version: int, engine: EngineArtifact | None, ask_engine: AskEngine | None, *, serving: bool
) -> Iterator[Finding]:
    """Compare a plan with its configuration and this machine.

    Args:
        folder: The model's folder.
        version: The plan's version.
        engine: What the manifest beside the plan says; None where there is none for it.
        ask_engine: Loads a plan into this machine's TensorRT and returns what it takes and gives. None leaves that
            TensorRT out: a container brings its own.
        serving: Whether the plan is to run here and now: what is missing here is an error then, and tells nothing else.
    """
    where = f"{folder.name}/{version}/{folder.filename}"
    details = engine.details if engine and isinstance(engine.details, TensorRTDetails) else None
    if not environment.gpus():
        ask_engine = None  # a TensorRT without a GPU is not the one that will run it, and loads nothing
    unfit = [*_gpu(folder, where, details, serving=serving)]
    unfit += _library(folder, where, details, serving=serving) if ask_engine else ()
    yield from unfit
    plan = PlanSignature(inputs=(), outputs=(), profiles=())
    try:
        if engine:
            plan = PlanSignature(inputs=engine.inputs, outputs=engine.outputs, profiles=engine.profiles)
        if not plan.profiles and ask_engine and not unfit:
            plan = ask_engine(folder.file(version))
    except RepositoryError as reason:
        yield error(f"{folder.name}/{version}/{MANIFEST}", reason.message, _again(folder))
        return
    except CompileError as reason:
        yield error(where, reason.message, reason.hint or _again(folder))
        return
    except MissingDependency:
        pass
    if plan.outputs:
        yield from _tensors(folder, plan)
    if plan.profiles:
        yield from _coverage(folder, plan.profiles)
    elif not unfit:
        yield info(where, "no manifest.json says what it is for: only its engine can tell")


def _again(folder: ModelFolder) -> str:
    return f"repo-builder compile build/{folder.name} --target tensorrt, on this machine"


def _gpu(folder: ModelFolder, where: str, details: TensorRTDetails | None, *, serving: bool) -> Iterator[Finding]:
    here = environment.gpus()
    names = ", ".join(sorted({f"{gpu.name} ({gpu.compute_capability})" for gpu in here}))
    name, capability = (details.gpu, details.compute_capability) if details else ("", "")
    if not here:
        if serving:
            yield error(where, "needs an NVIDIA GPU, and nvidia-smi lists none", "serve it where the GPU is")
    elif capability and all(gpu.compute_capability != capability for gpu in here):
        yield error(
            where, f"was built for {name} (compute capability {capability}), and here is {names}", _again(folder)
        )
    elif name and all(gpu.name != name for gpu in here):
        yield error(where, f"was tuned for {name}, and here is {names}", _again(folder))


def _library(folder: ModelFolder, where: str, details: TensorRTDetails | None, *, serving: bool) -> Iterator[Finding]:
    built, installed = details.tensorrt_version if details else "", environment.version("tensorrt")
    if installed is None:
        if serving:
            yield missing(where, "needs TensorRT, which is not installed", "pip install 'repo-builder[tensorrt]'")
    elif built and built != installed:
        yield error(where, f"was built by TensorRT {built}, and {installed} is installed here", _again(folder))


def _tensors(folder: ModelFolder, plan: PlanSignature) -> Iterator[Finding]:
    """Compare types and outputs with the plan's; the inputs' names and dims are compared with the profiles."""
    where, config = folder.config_path, folder.config
    types = {item.name: item.dtype.config for item in plan.inputs + plan.outputs}
    shapes = {item.name: dataclasses.replace(item, shape=item.shape or (1,)) for item in plan.outputs}
    for kind, tensors in (("input", config.input), ("output", config.output)):
        for tensor in tensors:
            given = protobuf.type_name(tensor.data_type)
            wanted = types.get(tensor.name, given)
            if given != wanted:
                yield error(where, f"{kind} '{tensor.name}' is {given}, and {wanted} in the plan")
    for output in config.output:
        if output.name not in shapes:
            yield error(where, f"output '{output.name}' is not in the plan", f"there are: {', '.join(shapes)}")
        elif config.max_batch_size and not shapes[output.name].fits(tuple(shape_of(output)) or (1,)):
            dims, shape = list(output.dims), list(shapes[output.name].shape)
            yield error(where, f"output '{output.name}' has dims {dims}, and the plan {shape}")


def _coverage(folder: ModelFolder, profiles: Sequence[Profile]) -> Iterator[Finding]:
    """Compare with the profiles that the instance groups use."""
    where, config = folder.config_path, folder.config
    groups = _groups(folder)
    used = sorted({number for _, numbers in groups for number in numbers})
    for number in used:
        if number >= len(profiles):
            yield error(
                where,
                f"instance_group names the optimization profile {number}, and the plan has {len(profiles)}",
                "remove it from instance_group.profile, or add it to compile.tensorrt.profiles and compile again",
            )
    chosen = [profiles[number] for number in used if number < len(profiles)]
    if not chosen:
        return
    found = [finding for tensor in config.input for finding in _input(folder, tensor, chosen)]
    yield from found
    for name in sorted(set(chosen[0]) - folder.named_inputs) if config.input else ():
        yield error(where, f"does not name the plan's input '{name}'")
    if found or config.max_batch_size < 0 or any(tensor.allow_ragged_batch for tensor in config.input):
        return  # has its own finding, or each input has a batch of its own
    told: set[tuple[int, ...]] = set()
    for group, numbers in groups:
        own = [profiles[number] for number in numbers if number < len(profiles)]
        if own and numbers not in told:
            told.add(numbers)
            whose = "the plan's profiles" if len(groups) == 1 else f"the profiles of {group}"
            yield from _shapes(folder, whose, own, used=chosen, there=profiles)


def _groups(folder: ModelFolder) -> list[tuple[str, tuple[int, ...]]]:
    """Return what to call each instance group and the profiles that it uses: those it names, or the first."""
    groups = []
    for place, group in enumerate(folder.config.instance_group):
        what = f"instance_group {group.name!r}" if group.name else f"instance_group {place}"
        groups.append((what, tuple(int(name) for name in group.profile if name.isdecimal()) or (0,)))
    return groups or [("", (0,))]


def _shapes(
    folder: ModelFolder, whose: str, profiles: Sequence[Profile], *, used: Sequence[Profile], there: Sequence[Profile]
) -> Iterator[Finding]:
    """Check that the profiles of an instance group take every batch that Triton may form, of all dims.

    Args:
        folder: The model's folder.
        whose: What to call the profiles.
        profiles: Those of the group.
        used: Those of all groups.
        there: Those of the plan.
    """
    where, largest = folder.config_path, folder.config.max_batch_size
    if largest and not all(shape.max for shape in profiles[0].values()):
        yield error(
            where, f"max_batch_size is {largest}, and an input of the plan has no batch", "set max_batch_size: 0"
        )
        return
    ends = max_batch(profiles) if largest else 0
    if ends < largest:
        other = f"compile with --set repository.max_batch_size={largest}"
        if max_batch(there) >= largest:
            other = "name those of the plan's profiles that go further in instance_group.profile"
        yield error(
            where, f"max_batch_size is {largest}, and {whose} end at {ends}", f"set max_batch_size: {ends}, or {other}"
        )
        return
    hole = first_hole(profiles, {item.name: shape_of(item) for item in folder.config.input}, largest=largest, of=used)
    if hole:
        yield error(
            where,
            f"Triton may send {in_words(hole)}, and {whose} do not take that",
            "let a group's profiles cover batches of 1 to max_batch_size without a gap, for all dims: name more in "
            "instance_group.profile, or change compile.tensorrt.profiles and compile again",
        )


def _input(folder: ModelFolder, tensor: Any, profiles: Sequence[Profile]) -> Iterator[Finding]:  # noqa: ANN401
    """Check that some profile has the input and takes its dims."""
    where, dims, batch = folder.config_path, shape_of(tensor), 1 if folder.config.max_batch_size else 0
    shapes = [profile[tensor.name] for profile in profiles if tensor.name in profile]
    bounds = [(list(shape.min[batch:]), list(shape.max[batch:])) for shape in shapes]
    if not shapes:
        yield error(where, f"input '{tensor.name}' is not in the plan", f"there are: {', '.join(profiles[0])}")
    elif not any(_within(dims, low, high) for low, high in bounds):
        ranges = ", ".join(f"{low} to {high}" for low, high in bounds)
        yield error(
            where,
            f"input '{tensor.name}' has dims {dims}, and the plan's profiles take {ranges}",
            f"set dims to what the plan takes, or compile it again: {_again(folder)}",
        )


def _within(dims: Sequence[int], low: Sequence[int], high: Sequence[int]) -> bool:
    return len(dims) == len(low) and all(
        size == -1 or least <= size <= most for size, least, most in zip(dims, low, high, strict=True)
    )
