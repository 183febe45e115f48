"""A model's sizes against those of config.pbtxt: the one rule of `config`, `validate` and the embedded backend.

Imports nothing: a model's process in Triton uses it, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def stated(sizes: Iterable[object]) -> tuple[int, ...]:
    """Return a shape as ONNX Runtime states it: -1 for a size that varies, which it gives as a name or None."""
    return tuple(size if isinstance(size, int) and size >= 0 else -1 for size in sizes)


def unlike(dims: Sequence[int], model: Sequence[int], *, batched: bool, exact: bool) -> bool:
    """Whether the dims of config.pbtxt are not what a model's tensor takes or gives.

    The rule of Triton's onnxruntime backend (``CompareDimsSupported``): the rank is the same, a fixed size of the
    model is the configuration's; where the model's size varies, any will do, unless the tensor is compared exactly.
    A tensor of no dimensions has the one of a single element in a configuration.

    Args:
        dims: What the model gets of config.pbtxt: dims, or what they are reshaped to.
        model: The tensor's whole shape, -1 where it varies.
        batched: Whether the first dimension is the batch, which ``dims`` leaves out.
        exact: Whether a size that varies must be -1, and one of 0 is refused, since config.pbtxt cannot say it: so for
            outputs in Triton's own backend. The embedded one takes any size for one that varies, and -1 for 0.
    """
    whole = [-1, *dims] if batched else list(dims)
    if not model and not batched:
        return any(size != 1 for size in whole)
    return len(whole) != len(model) or any(
        there != said and (exact or not (there == -1 or (there == 0 and said == -1)))
        for said, there in zip(whole, model, strict=True)
    )
