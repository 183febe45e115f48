"""Whether requests may be put together: samples run as one batch are held against the same samples run otherwise.

That the first dimension of every tensor varies is what Triton asks of a model that batches. It does not make the first
dimension a batch: it may be a length (a sum that runs along it, a softmax over it), or there may be two of them. So the
model is run. For every sample of a batch,

* its row must be the same whatever stands in the other rows: the batch is run again with copies of this sample there;
* its row must be what the sample gives alone, within what other kernels for another size may round.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from repo_builder.core import loading, onnx_files, signatures
from repo_builder.core.errors import MissingDependency, ModelError
from repo_builder.core.signatures import OnnxSignature, OnnxTensor
from repo_builder.core.tensors import Array, DType

ROWS = 3
# Largest difference, in parts of the largest value: the same kernels on the same shapes; kernels for another batch
# size, where a rounding may put an int8 tensor's element into the next step.
_SAME, _ROUNDED = 1e-6, 2e-2
_SIZES = (8, 32, 224, 1, 3)  # tried for dimensions that vary
_CEILINGS = (10, 2, 1)  # tried for whole numbers, which may be indices into something small


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a model's requests may be put together.

    Attributes:
        batches: Whether they may.
        reason: Why, or why not, half a sentence.
        tried: Whether that was found by running samples; False where the tensors' shapes tell, or nothing could be run.
    """

    batches: bool
    reason: str
    tried: bool = False


def batches(model: Path | onnx.ModelProto, samples: Mapping[str, Array] | None = None) -> Verdict:
    """Decide whether the first dimension of a model's tensors is a batch of samples that know nothing of each other.

    Args:
        model: The ONNX file, or a model that carries its weights.
        samples: Samples by input name, first dimension the samples, in the model's types; None makes some up.

    Raises:
        RepositoryError: The file is no ONNX model.
    """
    signature = signatures.read(model) if isinstance(model, Path) else signatures.of_model(model)
    if signature.why_no_batch:
        return Verdict(batches=False, reason=signature.why_no_batch)
    try:
        with loading.needs("onnxruntime", what="comparing samples"):
            from repo_builder.core.sessions import Session
        if isinstance(model, Path):
            session = Session(model / "model.onnx" if model.is_dir() else model)
        else:
            with onnx_files.loadable(model) as source:
                session = Session(Path(source) if isinstance(source, str) else source)
        rows, together = _first_run(session, signature, samples)
        _compare(session, rows, together)
        _one_size(session, signature, rows)
    except (MissingDependency, _Untried) as error:
        return Verdict(batches=False, reason=f"samples could not be compared: {error}")
    except ModelError as error:
        return Verdict(batches=False, reason=f"samples could not be compared: {error.message}")
    except _Differs as error:
        return Verdict(batches=False, reason=str(error), tried=True)
    count = len(next(iter(rows.values())))
    return Verdict(batches=True, reason=f"{count} samples give the same together as alone in ONNX Runtime", tried=True)


class _Differs(Exception):  # noqa: N818 - a finding
    """Samples run together are not what they are alone."""


class _Untried(Exception):  # noqa: N818 - no fault of the model
    """Nothing could be compared."""


