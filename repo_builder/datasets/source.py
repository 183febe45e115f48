"""What a reader hands over: all raw samples of a data set, and the checks that every one of them passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from repo_builder.core.errors import DataError
from repo_builder.core.tensors import Array, DType, TensorSpec

_BLOCK = 4096  # samples checked at a time, so that a check never doubles the memory


def _same(inputs: dict[str, Array]) -> dict[str, Array]:
    return inputs


def _one_text(values: Array, spec: TensorSpec) -> Array:
    """Return one text a sample in the shape ``[1]``, which config.pbtxt has for it."""
    return values[:, None] if spec.dtype is DType.STRING and spec.shape == (1,) and values.ndim == 1 else values


@dataclass(frozen=True, kw_only=True)
class Source:
    """All samples of a data set, as read.

    Attributes:
        origin: File, folder or function that they come from.
        inputs: Raw values by input name, batch first.
        labels: Class numbers int64 (n,); other targets where ``classes`` is empty; None where there are none.
        classes: Names of the classes, in the order of the labels.
        own_test: Number of the first sample of the data set's own test set, which ends the data; None for none.
        prepare: Raw inputs of some samples → the model's inputs.
        place: Number of a sample → where it is, for messages.
    """

    origin: str
    inputs: dict[str, Array]
    labels: Array | None
    classes: tuple[str, ...]
    own_test: int | None = None
    prepare: Callable[[dict[str, Array]], dict[str, Array]] = _same
    place: Callable[[int], str] = "sample {}".format

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(next(iter(self.inputs.values())))

    def ready(self, chosen: Array, specs: Sequence[TensorSpec]) -> dict[str, Array]:
        """Return the model's inputs for the chosen sample numbers, of the dtypes of the specs."""
        return self.made_ready({name: values[chosen] for name, values in self.inputs.items()}, specs)

    def made_ready(self, raw: dict[str, Array], specs: Sequence[TensorSpec]) -> dict[str, Array]:
        """Return the model's inputs for raw values."""
        with np.errstate(over="ignore"):  # becomes infinite, which the check reports with its place
            prepared = self.prepare(raw)
            return {
                spec.name: np.ascontiguousarray(_one_text(prepared[spec.name], spec), dtype=spec.dtype.numpy)
                for spec in specs
            }

    def check(self, specs: Sequence[TensorSpec]) -> None:
        """Refuse data that is empty, of other shapes than the specs, not finite, or labelled out of range.

        Raises:
            DataError: The first thing that is wrong, with its file and place.
        """
        self._check_counts(specs)
        self._check_classes()
        self._check_labels()
        self._check_types(specs)
        self._check_finite(specs)

    def _check_finite(self, specs: Sequence[TensorSpec]) -> None:
        if all(values.dtype.kind in "iubOSU" for values in self.inputs.values()):
            return  # texts are none, and whole numbers stay finite in any of the preparations
        for start in range(0, len(self), _BLOCK):
            block = np.arange(start, min(start + _BLOCK, len(self)))
            for name, values in self.ready(block, specs).items():
                if values.dtype.kind != "f" or np.isfinite(values).all():
                    continue
                bad = int(np.argmin(np.isfinite(values.reshape(len(block), -1)).all(axis=1)))
                raise DataError(
                    f"{self.place(start + bad)} holds NaN or an infinite value in '{name}'",
                    where=self.origin,
                    hint="remove that sample or fill the value in",
                )

    def _check_counts(self, specs: Sequence[TensorSpec]) -> None:
        missing = [spec.name for spec in specs if spec.name not in self.inputs]
        if missing:
            raise DataError(
                f"there is nothing for the input '{missing[0]}'",
                where=self.origin,
                hint=f"the data has: {', '.join(self.inputs)}",
            )
        if len(self) == 0 or any(values.size == 0 for values in self.inputs.values()):
            raise DataError("there are no samples", where=self.origin)
        counts = {name: len(values) for name, values in self.inputs.items()}
        if self.labels is not None:
            counts["labels"] = len(self.labels)
        if len(set(counts.values())) > 1:
            shown = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise DataError(f"the numbers of samples differ ({shown})", where=self.origin)

    def _check_classes(self) -> None:
        """Refuse names that no file of one line a class can hold, and names that do not tell classes apart."""
        seen: dict[str, int] = {}
        for number, name in enumerate(self.classes):
            if not name.strip():
                complaint = "is empty"
            elif not name.isprintable():  # line breaks, control characters and what is no Unicode
                complaint = f"is {name!a}: a label is one line of printable text"
            elif name in seen:
                complaint = f"is '{name}', as that of class {seen[name]} is"
            else:
                seen[name] = number
                continue
            hint = "rename it in the data, or give all names with data.arguments.classes"
            raise DataError(f"the name of class {number} {complaint}", where=self.origin, hint=hint)

    def _check_labels(self) -> None:
        if self.labels is None:
            return
        if not self.classes:
            wrong = ~np.isfinite(self.labels.reshape(len(self), -1)).all(axis=1)
            expected = "a finite number"
        else:
            wrong = (self.labels < 0) | (self.labels >= len(self.classes))
            expected = f"between 0 and {len(self.classes) - 1} ({len(self.classes)} classes)"
        if wrong.any():
            bad = int(np.argmax(wrong))
            raise DataError(f"the label of {self.place(bad)} is {self.labels[bad]}, not {expected}", where=self.origin)

    def _check_types(self, specs: Sequence[TensorSpec]) -> None:
        for name, values in self.inputs.items():
            texts = any(item.dtype is DType.STRING for item in specs if item.name == name)
            if values.dtype.kind not in ("biufOSU" if texts else "biufSU"):
                raise DataError(f"'{name}' holds {values.dtype} values, not numbers", where=self.origin)
            spec = next((item for item in specs if item.name == name), None)
            if spec and values.dtype.kind in "SU" and spec.dtype is not DType.STRING:
                raise DataError(f"'{name}' holds text, the model takes {spec.dtype.value}", where=self.origin)
        first = self.prepare({name: values[:1] for name, values in self.inputs.items()})
        for spec in specs:
            values = _one_text(first[spec.name], spec)
            shape = tuple(values.shape[1:])
            if not spec.fits(shape):
                turned = len(shape) == 3 and spec.fits((shape[2], shape[0], shape[1]))
                raise DataError(
                    f"the samples of '{spec.name}' have the shape {list(shape)}, the model takes {spec}",
                    where=self.origin,
                    hint='set data.arguments.layout = "hwc"' if turned else "change the data or model.inputs",
                )
            if not np.can_cast(values.dtype, spec.dtype.numpy, "same_kind"):
                raise DataError(
                    f"'{spec.name}' holds {values.dtype} values, the model takes {spec.dtype.value}",
                    where=self.origin,
                    hint="change the data or model.inputs",
                )
