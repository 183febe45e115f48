"""Random changes to training images that leave their class as it is. Calibration and evaluation never see them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from repo_builder.core.recipe import Augmentation

_MARGIN = 8  # a shift moves an image by up to an eighth of its side


def augment(images: torch.Tensor, how: Sequence[Augmentation], generator: torch.Generator) -> torch.Tensor:
    """Return a batch with every image changed by its own draw.

    Args:
        images: The batch (n, channels, height, width); of any shape where ``how`` is empty.
        how: ``shift`` moves an image by up to an eighth of its side, repeating the border; ``mirror`` swaps left and
            right in half of the images.
        generator: Source of randomness, on the CPU.
    """
    count = len(images)
    if "shift" in how:
        height, width = images.shape[-2:]
        down, right = (
            torch.randint(-(side // _MARGIN), side // _MARGIN + 1, (count, 1), generator=generator)
            for side in (height, width)
        )
        rows = (torch.arange(height) + down).clamp(0, height - 1).to(images.device)
        columns = (torch.arange(width) + right).clamp(0, width - 1).to(images.device)
        every = torch.arange(count, device=images.device)[:, None, None]
        # indices around a slice move the channels last
        images = images[every, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
    if "mirror" in how:
        turned = torch.rand(count, 1, 1, 1, generator=generator).to(images.device) < 0.5
        images = torch.where(turned, images.flip(-1), images)
    return images
