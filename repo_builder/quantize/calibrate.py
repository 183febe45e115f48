"""From calibration samples to ``Ranges``: what every tensor holds that a target may quantize, and every weight.

Ranges are found for each layer as if it were int8, under the calibrator that its rule names, so that a rule that
changes a precision finds them in the file that the last build left.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx

from repo_builder.core import codec, files, progress
from repo_builder.core.errors import QuantizeError
from repo_builder.core.graphs import LAYER_OPS, layer_of, own
from repo_builder.core.recipe import InputQuantizer, LayerRule, QuantizeSpec
from repo_builder.core.tensors import Array
from repo_builder.quantize import choosing, finders
from repo_builder.quantize.compensate import compensated
from repo_builder.quantize.finders import calibrator_name
from repo_builder.quantize.judge import Judge, parts
from repo_builder.quantize.observe import stream
from repo_builder.quantize.placement import PROFILES, wanted
from repo_builder.quantize.placement.blocked import block_ranges
from repo_builder.quantize.placement.index import Index
from repo_builder.quantize.placement.weights import channel_axis
from repo_builder.quantize.ranges import BEST, Observed, Ranges, TensorRange, WeightRange
from repo_builder.quantize.rules import LayerPlan

_MAX = InputQuantizer(calibrator="max")
_FEWEST_STEPS = 4  # that an output's channel has to span


def calibrate(
    model: onnx.ModelProto,
    plans: Sequence[LayerPlan],
    spec: QuantizeSpec,
    samples: Mapping[str, Array],
    known: Observed | None = None,
    *,
    target: str = "onnxruntime-cpu",
) -> tuple[Ranges, Observed, bool]:
    """Find the ranges of a graph.

    Args:
        model: What ``prepare`` returns.
        plans: What each layer is to become.
        spec: Back end and batch size.
        samples: Calibration samples by input name, batch first.
        known: What an earlier calibration of the same graph on the same samples saw.
        target: The profile that calibrators are chosen for where a rule says ``best``.

    Returns:
        The ranges, what they were made of, and whether the graph had to run for them.

    Raises:
        QuantizeError: The model does not run, a lowered layer's input is not finite, or a range cannot be found.
        RecipeError: The back end is unknown.
    """
    found = compensated(model, plans, block_ranges(model, plans), samples, spec.batch_size)
    if not any(item.coded for item in plans):
        return Ranges(blocks=found), known or Observed(), any(item.codes is not None for item in found.values())
    ranges, seen, ran = _calibrated(model, plans, spec, samples, known, target=target)
    return dataclasses.replace(ranges, blocks=found), seen, ran


def _calibrated(
    model: onnx.ModelProto,
    plans: Sequence[LayerPlan],
    spec: QuantizeSpec,
    samples: Mapping[str, Array],
    known: Observed | None,
    *,
    target: str,
) -> tuple[Ranges, Observed, bool]:
    """Find the ranges of what has codes for its input, too."""
    needed = _needed(model, plans)
    make = finders.backend(spec.backend)
    if needed:
        fresh = known is None or not _covers(known, needed)
        seen = _observe(model, plans, needed, spec, samples, make) if fresh or known is None else known
    else:  # every int8 layer finds its input's range in every run
        fresh, seen = False, known or Observed()
    options = _options(model, plans, seen, make, target)
    if not options.tensors and not options.weights:
        return options.ranges, seen, fresh
    key = files.sha256_of_json({"plans": codec.plain(list(plans)), "target": target, "of": choosing.CANDIDATES})
    if not fresh and seen.chosen_for == key:
        return options.made(seen.chosen), seen, False
    with progress.step("choose calibrators") as step:
        fits, judges = (Judge(model, item, batch_size=spec.batch_size) for item in parts(model, samples))
        found = choosing.choose(model, plans, options, PROFILES[target], fits, judges)
        step.note(str(found.record))
    seen = dataclasses.replace(seen, chosen=found.chosen, chosen_for=key, record=found.record)
    return options.made(found.chosen), seen, True


def _options(
    model: onnx.ModelProto, plans: Sequence[LayerPlan], seen: Observed, make: finders.FinderMaker, target: str
) -> choosing.Options:
    """Return all ranges, and those that may be chosen of a tensor or weight whose rule says ``best``."""
    tensors: dict[str, TensorRange] = {}
    several: dict[str, dict[str, TensorRange]] = {}
    for name, item in wanted(model, plans, list(PROFILES.values())).items():
        if name not in seen.low:
            continue  # it never held a finite value, or is no float32 tensor
        fixed = [one for one in item.calibrators if one.calibrator != BEST]
        if len(fixed) == len(item.calibrators):
            tensors[name] = _range(name, fixed, seen, item.layers)
            continue
        free = [one for one in choosing.inputs() if not math.isnan(seen.amax[name, calibrator_name(one)])]
        several[name] = {calibrator_name(one): _range(name, [one, *fixed], seen, item.layers) for one in free}
        tensors[name] = next(iter(several[name].values()))
    weights = _weights(model, plans, make)
    ranges = Ranges(tensors=tensors, weights={name: next(iter(found.values())) for name, found in weights.items()})
    return choosing.Options(
        ranges=ranges,
        tensors=several,
        weights={name: found for name, found in weights.items() if len(found) > 1},
        active=frozenset(wanted(model, plans, [PROFILES[target]])),
    )


def _range(name: str, specs: Sequence[InputQuantizer], seen: Observed, layers: Sequence[str]) -> TensorRange:
    """Return a tensor's range: the widest of its calibrators'."""
    found_by = {key: seen.amax[name, key] for key in map(calibrator_name, specs)}
    if any(math.isnan(value) for value in found_by.values()):
        raise QuantizeError(
            f"the range of '{name}' is 0 at {', '.join(found_by)}",
            where=next(iter(layers), name),
            hint="most values are 0; take a larger percentile",
        )
    key = max(found_by, key=lambda one: found_by[one])
    return TensorRange(low=seen.low[name], high=seen.high[name], amax=found_by[key], calibrator=key)


def _needed(model: onnx.ModelProto, plans: Sequence[LayerPlan]) -> dict[str, tuple[InputQuantizer, ...]]:
    """Return every tensor that some target may quantize under these rules, whatever precisions they give."""
    profiles = list(PROFILES.values())
    found: dict[str, set[InputQuantizer]] = {}
    for item in (plans, [_as_int8(one) for one in plans]):
        for name, one in wanted(model, item, profiles).items():
            for spec in one.calibrators:
                found.setdefault(name, set()).update(choosing.inputs() if spec.calibrator == BEST else [spec])
    return {name: tuple(sorted(specs, key=calibrator_name)) for name, specs in found.items()}


def _as_int8(item: LayerPlan) -> LayerPlan:
    rule = item.rule or LayerRule(precision="int8")
    return dataclasses.replace(item, rule=rule.of("int8"), precision="int8")


def _covers(known: Observed, needed: Mapping[str, Sequence[InputQuantizer]]) -> bool:
    return all((name, calibrator_name(spec)) in known.amax for name, specs in needed.items() for spec in specs)


def _observe(
    model: onnx.ModelProto,
    plans: Sequence[LayerPlan],
    needed: Mapping[str, Sequence[InputQuantizer]],
    spec: QuantizeSpec,
    samples: Mapping[str, Array],
    make: finders.FinderMaker,
) -> Observed:
    index, readers = Index(model), _readers(model, plans)
    tensors = [name for name in needed if name in index.floats]
    own_max = make is finders.own  # which is what low and high say already
    makers = {
        (name, one): make(one, channels=1, where=readers.get(name, name))
        for name in tensors
        for one in needed[name]
        if not (own_max and one == _MAX)
    }
    seen, lost = Observed(), set()
    channels: dict[str, Array] = {}
    outputs = {item.name for item in model.graph.output}
    for part in stream(model, tensors, samples, batch_size=spec.batch_size, title="calibrating"):
        for name, values in part.items():
            if values.size == 0 or name in lost:
                continue
            low, high = float(values.min()), float(values.max())
            if not np.isfinite([low, high]).all():
                if name in readers:
                    raise QuantizeError(
                        "its input holds NaN or infinity on the calibration data",
                        where=readers[name],
                        hint="leave the layer in fp32, or look for what makes them",
                    )
                lost.add(name)
                continue
            seen.low[name] = min(low, seen.low.get(name, low))
            seen.high[name] = max(high, seen.high.get(name, high))
            if name in outputs and values.ndim > 1:
                sizes = np.abs(values).max(axis=(0, *range(2, values.ndim)))
                channels[name] = np.maximum(sizes, channels[name]) if name in channels else sizes
            for one in needed[name]:
                if (name, one) in makers:
                    makers[name, one].observe(values)
    lost |= set(_unequal(channels))
    for name in lost:
        seen.low.pop(name, None)
        seen.high.pop(name, None)
    for name, specs in needed.items():
        seen.amax.update({(name, calibrator_name(one)): _amax(name, one, seen, makers) for one in specs})
    return seen


def _unequal(channels: Mapping[str, Array]) -> Iterator[str]:
    """Yield outputs of the model that stay float: 8 bits over all channels would leave nothing of the smallest."""
    for name, sizes in channels.items():
        used = sizes[sizes > 0]
        if used.size and used.min() < _FEWEST_STEPS * used.max() / 255:
            ratio = used.max() / used.min()
            progress.warn(f"the output '{name}' stays float: its channels differ in size by {ratio:.0f} times")
            yield name


def _amax(
    name: str, spec: InputQuantizer, seen: Observed, makers: Mapping[tuple[str, InputQuantizer], finders.Finder]
) -> float:
    """Return what a calibrator keeps of a tensor, NaN where it finds no range: an error only where one is needed."""
    if name not in seen.low:
        return math.nan
    if (name, spec) not in makers:
        return max(abs(seen.low[name]), abs(seen.high[name]))
    try:
        return float(makers[name, spec].amax().reshape(()))
    except QuantizeError:
        return math.nan


def _readers(model: onnx.ModelProto, plans: Sequence[LayerPlan]) -> dict[str, str]:
    """Return for each tensor that a layer of codes with a weight reads that layer's name."""
    coded = {item.name for item in plans if item.coded}
    found: dict[str, str] = {}
    for node in model.graph.node:
        if own(node) and node.op_type in LAYER_OPS and layer_of(node) in coded:
            found.setdefault(node.input[0], layer_of(node) or "")
    return found


