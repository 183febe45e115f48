"""Ensembles: whether the steps' models are there, and whether tensors flow from the inputs to the outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from repo_builder.core.errors import did_you_mean
from repo_builder.repository import protobuf
from repo_builder.repository.checks.findings import Finding, error
from repo_builder.repository.checks.folder import ENSEMBLE, ModelFolder


def check(folder: ModelFolder, models: Mapping[str, ModelFolder | None]) -> Iterator[Finding]:
    """Check an ensemble against the other models of the repository.

    Args:
        folder: The ensemble.
        models: All models by name; None where a configuration could not be understood.
    """
    where, config = folder.config_path, folder.config
    if config.platform != ENSEMBLE or config.backend:
        yield error(where, "has ensemble_scheduling and another platform or a backend", 'write platform: "ensemble"')
    if not config.ensemble_scheduling.step:
        yield error(where, "is an ensemble without a step")
        return
    for field in ("instance_group", "model_warmup"):
        if getattr(config, field):
            yield error(where, f"an ensemble has no {field}", "remove it")
    if config.HasField("optimization"):
        yield error(where, "an ensemble has no optimization", "remove it")
    for place, step in enumerate(config.ensemble_scheduling.step):
        yield from _step(folder, f"step {place} ({step.model_name})", step, models)
    yield from _flow(folder)
    yield from _agreement(folder, models)


def closure(names: Sequence[str], models: Mapping[str, ModelFolder | None]) -> list[str]:
    """Return models and all that their steps name, at any depth, in the order of the repository."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in models and name not in found:
            found.add(name)
            waiting.extend(_steps(models[name]))
    return [name for name in models if name in found]


def spread(models: Mapping[str, ModelFolder | None], findings: dict[str, list[Finding]]) -> None:
    """Add an error to every ensemble with a step that does not load, or that comes back to it."""
    for name, folder in models.items():
        if folder is not None and name in _below(name, models):
            way = "itself" if name in _steps(folder) else "itself through its steps"
            message = f"contains {way}, so it waits for itself to load"
            findings[name].append(error(folder.config_path, message, "a step must be another model"))
    changed = True
    while changed:
        changed = False
        broken = {name for name, found in findings.items() if any(item.level == "error" for item in found)}
        for name in set(models) - broken:
            folder = models[name]
            for step in sorted(set(_steps(folder)) & broken):
                if folder is not None:
                    message = f"has the step '{step}', which does not load"
                    findings[name].append(error(folder.config_path, message, f"mend {step} first"))
                    changed = True


def _steps(folder: ModelFolder | None) -> list[str]:
    return [step.model_name for step in folder.config.ensemble_scheduling.step] if folder is not None else []


def _below(name: str, models: Mapping[str, ModelFolder | None]) -> set[str]:
    """Return the models below an ensemble, at any depth; itself among them where there is a circle."""
    found: set[str] = set()
    waiting = _steps(models[name])
    while waiting:
        step = waiting.pop()
        if step in models and step not in found:
            found.add(step)
            waiting.extend(_steps(models[step]))
    return found


def _step(folder: ModelFolder, what: str, step: Any, models: Mapping[str, ModelFolder | None]) -> Iterator[Finding]:  # noqa: ANN401
    """Check one step's model, version and names."""
    where = folder.config_path
    if step.model_name not in models:
        yield error(where, f"{what} names a model that is not here", did_you_mean(step.model_name, models))
        return
    for field in ("input_map", "output_map"):
        if not getattr(step, field):
            yield error(where, f"{what} has no {field}")
    model = models[step.model_name]
    if model is None:
        return  # that model has its own finding
    if step.model_version != -1 and step.model_version not in model.served:
        served = ", ".join(map(str, model.served)) or "none"
        yield error(where, f"{what} wants version {step.model_version}, and {step.model_name} serves {served}")
    if model.config.max_batch_size and model.config.max_batch_size < folder.config.max_batch_size:
        yield error(
            where,
            f"max_batch_size is {folder.config.max_batch_size}, and {what} takes {model.config.max_batch_size}",
            f"lower it to {model.config.max_batch_size}",
        )
    for side, mapped, tensors in (
        ("input", step.input_map, model.config.input),
        ("output", step.output_map, model.config.output),
    ):
        known = {item.name: item for item in tensors}
        for name in sorted(set(mapped) - set(known)) if known else ():
            yield error(where, f"{what} maps '{name}', which is no {side} of it", did_you_mean(name, known))
        for name in sorted(set(known) - set(mapped)) if side == "input" else ():
            if not known[name].optional:
                yield error(where, f"{what} does not map the input '{name}'", "every input needs a tensor")


