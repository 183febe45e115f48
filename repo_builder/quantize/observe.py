"""What the tensors of a graph hold on samples: the graph runs in ONNX Runtime, and its tensors stream by.

Memory is bounded by bytes whatever the network's size: one sample tells how large the wanted tensors are, and then as
many samples run at a time as fit. Where one sample's tensors do not fit, the graph runs several times, for a part of
them each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from repo_builder.core import onnx_files, progress
from repo_builder.core.errors import QuantizeError, did_you_mean, first_line
from repo_builder.core.tensors import Array

Batch = Mapping[str, Array]
_AT_ONCE = 64  # tensors of one sample, held to learn their sizes
BUDGET_BYTES = 192 << 20  # of tensors that are looked at, for one run


def check_samples(model: onnx.ModelProto, samples: Batch) -> dict[str, Array]:
    """Return the samples that a model's inputs take.

    Raises:
        QuantizeError: An input is missing, or there is no sample.
    """
    names = input_names(model)
    for name in names:
        if name not in samples:
            hint = did_you_mean(name, samples)
            raise QuantizeError(f"the calibration data has no input '{name}'", hint=hint)
    if min((len(samples[name]) for name in names), default=0) == 0:
        raise QuantizeError("there is no calibration sample", hint="set data.calibration to at least 1")
    return {name: samples[name] for name in names}


def input_names(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names of the inputs that have no stored value."""
    stored = {item.name for item in model.graph.initializer}
    return tuple(item.name for item in model.graph.input if item.name not in stored)


def whole_tensors(model: onnx.ModelProto, samples: Batch) -> bool:
    """Whether each sample is all of a model's inputs: it has as many dimensions as they have, no batch among them."""
    ranks = {
        item.name: len(item.type.tensor_type.shape.dim)
        for item in model.graph.input
        if item.type.tensor_type.HasField("shape")
    }
    return any(name in samples and samples[name].ndim == rank + 1 for name, rank in ranks.items())


def fixed_batch(model: onnx.ModelProto, samples: Batch) -> int | None:
    """Return the batch size that a model's first input is fixed to, None where it varies, or a sample is all of it."""
    if whole_tensors(model, samples):
        return None
    names = input_names(model)
    dims = [item.type.tensor_type.shape.dim[:1] for item in model.graph.input if item.name in names]
    return next((int(first[0].dim_value) for first in dims if first and first[0].dim_value > 0), None)


def stream(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    samples: Batch,
    *,
    batch_size: int,
    budget_bytes: int = BUDGET_BYTES,
    title: str = "",
    together: bool = False,
) -> Iterator[dict[str, Array]]:
    """Run a model on samples and yield what tensors hold, a part of the samples or of the tensors at a time.

    Args:
        model: The model.
        tensors: Names of tensors; inputs may be among them.
        samples: Values by input name, batch first.
        batch_size: Most samples of one run; a model with a fixed batch takes its own, and what does not fill one is
            left out.
        budget_bytes: Bytes of tensors that one run may hold; a single tensor of one batch may exceed them.
        title: What the progress bar says; empty for none.
        together: Whether all tensors are to come at once, however large.

    Yields:
        Tensor → its values. Over all parts every tensor comes with every sample once.

    Raises:
        QuantizeError: ONNX Runtime refuses the model, or it does not run on the samples.
    """
    samples = check_samples(model, samples)
    count, fixed = min(len(item) for item in samples.values()), fixed_batch(model, samples)
    if fixed is not None and count < fixed:
        raise QuantizeError(
            f"the model takes batches of {fixed}, and there are {count} calibration samples",
            hint="raise data.calibration, or export the model with a dynamic batch",
        )
    wanted = list(dict.fromkeys(tensors))
    smallest = fixed or 1
    sizes = tensor_bytes(model, wanted, samples)
    groups, size = _plan(sizes, smallest, 1 if whole_tensors(model, samples) else min(batch_size, count), budget_bytes)
    groups = [wanted] if together else groups
    starts = range(0, count - (count % fixed if fixed else 0), fixed or size)
    runs = [(group, start) for group in groups for start in starts]
    session: ort.InferenceSession | None = None
    held: list[str] = []
    for group, start in progress.bar(runs, title) if title else runs:
        if session is None or group is not held:
            session, held = open_session(model, group), group
        yield run(session, group, _cut(model, samples, start, start + (fixed or size)))