def _first_run(
    session: Any,  # noqa: ANN401 - sessions.Session, whose module is a leaf
    signature: OnnxSignature,
    samples: Mapping[str, Array] | None,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return samples that the model takes together, and what it gives for them."""
    if samples is not None:
        rows = _distinct({item.name: np.asarray(samples[item.name]) for item in signature.inputs})
        try:
            return rows, session.run(rows)
        except ModelError as error:
            _alone(session, rows, 0, error)
            raise _Differs(f"samples run alone, and {ROWS} together are refused ({error.message})") from None
    refused: ModelError | None = None
    for rows in _made_up(signature):
        try:
            return rows, session.run(rows)
        except ModelError as error:  # noqa: PERF203 - a few tries
            refused = refused or error
    raise _Untried(f"the model takes none of those made up ({refused.message if refused else 'no inputs'})")


def _distinct(samples: Mapping[str, Array]) -> dict[str, Array]:
    """Return the first samples that are not all the same; where there is only one, its values moved on are another."""
    count = min(len(value) for value in samples.values())
    if not count:
        raise _Untried("there are no samples")
    chosen = [0]
    for place in range(1, count):
        if len(chosen) < ROWS and any(
            not np.array_equal(value[place], value[other]) for value in samples.values() for other in chosen[-1:]
        ):
            chosen.append(place)
    rows = {name: value[chosen] for name, value in samples.items()}
    for step in range(1, ROWS + 1 - len(chosen)):
        rows = {name: np.concatenate([value, _moved(value[:1], step)]) for name, value in rows.items()}
    return rows


def _moved(row: Array, step: int) -> Array:
    return np.roll(row.reshape(-1), step).reshape(row.shape)


def _made_up(signature: OnnxSignature) -> Iterator[dict[str, Array]]:
    """Yield samples of the sizes and ceilings above, the most telling first."""
    varies = any(-1 in (item.shape or ())[1:] for item in signature.inputs)
    whole = any(item.dtype is not None and item.dtype.numpy.kind in "iu" for item in signature.inputs)
    if any(item.dtype in (None, DType.BF16) for item in signature.inputs) or not signature.inputs:
        raise _Untried("an input is of a type that is not made up here")
    for size, ceiling in itertools.product(_SIZES if varies else _SIZES[:1], _CEILINGS if whole else _CEILINGS[:1]):
        random = np.random.default_rng(0)
        yield {item.name: _values(item, (ROWS, *_sizes(item, size)), ceiling, random) for item in signature.inputs}


def _sizes(tensor: OnnxTensor, size: int) -> tuple[int, ...]:
    return tuple(size if given == -1 else given for given in (tensor.shape or ())[1:])


def _values(tensor: OnnxTensor, shape: tuple[int, ...], ceiling: int, random: np.random.Generator) -> Array:
    assert tensor.dtype is not None  # noqa: S101 - checked by the caller
    kind = tensor.dtype.numpy.kind
    if tensor.dtype is DType.STRING:
        return np.array([str(item) for item in random.integers(0, 10, shape).ravel()], object).reshape(shape)
    if kind == "b":
        return random.integers(0, 2, shape).astype(bool)
    if kind in "iu":
        return random.integers(0, ceiling, shape).astype(tensor.dtype.numpy)
    return random.standard_normal(shape).astype(tensor.dtype.numpy)


def _compare(session: Any, rows: dict[str, Array], together: dict[str, Array]) -> None:  # noqa: ANN401 - see above
    """Raise _Differs where a row of the batch depends on the others, or is not what its sample gives alone."""
    count = len(next(iter(rows.values())))
    for name, value in together.items():
        if value.shape[:1] != (count,):
            raise _Differs(f"output '{name}' has the shape {list(value.shape)} for {count} samples together")
    if _unequal(together, session.run(rows), _SAME):
        raise _Untried("the model gives something else each time it is run")
    for place in range(count):
        copies = {name: np.repeat(value[place : place + 1], count, axis=0) for name, value in rows.items()}
        try:
            repeated = session.run(copies)
        except ModelError as error:
            raise _Differs(f"it depends on the samples whether they run together ({error.message})") from None
        here = {name: value[place : place + 1] for name, value in together.items()}
        same_place = {name: value[place : place + 1] for name, value in repeated.items() if len(value) > place}
        if found := _unequal(here, same_place, _SAME):
            raise _Differs(f"a sample's answer depends on the samples that run together with it ({found})")
        alone = _alone(session, rows, place, None)
        if wrong := next((name for name, value in alone.items() if len(value) != 1), None):
            raise _Differs(f"output '{wrong}' has the shape {list(alone[wrong].shape)} for one sample")
        if found := _unequal(here, alone, _ROUNDED):
            raise _Differs(f"samples that run together give something else than alone ({found})")


def _alone(session: Any, rows: dict[str, Array], place: int, refused: ModelError | None) -> dict[str, Array]:  # noqa: ANN401
    """Run one sample by itself; where that is refused as the batch was, nothing can be told."""
    try:
        found: dict[str, Array] = session.run({name: value[place : place + 1] for name, value in rows.items()})
    except ModelError as error:
        if refused is not None:
            raise _Untried(f"the model takes none of the samples ({error.message})") from None
        raise _Differs(f"samples run together, and one alone is refused ({error.message})") from None
    return found


def _unequal(one: Mapping[str, Array], other: Mapping[str, Array], tolerance: float) -> str:
    """Name the first output in which two results differ, and by how much; empty where they are equal."""
    for name, value in one.items():
        there = other.get(name)
        if there is None or there.shape != value.shape:
            return f"'{name}' has the shape {list(value.shape)} and {list(there.shape) if there is not None else []}"
        if value.dtype.kind not in "fc":
            if not np.array_equal(value, there):
                return f"'{name}' differs in {np.count_nonzero(value != there)} of {value.size} elements"
            continue
        a, b = value.astype(np.float64), there.astype(np.float64)
        finite = np.isfinite(a) & np.isfinite(b)
        if not np.array_equal(np.where(finite, 0, a), np.where(finite, 0, b), equal_nan=True):
            return f"'{name}' is not a number in other places"
        largest = float(max(np.abs(a[finite]).max(initial=0), np.abs(b[finite]).max(initial=0)))
        apart = float(np.abs(a[finite] - b[finite]).max(initial=0))
        if apart > tolerance * largest:
            return f"'{name}' differs by {apart:.3g} where the largest value is {largest:.3g}"
    return ""


def _one_size(session: Any, signature: OnnxSignature, rows: dict[str, Array]) -> None:  # noqa: ANN401 - see above
    """Raise _Differs where first dimensions have several names, and the model takes several sizes of them at once."""
    named = {item.name: item.symbols[0] for item in signature.inputs if item.symbols}
    if len(set(named.values())) < 2:
        return
    first = next(iter(named))
    for name in named:
        if named[name] == named[first]:
            continue
        longer = {**rows, name: np.concatenate([rows[name], rows[name][:1]])}
        try:
            session.run(longer)
        except ModelError:
            continue  # it is one size after all, under several names
        counts = f"{len(rows[first])} rows of '{first}' with {len(longer[name])} of '{name}'"
        raise _Differs(f"the first dimensions are not one batch: the model takes {counts}")
