"""``call``: a function of the user's; the file that it is in goes into the model's folder, with those beside it."""

from __future__ import annotations

import ast
import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repo_builder.core import watching
from repo_builder.core.errors import RecipeError
from repo_builder.core.recipe.steps import Call
from repo_builder.pipeline.form import Form, Kind, Python, kind_of

MOST = 64  # tensors; a recipe that names more is a mistake
_FOLDER = "code"


def _gives(spec: Call, taken: Sequence[Kind]) -> Sequence[Kind]:
    return [kind_of(item) for item in spec.gives]


def file_of(spec: Call) -> Path | None:
    """Return the file that the function is in; None where it is that of an installed package.

    Raises:
        RecipeError: There is no such module.
    """
    module = spec.function.rpartition(":")[0]
    if module.endswith(".py"):
        path = Path(module)
    else:
        beside = Path.cwd().joinpath(*module.split("."))
        found = next((item for item in (beside.with_suffix(".py"), beside / "__init__.py") if item.is_file()), None)
        path = found or _installed(module)
    if not path.is_file():
        raise RecipeError(f"there is no Python module '{module}'", where="function", hint="write module:function")
    return path if watching.is_users(path) else None


def _installed(module: str) -> Path:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    return Path(spec.origin) if spec and spec.origin else Path(module)


def files_of(spec: Call) -> tuple[Path, ...]:
    """Return the files that go into the model's folder: the module, and those beside it that it imports."""
    first = file_of(spec)
    found: dict[Path, None] = {}
    waiting = [first] if first else []
    while waiting:
        path = waiting.pop()
        if path not in found:
            found[path] = None
            waiting.extend(item for name in _imports(path) if (item := path.with_name(f"{name}.py")).is_file())
    return tuple(found)


def _imports(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    names = [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return [name.partition(".")[0] for name in names]


def _settings(spec: Call) -> dict[str, Any]:
    module, _, function = spec.function.rpartition(":")
    first = file_of(spec)
    return {
        "folder": _FOLDER if first else None,
        "module": first.stem if first else module,
        "function": function,
        "arguments": spec.arguments,
        "gives": [[item.name, item.dtype.numpy.name, list(item.shape)] for item in spec.gives],
    }


def _ship(spec: Call, folder: Path) -> None:
    for path in files_of(spec):
        (folder / _FOLDER).mkdir(exist_ok=True)
        shutil.copyfile(path, folder / _FOLDER / path.name)


FORM = Form(takes=(1, MOST), gives=_gives, python=Python(file="call_function", settings=_settings, ship=_ship))
