"""Samples, how they are split, and where they come from. numpy only: a client that measures needs nothing else.

A source is a built-in's name, a .npz or .csv file, a folder with one sub-folder a class, or ``module:function``.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from repo_builder.core import files, loading
from repo_builder.core.errors import DataError
from repo_builder.core.recipe import DataSpec
from repo_builder.core.tensors import Array, TensorSpec
from repo_builder.datasets import user
from repo_builder.datasets.labels import MOST_CLASSES
from repo_builder.datasets.source import Source
from repo_builder.datasets.splits import Part, partition

# name → "module:function" that takes [data.arguments], inputs and data_dir and returns a Source
BUILT_IN: dict[str, str] = {
    "cifar10": "repo_builder.datasets.cifar10:read",
    "digits": "repo_builder.datasets.digits:read",
    "jets": "repo_builder.datasets.jets:read",
    "jets-openml": "repo_builder.datasets.openml:read",
}
_BLOCK = 4096  # samples hashed at a time, so that hashing never doubles the memory


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Samples as a model takes them.

    Attributes:
        inputs: Preprocessed values by input name: (n, *shape) of the spec's dtype.
        labels: Class numbers int64 (n,); other targets where the data set has no classes; None without labels.
    """

    inputs: dict[str, Array]
    labels: Array | None

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(next(iter(self.inputs.values())))


class Dataset:
    """A checked data set and its parts.

    Attributes:
        name: Name of the built-in, the file, the folder or the function.
        classes: Names of the classes, in the order of the labels; empty where there are none.
        parts: Sample numbers of each part.
    """

    def __init__(
        self, spec: DataSpec, source: Source, *, inputs: Sequence[TensorSpec], seed: int, steps: str = ""
    ) -> None:
        self._steps, self._ready = steps, dict[Part, Samples]()
        self.name = Path(spec.source).name
        self.classes = source.classes
        self._spec, self._source, self._inputs, self._seed = spec, source, tuple(inputs), seed
        self.parts = partition(
            source.labels if source.classes else None,
            len(source),
            validation=spec.validation,
            test=spec.test,
            calibration=spec.calibration,
            seed=seed,
            own_test=source.own_test,
        )

    @cached_property
    def fingerprint(self) -> str:
        """The sha256, in hex, of the raw samples and everything that decides what a part's samples are."""
        settings = {
            "data": dataclasses.asdict(self._spec) | {"source": self.name},  # a path may differ where data does not
            "inputs": [str(spec) for spec in self._inputs],
            "classes": self.classes,
            "seed": self._seed,
            **({"steps": self._steps} if self._steps else {}),
        }
        return self._digest(settings, np.arange(len(self._source)))

    @cached_property
    def held_out(self) -> str:
        """The sha256, in hex, of the raw test samples: equal where two data sets hold out the same samples.

        A checkpoint remembers it, so that weights are not scored on samples that trained them.
        """
        return self._digest({}, self.parts["test"])

    def _digest(self, settings: dict[str, Any], chosen: Array) -> str:
        digest = hashlib.sha256(files.sha256_of_json(settings).encode())
        labels = {} if self._source.labels is None else {"labels": self._source.labels}
        for name, values in sorted({**self._source.inputs, **labels}.items()):
            digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
            for start in range(0, len(chosen), _BLOCK):
                digest.update(_bytes(values[chosen[start : start + _BLOCK]]))
        return digest.hexdigest()

    def require_class_numbers(self) -> None:
        """Refuse labels that are targets of something else than classification, where classes are to be scored.

        Raises:
            DataError: There are labels, and they are no class numbers.
        """
        labels = self._source.labels
        if labels is None or self.classes:
            return
        odd = (labels < 0) | (labels != np.floor(labels)) | (labels >= MOST_CLASSES) if labels.ndim == 1 else [True]
        bad = int(np.argmax(odd))
        raise DataError(
            f"the label of {self._source.place(bad)} is {labels[bad]}, which is no class number (0 to "
            f"{MOST_CLASSES - 1})",
            where=self._source.origin,
            hint='set measure.task = "other" where outputs are not classes, or name the label\'s column',
        )

    def split(self, part: Part) -> Samples:
        """Return one part's samples, preprocessed.

        Raises:
            DataError: The part is empty.
        """
        if part in self._ready:
            return self._ready[part]
        chosen = self.parts[part]
        if len(chosen) == 0:
            held_out = len(self.parts["test"]) == len(self._source)
            raise DataError(
                f"the {part} part is empty" + (": every sample is held out for testing" if held_out else ""),
                where=self._source.origin,
                hint='remove split = "test" from data.arguments' if held_out else "add samples or change the fractions",
            )
        labels = None if self._source.labels is None else self._source.labels[chosen]
        found = Samples(inputs=self._source.ready(chosen, self._inputs), labels=labels)
        if self._steps:  # which take longer than a copy
            self._ready[part] = found
        return found

    def through(
        self, steps: Callable[[dict[str, Array]], dict[str, Array]], inputs: Sequence[TensorSpec], *, key: str
    ) -> Dataset:
        """Return the same data with a pipeline's steps behind it: what its network is fed.

        Args:
            steps: What clients send, by name → the network's inputs.
            inputs: The network's inputs.
            key: Hash of the steps.
        """
        source, given = self._source, self._inputs

        def prepare(raw: dict[str, Array]) -> dict[str, Array]:
            return steps(source.made_ready(raw, given))

        behind = dataclasses.replace(source, prepare=prepare)
        return Dataset(self._spec, behind, inputs=inputs, seed=self._seed, steps=key)


def _bytes(values: Array) -> bytes:
    """Return an array's content; of objects, each behind its length."""
    if values.dtype != object:
        return values.tobytes()
    items = (item if isinstance(item, bytes) else str(item).encode("utf-8", "surrogatepass") for item in values.flat)
    return b"".join(len(item).to_bytes(8, "little") + item for item in items)


def load(spec: DataSpec, *, inputs: tuple[TensorSpec, ...], seed: int, data_dir: Path | None = None) -> Dataset:
    """Read, check and split a data set.

    Args:
        spec: Where the samples come from and how they are split.
        inputs: Inputs of the model; they decide names, dtypes and the size that images are brought to.
        seed: Seed of the split.
        data_dir: Folder that holds a built-in's files, or that a relative path of a user's data starts from.

    Raises:
        DataError: The data is missing, damaged, empty, not finite, or of another shape than the inputs.
        RecipeError: An unknown source argument, or a user's function that is not there.
    """
    where: dict[str, Any] = {"inputs": inputs, "data_dir": data_dir}
    if spec.source in BUILT_IN:
        source = loading.call(loading.load(BUILT_IN[spec.source]), spec.arguments, where="data.arguments", **where)
    else:
        source = user.read(spec, known=BUILT_IN, **where)
    source.check(inputs)
    return Dataset(spec, source, inputs=inputs, seed=seed)
