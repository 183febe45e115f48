"""Running a torch module on numpy samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from repo_builder.core.calling import outputs_of
from repo_builder.core.errors import ModelError, first_line
from repo_builder.core.progress import bar
from repo_builder.core.tensors import Array


def run(
    module: torch.nn.Module, inputs: dict[str, Array], order: Sequence[str], outputs: Sequence[str], size: int = 64
) -> dict[str, Array]:
    """Return the outputs of a module in eval mode on all samples.

    Args:
        module: The network.
        inputs: Samples by input name, batch first, shape (n, ...).
        order: The order in which its forward takes them.
        outputs: Names of the outputs, in the order in which it gives them.
        size: Samples of a run.

    Returns:
        Output → its values, shape (n, ...).

    Raises:
        ModelError: The network does not run on the samples, or gives another number of outputs.
    """
    module.eval()
    arrays = [np.ascontiguousarray(inputs[name]) for name in order]
    parts: list[tuple[torch.Tensor, ...]] = []
    with torch.inference_mode():
        for start in bar(range(0, len(arrays[0]), size), "running samples"):
            batch = [torch.from_numpy(array[start : start + size]) for array in arrays]
            parts.append(_outputs(module, batch, outputs))
    return {name: torch.cat([part[place] for part in parts]).numpy() for place, name in enumerate(outputs)}


def _outputs(module: torch.nn.Module, batch: Sequence[torch.Tensor], names: Sequence[str]) -> tuple[torch.Tensor, ...]:
    try:
        found = outputs_of(module(*batch), names)
    except Exception as error:  # whatever a user's forward raises
        shapes = ", ".join(str(list(item.shape)) for item in batch)
        raise ModelError(
            f"the network does not run on inputs of shape {shapes}: {first_line(error)}",
            where="model.inputs",
            hint="check the shapes in [[model.inputs]] and the data; the first dimension here is the batch",
        ) from error
    if len(found) != len(names):
        message = f"the network gives {len(found)} outputs, the recipe names {len(names)}"
        raise ModelError(message, where="model.outputs")
    return found