def _flow(folder: ModelFolder) -> Iterator[Finding]:
    """Check that every tensor is made once, is used, and can be made before it is needed."""
    where, config = folder.config_path, folder.config
    steps: Sequence[Any] = config.ensemble_scheduling.step
    made = [tensor for step in steps for tensor in step.output_map.values()]
    used = {tensor for step in steps for tensor in step.input_map.values()}
    inputs, outputs = [item.name for item in config.input], [item.name for item in config.output]
    for tensor in sorted({item for item in made if made.count(item) > 1} | (set(made) & set(inputs))):
        yield error(where, f"tensor '{tensor}' is made more than once")
    for name in inputs:
        if name not in used:
            yield error(where, f"input '{name}' is not used by any step")
    for tensor in sorted(set(made) - used - set(outputs)):
        yield error(where, f"tensor '{tensor}' is made and not used", "use it, or leave it out of the output_map")
    for tensor in sorted((used | set(outputs)) - set(made) - set(inputs)):
        yield error(where, f"tensor '{tensor}' is needed and no step makes it", did_you_mean(tensor, {*made, *inputs}))
    ready, waiting = set(inputs) | (used - set(made)), list(steps)
    while runnable := [step for step in waiting if ready.issuperset(step.input_map.values())]:
        ready.update(tensor for step in runnable for tensor in step.output_map.values())
        waiting = [step for step in waiting if step not in runnable]
    if waiting:
        names = ", ".join(step.model_name for step in waiting)
        yield error(where, f"steps wait for each other's outputs: {names}", "a tensor must not depend on itself")


def _agreement(folder: ModelFolder, models: Mapping[str, ModelFolder | None]) -> Iterator[Finding]:
    """Check that all ends of a tensor have one type and one shape."""
    ends: dict[str, list[tuple[str, Any, bool]]] = {}
    for tensor in (*folder.config.input, *folder.config.output):
        ends.setdefault(tensor.name, []).append((folder.name, tensor, folder.config.max_batch_size > 0))
    for step in folder.config.ensemble_scheduling.step:
        model = models.get(step.model_name)
        if model is None:
            continue
        batched = model.config.max_batch_size > 0
        for mapped, tensors in ((step.input_map, model.config.input), (step.output_map, model.config.output)):
            for tensor in tensors:
                if tensor.name in mapped:
                    ends.setdefault(mapped[tensor.name], []).append((f"{model.name}.{tensor.name}", tensor, batched))
    for name, found in ends.items():
        (first, tensor, batched), *others = found
        for other, end, also_batched in others:
            one, two = protobuf.type_name(tensor.data_type), protobuf.type_name(end.data_type)
            if one != two:
                yield error(folder.config_path, f"tensor '{name}' is {one} for {first} and {two} for {other}")
                continue
            here, there = _full(tensor, batched), _full(end, also_batched)
            if not _fit(tensor.dims, end.dims) and not _fit(here, there):
                yield error(folder.config_path, f"tensor '{name}' is {here} for {first} and {there} for {other}")


def _full(tensor: Any, batched: bool) -> list[int]:  # noqa: ANN401 - a ModelInput or ModelOutput
    return [-1, *tensor.dims] if batched else list(tensor.dims)


def _fit(one: Sequence[int], other: Sequence[int]) -> bool:
    return len(one) == len(other) and all(a == b or -1 in (a, b) for a, b in zip(one, other, strict=True))
