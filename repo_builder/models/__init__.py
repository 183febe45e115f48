"""Networks: built-in architectures, a user's own, and the checkpoints that fill them.

Importing this package imports no torch; what needs it is imported when it is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from repo_builder.core import assets, loading
from repo_builder.core.errors import ModelError, RepoBuilderError, did_you_mean
from repo_builder.core.recipe import ModelSpec

if TYPE_CHECKING:
    from torch import nn

# name → "module:function" that takes [model.arguments] and returns a torch.nn.Module
ARCHITECTURES: dict[str, str] = {
    "jsc": "repo_builder.models.jsc:build",
    "vgg": "repo_builder.models.vgg:build",
}
_PACKAGE = "package:"


def create(spec: ModelSpec, *, seed: int) -> nn.Module:
    """Make the network of a recipe, freshly initialised and in eval mode.

    Args:
        spec: ``source`` is a name in ``ARCHITECTURES`` or a user's ``module:function``.
        seed: Seed of the initial weights; the caller's random state is left as it was.

    Raises:
        ModelError: No such architecture, or the user's function returns no module.
        RecipeError: The user's function is not there, or takes other arguments.
        MissingDependency: torch is not installed.
    """
    if spec.source in ARCHITECTURES:
        build = loading.load(ARCHITECTURES[spec.source], extra="build")
    elif ":" in spec.source:
        build = loading.load_user(spec.source, where="model.source")
    else:
        raise ModelError(
            f"there is no architecture '{spec.source}'",
            where="model.source",
            hint=f"{did_you_mean(spec.source, ARCHITECTURES)} (your own is named module:function)",
        )
    with loading.needs("build", what="making a network"):
        from repo_builder.models import building
    return building.build(build, spec.arguments, source=spec.source, seed=seed)


def borrow(module: object) -> nn.Module:
    """Return a copy of a module that a program holds, in eval mode on the CPU; see ``live.borrowed``.

    Raises:
        ModelError: It is none, or cannot be copied.
    """
    with loading.needs("build", what="taking a torch module"):
        from repo_builder.models import live
    return live.borrowed(module)


def load_checkpoint(module: nn.Module, path: Path, *, where: str) -> None:
    """Fill a module with a checkpoint's tensors; see ``checkpoints.load``.

    Raises:
        ModelError: The file is missing or damaged, or its tensors are not the module's.
    """
    with loading.needs("build", what="reading a checkpoint"):
        from repo_builder.models import checkpoints
    checkpoints.load(module, path, where=where)


def checkpoint_facts(path: Path) -> dict[str, str]:
    """Return what ``repo-builder train`` wrote into a checkpoint: recipe, seed, epoch, versions, ``held_out``.

    ``held_out`` is that of the data set it was trained with (``datasets.Dataset``). Empty for any other file.
    """
    with loading.needs("build", what="reading a checkpoint"):
        from repo_builder.models import checkpoints
    return checkpoints.facts(path)


def checkpoint_path(spec: ModelSpec, override: Path | None) -> Path:
    """Return the checkpoint to use: ``--checkpoint`` if given, else the recipe's.

    Args:
        spec: ``checkpoint`` is a path, ``package:NAME`` for weights that ship with repo-builder, or None.
        override: The path that the user gave for this run.

    Raises:
        ModelError: There is none, or the file is missing.
    """
    advice = "make one with repo-builder train, or name one with --checkpoint"
    if override is None and spec.checkpoint is None:
        raise ModelError("the recipe names no checkpoint", where="model.checkpoint", hint=advice)
    if override is None and spec.checkpoint is not None and spec.checkpoint.startswith(_PACKAGE):
        try:
            return assets.packaged("weights", spec.checkpoint.removeprefix(_PACKAGE))
        except RepoBuilderError as error:
            raise ModelError(error.message, where="model.checkpoint", hint=advice) from None
    path = override or Path(str(spec.checkpoint))
    if not path.is_file():
        where = "--checkpoint" if override else "model.checkpoint"
        raise ModelError(f"there is no checkpoint file '{path}'", where=where, hint=advice)
    return path
