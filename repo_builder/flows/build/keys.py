"""What a stage's result depends on beside its inputs: the code of its rooms, the user's code, library versions."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from pathlib import Path

from repo_builder.core import environment, files
from repo_builder.core.recipe import Recipe

_PACKAGE = Path(__file__).resolve().parents[2]


@functools.cache
def code_version(*parts: str) -> str:
    """Return the sha256 over the source files of rooms or modules of this package."""
    digest = hashlib.sha256()
    for part in parts:
        place = _PACKAGE / part
        for source in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(source.relative_to(_PACKAGE).as_posix().encode())
            digest.update(source.read_bytes())
    return digest.hexdigest()


def user_code(recipe: Recipe) -> dict[str, str]:
    """Return the sha256 of the files behind the recipe's ``module:function`` values."""
    found: dict[str, str] = {}
    for value in (recipe.model.source, recipe.data.source):
        module = value.rpartition(":")[0]
        if module.endswith(".py"):
            origin: Path | None = Path(module)
        elif module and all(part.isidentifier() for part in module.split(".")):
            origin = _origin(module)
        else:
            continue
        if origin is not None and origin.is_file():
            found[value] = files.sha256_of(origin)
    return found


def _origin(module: str) -> Path | None:
    """Return the file of a module, in the current folder or among the installed packages."""
    near = Path.cwd().joinpath(*module.split(".")).with_suffix(".py")
    if near.is_file():
        return near
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:
        return None
    return Path(spec.origin) if spec is not None and spec.origin else None


def versions(*libraries: str) -> dict[str, str | None]:
    """Return the installed versions of libraries, or of a quantization back end's; None where there is none."""
    alias = {"modelopt": "nvidia-modelopt"}
    return {name: environment.version(alias.get(name, name)) for name in libraries}
