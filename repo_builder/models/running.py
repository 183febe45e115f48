"""Running a torch module on numpy samples."""

from __future__ import annotations

import torch

from repo_builder.core.progress import bar
from repo_builder.core.recipe import ModelSpec
from repo_builder.core.tensors import Array

_BATCH = 64


def run(module: torch.nn.Module, inputs: dict[str, Array], spec: ModelSpec) -> Array:
    """Return the first output of a module in eval mode on all samples.

    Args:
        module: The network; its forward takes the inputs in the order of the spec.
        inputs: Samples by input name, batch first, shape (n, ...).
        spec: Names the inputs.

    Returns:
        The first output, shape (n, ...).
    """
    module.eval()
    arrays = [inputs[item.name] for item in spec.inputs]
    parts = []
    with torch.inference_mode():
        for start in bar(range(0, len(arrays[0]), _BATCH), "running samples"):
            result = module(*(torch.from_numpy(array[start : start + _BATCH]) for array in arrays))
            parts.append(result[0] if isinstance(result, tuple | list) else result)
    values: Array = torch.cat(parts).numpy()
    return values
