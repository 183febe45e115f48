"""A torch module as the exporters want it: weights as plain parameters, outputs as a tuple."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from repo_builder.core.calling import outputs_of
from repo_builder.export.attention import plain_attention


def fold_parametrizations(module: nn.Module) -> None:
    """Turn weights that are computed of others (weight_norm, spectral_norm, any parametrization) into plain ones.

    In eval mode they are constant. The module is changed in place.
    """
    for item in list(module.modules()):
        if parametrize.is_parametrized(item):
            for name in list(item.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(item, name, leave_parametrized=True)
        for hook in list(item._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                nn.utils.remove_weight_norm(item, hook.name)
            elif isinstance(hook, SpectralNorm):
                nn.utils.remove_spectral_norm(item, hook.name)


@contextmanager
def exportable(module: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Let a module return a flat tuple, and attention run the way that can be exported, for as long as this lasts.

    Args:
        module: The module.
        names: Names of its outputs.
    """
    handle = module.register_forward_hook(lambda _module, _arguments, result: outputs_of(result, names))
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with plain_attention(module):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
        handle.remove()