def _weights(
    model: onnx.ModelProto, plans: Sequence[LayerPlan], make: finders.FinderMaker
) -> dict[str, dict[str, WeightRange]]:
    """Return for each layer of codes its weight's ranges, by calibrator: one, or all that ``best`` chooses among."""
    index = Index(model)
    coded = {item.name: item for item in plans if item.coded}
    found: dict[str, dict[str, WeightRange]] = {}
    for node in index.nodes:
        layer = layer_of(node) if own(node) and node.op_type in LAYER_OPS else None
        if layer not in coded or layer in found or layer is None:
            continue
        weight = index.value(node.input[1])
        if weight is None or weight.dtype != np.float32 or weight.size == 0 or weight.ndim < 2:
            continue  # placement says why it stays float
        found[layer] = dict(_weight_ranges(weight, channel_axis(node), coded[layer], make))
    return found


def _weight_ranges(
    weight: Array, axis: int, plan: LayerPlan, make: finders.FinderMaker
) -> Iterator[tuple[str, WeightRange]]:
    spec = plan.coded_rule.weight
    candidates = choosing.weights(spec if plan.precision == "int8" else finders.float8_weight(spec))
    for spec in candidates:
        rows = np.moveaxis(weight, axis, 0) if spec.per_channel else weight[None]
        finder = make(spec, channels=len(rows), where=plan.name)
        finder.observe(np.ascontiguousarray(rows.reshape(len(rows), -1)))
        try:
            amax = finder.amax()
        except QuantizeError:
            if len(candidates) == 1 or not np.isfinite(weight).all():
                raise
            continue  # at this percentile nothing is left
        name = calibrator_name(spec)
        amax = amax if spec.per_channel else amax.reshape(())
        yield name, WeightRange(amax=amax, calibrator=name if len(candidates) > 1 else "")
