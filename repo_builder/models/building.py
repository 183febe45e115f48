"""Call an architecture's function with a recipe's arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from repo_builder.core import loading
from repo_builder.core.errors import ModelError


def build(function: Callable[..., Any], arguments: Mapping[str, Any], *, source: str, seed: int) -> nn.Module:
    """Return the module that ``function(**arguments)`` makes, initialised from ``seed``, in eval mode.

    Args:
        function: An architecture: keyword arguments → ``nn.Module``.
        arguments: ``[model.arguments]`` of the recipe.
        source: The function's name in messages.
        seed: Seed of torch's generator during the call.

    Raises:
        RecipeError: The function takes no such argument, or needs one that is not there.
        ModelError: The function refuses a value or returns something else.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module = loading.call(function, arguments, where="model.arguments")
        except (TypeError, ValueError) as error:
            raise ModelError(f"'{source}' cannot be made: {error}", where="model.arguments") from error
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"'{source}' returned {type(module).__name__}, not a torch.nn.Module",
            where="model.source",
            hint="the function takes [model.arguments] and returns the network",
        )
    return module.eval()
