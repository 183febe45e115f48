"""What a first recipe can know of a model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from repo_builder.core.tensors import DType, TensorSpec
from repo_builder.quantize.rules import Layer


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input or output, as far as it is known.

    Attributes:
        name: Its name.
        dtype: Its element type.
        shape: Its dimensions without the axis that counts samples, -1 for one that varies; None where it is not known.
        batch_axis: The axis that counts samples, -1 where none does.
        note: Half a sentence that goes beside it; empty for none.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...] | None
    batch_axis: int = 0
    note: str = ""

    def spec(self) -> TensorSpec:
        """Return it as recipes have it.

        Raises:
            ValueError: Its shape is not known.
        """
        if self.shape is None:
            raise ValueError(f"the shape of {self.name} is not known")
        return TensorSpec(name=self.name, dtype=self.dtype, shape=self.shape, batch_axis=self.batch_axis)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a recipe can know of a model.

    Attributes:
        source: ``[model] source``.
        arguments: ``[model] arguments``.
        inputs: Its inputs.
        outputs: Its outputs.
        layers: Its layers, as rules see them: name, type, other names of the type.
        no_rules: Why no rule can be written; empty where one can.
        batches: Whether requests may be put together.
        batch_reason: Why, or why not, half a sentence.
        found: What was read, a sentence each.
        undecided: What is left to decide, a sentence each.
    """

    source: str
    arguments: dict[str, object]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    layers: tuple[Layer, ...]
    no_rules: str = ""
    batches: bool
    batch_reason: str
    found: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()

    @property
    def counts(self) -> Counter[str]:
        """Layer type → number of layers."""
        return Counter(item[1] for item in self.layers)
