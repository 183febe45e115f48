"""``[pipeline]``: steps before and behind the network: a client sends an encoded image, a text or raw numbers."""

from __future__ import annotations

from dataclasses import dataclass

from repo_builder.core.recipe.bounds import Text
from repo_builder.core.recipe.steps import Step
from repo_builder.core.tensors import TensorSpec


@dataclass(frozen=True, kw_only=True)
class PipelineSpec:
    """``[pipeline]``: what is done to what a client sends, and to what the network gives.

    Attributes:
        inputs: What clients send, batch left out; ``decode_image`` and ``tokenize`` know theirs.
        before: Steps before the network, in their order.
        after: Steps behind it.
        outputs: Names of the tensors that clients get; left out, those that no step takes.
        fuse: ``true`` puts all steps and the network into one ONNX graph; ``false`` makes an ensemble with the network
            as a model of its own; left out, steps are fused as far as they can be.
    """

    inputs: tuple[TensorSpec, ...] = ()
    before: tuple[Step, ...] = ()
    after: tuple[Step, ...] = ()
    outputs: tuple[Text, ...] = ()
    fuse: bool | None = None

    @property
    def some(self) -> bool:
        """Whether there is a step at all."""
        return bool(self.before or self.after)
