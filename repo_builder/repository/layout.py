"""The tree that Triton reads, written so that it is whole at every moment.

    repository/<model>/config.pbtxt
                       labels.txt
                       <version>/model.onnx | model.plan, manifest.json

Triton takes every folder in the repository for a model, also hidden ones, so new trees are staged beside it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from repo_builder import files
from repo_builder.artifacts import EngineArtifact
from repo_builder.repository import config


def place(
    engine: EngineArtifact,
    repository: Path,
    *,
    version: int | Literal["replace", "next"] = "replace",
    keep_versions: int | None = None,
) -> Path:
    """Put an engine into a model repository; the model's folder is exchanged in one step.

    Args:
        engine: What a compile target made.
        repository: The model repository; made if need be.
        version: ``replace`` leaves version 1 alone; ``next`` adds the version after the newest; a number is that one.
        keep_versions: How many of the newest versions stay; None takes the recipe's.

    Returns:
        The model's folder.

    Raises:
        RepositoryError: The engine does not go with what is there.
        OutputError: The repository cannot be written.
    """
    target = repository / engine.recipe.name
    spec = config.from_engine(engine)
    with files.replacing_folder(target) as fresh:
        number = 1 if not isinstance(version, int) else version
        shutil.copytree(engine.path, fresh / str(number))
        if spec.labels:
            files.write_text(fresh / config.LABELS, "".join(f"{name}\n" for name in engine.classes))
        files.write_text(fresh / config.CONFIG, config.render(spec))
    return target
