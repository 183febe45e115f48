"""A first recipe as commented TOML."""

from __future__ import annotations

import json
from collections.abc import Iterator

from repo_builder.core.recipe import RepositorySpec
from repo_builder.flows.init.facts import Facts, Tensor
from repo_builder.flows.init.samples import Told
from repo_builder.quantize.rules import WEIGHTED

# Layer type → how the range of its input is found: convolutions have outliers that are better cut off.
_INPUTS = {"Conv": '{ calibrator = "percentile", percentile = 99.99 } # or "max", "mse", "entropy"'}
_MAX = '{ calibrator = "max" } # or "percentile" with a percentile, "mse", "entropy"'
_LEFT = "ConvTranspose"  # no target computes it in int8


def render(name: str, facts: Facts, told: Told, undecided: tuple[str, ...]) -> str:
    """Return the recipe's text."""
    lines = [f"# A recipe for {_comment(facts.source)}, read off the model: repo-builder build {name}.toml"]
    if undecided:
        lines += ["#", "# Left to decide:", *(f"#   {_comment(item)}" for item in undecided)]
    lines += ["", f"name = {_text(name)}", "seed = 0"]
    for part in (_model(facts), _data(told), _quantize(facts), _repository(facts), _measure(told)):
        lines += ["", *part]
    return "\n".join(lines) + "\n"


def _model(facts: Facts) -> Iterator[str]:
    yield "[model]"
    yield f"source = {_text(facts.source)}"
    if ":" in facts.source and not facts.source.endswith(".onnx"):
        arguments = ", ".join(f"{_text(key)} = {_value(item)}" for key, item in facts.arguments.items())
        yield f"arguments = {{ {arguments} }}" if arguments else "# arguments = { width = 1.0 } # of the function"
        yield '# checkpoint = "weights.safetensors" # or a .pt that loads with weights_only=True'
    for key, tensors in (("inputs", facts.inputs), ("outputs", facts.outputs)):
        for item in tensors:
            yield ""
            yield f"[[model.{key}]]"
            yield from _tensor(item)


def _tensor(item: Tensor) -> Iterator[str]:
    yield f"name = {_text(item.name)}"
    yield f"dtype = {_text(item.dtype.value)}"
    if item.shape is None:
        yield "# shape = [3, 224, 224] # left to decide: dimensions without the batch, -1 for one that varies"
    else:
        usual = "the whole tensor" if item.batch_axis == -1 else "without the batch"
        yield f"shape = {list(item.shape)} # {_comment(item.note or usual)}"
    if item.batch_axis:
        yield f"batch_axis = {item.batch_axis} # of the whole tensor; -1: none counts samples"


def _data(told: Told) -> Iterator[str]:
    yield "[data]"
    yield f"source = {_text(told.source)} # a .npz, a .csv, a folder with one sub-folder a class, or module:function"
    yield "validation = 0.1"
    yield "test = 0.2 # held out: every accuracy is measured on it"
    yield "calibration = 512 # samples that ranges are found on, at most half of the rest"


def _quantize(facts: Facts) -> Iterator[str]:
    yield "[quantize]"
    if facts.no_rules:
        yield f"# No rules: {_comment(facts.no_rules)}"
        return
    yield "# Rules are read from top to bottom and the last that matches a layer wins; what none matches stays fp32."
    yield "# The names that rules may use: repo-builder layers, on the model or on this file."
    counts = facts.counts
    chosen = [kind for kind in counts if kind in WEIGHTED and not kind.startswith(_LEFT)]
    for kind in sorted(chosen):
        yield ""
        yield "[[quantize.layers]]"
        yield f"type = {_text(kind)} # {counts[kind]} of the model's layers"
        yield 'precision = "int8"'
        yield f"input = {_INPUTS['Conv'] if kind.startswith('Conv') else _MAX}"
        yield 'weight = { calibrator = "max", per_channel = true }'
    if counts["Add"] and chosen:
        yield ""
        yield f"# Sums of residual blocks ({counts['Add']} Add) in int8, which TensorRT fuses with the convolutions:"
        yield from ("# [[quantize.layers]]", '# type = "Add"', '# precision = "int8"')
    if chosen:
        yield ""
        yield "# optional = true in a rule: it may match nothing, as in a recipe that several models share."
    last = next((item[0] for item in reversed(facts.layers) if item[1] in chosen), None)
    if last:
        yield ""
        yield "# A rule by name on top of the rules by type, as for a layer that int8 costs too much:"
        yield from ("# [[quantize.layers]]", f"# name = {_text(last)}", '# precision = "fp32" # or "fp16" on a GPU')
    if not chosen:
        yield "# The model has no layer that int8 is for."


def _repository(facts: Facts) -> Iterator[str]:
    yield "[repository]"
    size = RepositorySpec.max_batch_size if facts.batches else 0
    yield f"max_batch_size = {size} # {_comment(facts.batch_reason)}"
    if facts.batches:
        yield "max_queue_delay_us = 100 # how long a request may wait for others"
    varying = [item for item in facts.inputs if item.shape and -1 in item.shape]
    if varying:
        yield ""
        yield "# For TensorRT, bounds of the dimensions that vary:"
        yield "# [[compile.tensorrt.profiles]]"
        yield "# max_batch = 64"
        for item in varying:
            shapes = ", ".join(f"{key} = {_sized(item, size)}" for key, size in (("min", 1), ("opt", 64), ("max", 256)))
            yield f"# shapes.{_text(item.name)} = {{ {shapes} }}"


def _sized(item: Tensor, size: int) -> list[int]:
    return [size if given == -1 else given for given in item.shape or ()]


def _measure(told: Told) -> Iterator[str]:
    yield "[measure]"
    yield f'task = {_text(told.task)} # "classification" scores classes; "other" compares values'
    if told.output is not None:
        yield f"output = {_text(told.output)} # the one that is scored"
    yield "batch_sizes = [1, 8]"
    yield "concurrency = [1, 4]"


def _text(value: str) -> str:
    """Return a TOML string; JSON's escapes are TOML's, but for DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(value: str) -> str:
    """Return what may stand in a comment: one line of printable characters."""
    return "".join(letter if letter.isprintable() else " " for letter in value)


def _value(value: object) -> str:
    """Return a value of ``arguments``, which TOML gave, as TOML."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_text(key)} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, str):
        return _text(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
