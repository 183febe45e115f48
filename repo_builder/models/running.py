"""Running a torch module on numpy samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from repo_builder.core.calling import outputs_of
from repo_builder.core.errors import ModelError, first_line
from repo_builder.core.progress import bar
from repo_builder.core.samples import Batches
from repo_builder.core.tensors import Array


def run(module: torch.nn.Module, samples: Mapping[str, Array], batches: Batches) -> dict[str, Array]:
    """Return the outputs of a module in eval mode on all samples.

    Args:
        module: The network.
        samples: ``(n, *shape)`` by input name.
        batches: How samples become its tensors: inputs in the order of its forward, outputs in that in which it gives
            them.

    Returns:
        Output → its values, ``(n, *shape)``.

    Raises:
        ModelError: The network does not run on the samples, gives another number of outputs, or none that count them.
    """
    module.eval()
    names = [spec.name for spec in batches.outputs]
    runs = -(-len(next(iter(samples.values()))) // batches.size)
    ticks = iter(bar(range(runs), "running samples"))

    def model(feed: dict[str, Array]) -> dict[str, Array]:
        next(ticks)
        found = _outputs(module, [torch.from_numpy(feed[spec.name]) for spec in batches.inputs], names)
        return {name: value.numpy() for name, value in zip(names, found, strict=True)}

    with torch.inference_mode():
        outputs = batches.run(model, samples)
        next(ticks, None)  # the bar ends
    return outputs


def _outputs(module: torch.nn.Module, batch: Sequence[torch.Tensor], names: Sequence[str]) -> tuple[torch.Tensor, ...]:
    try:
        found = outputs_of(module(*batch), names)
    except Exception as error:  # whatever a user's forward raises
        shapes = ", ".join(str(list(item.shape)) for item in batch)
        raise ModelError(
            f"the network does not run on inputs of shape {shapes}: {first_line(error)}",
            where="model.inputs",
            hint="check the shapes in [[model.inputs]] and the data; samples are on the first axis, or on batch_axis",
        ) from error
    if len(found) != len(names):
        message = f"the network gives {len(found)} outputs, the recipe names {len(names)}"
        raise ModelError(message, where="model.outputs")
    return found
