"""What the backend reads in a model's configuration, which Triton hands over as JSON of its ModelConfig."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repo_builder.serve.backends.tensorrt.slots import Shapes


def profiles(config: dict[str, Any], instance: str) -> list[int]:
    """Return the optimization profiles that the instance's group names; the first where it names none."""
    groups = config.get("instance_group") or [{}]
    name = re.sub(r"_\d+$", "", instance)  # Triton numbers the instances of a group
    mine = next((group for group in groups if group.get("name") == name), groups[0])
    return [int(name) for name in mine.get("profile") or ["0"]]


def warmup_shapes(config: dict[str, Any], inputs: Sequence[str]) -> list[Shapes]:
    """Return the full shapes of the inputs in each warm-up request that names them all."""
    found: list[Shapes] = []
    for sample in config.get("model_warmup") or []:
        given = sample.get("inputs", {})
        if all(name in given for name in inputs):
            batch = [int(sample["batch_size"])] if int(config["max_batch_size"]) else []
            found.append(tuple((*batch, *(int(size) for size in given[name]["dims"])) for name in inputs))
    return list(dict.fromkeys(found))