def batches(model: onnx.ModelProto, samples: Batch, batch_size: int) -> Iterator[dict[str, Array]]:
    """Yield samples as a model takes them: so many at a time, as many as it is fixed to, or one whole tensor.

    Args:
        model: The model.
        samples: Values by input name, batch first.
        batch_size: Samples of a run; those that do not fill a fixed batch are left out.
    """
    count, fixed = min(len(item) for item in samples.values()), fixed_batch(model, samples)
    size = fixed or (1 if whole_tensors(model, samples) else batch_size)
    for start in range(0, count - (count % fixed if fixed else 0), size):
        yield _cut(model, samples, start, start + size)


def _plan(sizes: Mapping[str, int], smallest: int, batch_size: int, budget: int) -> tuple[list[list[str]], int]:
    """Return groups of tensors, and how many samples run at a time.

    Args:
        sizes: Tensor → its bytes for the smallest batch.
        smallest: That batch.
        batch_size: The largest batch.
        budget: Bytes that a run may hold.
    """
    groups: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if groups[-1] and held + size > budget:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size
    largest = max((sum(sizes[name] for name in group) for group in groups), default=0)
    return groups, max(smallest, min(batch_size, smallest * budget // max(1, largest)))


def tensor_bytes(model: onnx.ModelProto, tensors: Sequence[str], samples: Batch) -> dict[str, int]:
    """Return how many bytes each tensor has for the smallest batch; a few at a time are held to find out."""
    batch = _cut(model, samples, 0, fixed_batch(model, samples) or 1)
    found: dict[str, int] = {}
    for start in range(0, len(tensors), _AT_ONCE):
        some = list(tensors[start : start + _AT_ONCE])
        found.update({name: value.nbytes for name, value in run(open_session(model, some), some, batch).items()})
    return found


def open_session(model: onnx.ModelProto, tensors: Sequence[str], *, optimize: bool = True) -> ort.InferenceSession:
    """Open a model with tensors among its outputs.

    Args:
        model: The model; its own outputs are computed only where they are asked for.
        tensors: Names of tensors.
        optimize: Whether graph optimizations are on.

    Raises:
        QuantizeError: ONNX Runtime refuses the model.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False  # it never gives back what one large batch took
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # see compile/onnxruntime/target.py
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        with onnx_files.loadable(_wider(model, tensors)) as source:
            return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise QuantizeError(f"ONNX Runtime refuses the model: {first_line(error)}") from error


def _wider(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """Return a copy with tensors among its outputs."""
    wider = onnx.ModelProto()
    wider.CopyFrom(model)
    kinds = {item.name: item for item in (*model.graph.value_info, *model.graph.output)}
    known, given = {item.name for item in model.graph.output}, set(input_names(model))
    for name in tensors:
        if name not in known and name not in given:
            kind = kinds[name].type.tensor_type.elem_type if name in kinds else TensorProto.FLOAT
            wider.graph.output.append(helper.make_tensor_value_info(name, kind or TensorProto.FLOAT, None))
    return wider


def run(session: ort.InferenceSession, tensors: Sequence[str], batch: Batch) -> dict[str, Array]:
    """Return tensors by name, inputs among them.

    Raises:
        QuantizeError: The model does not run on the batch.
    """
    names = [name for name in tensors if name not in batch]
    try:
        values = session.run(names, dict(batch)) if names else []
    except Exception as error:  # as above
        raise QuantizeError(f"the model does not run on the calibration data: {first_line(error)}") from error
    found = {name: np.asarray(value) for name, value in zip(names, values, strict=True)}
    return {name: found[name] if name in found else batch[name] for name in tensors}


def _cut(model: onnx.ModelProto, samples: Batch, start: int, stop: int) -> dict[str, Array]:
    if whole_tensors(model, samples):
        return {name: np.asarray(value[start]) for name, value in samples.items()}
    return {name: value[start:stop] for name, value in samples.items()}
