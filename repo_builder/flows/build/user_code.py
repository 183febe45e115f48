"""The user's own code behind a recipe: its modules, and every module outside the installed packages that they import.

Imports are read from the source, not by importing: whether a build is up to date is asked before anything heavy runs.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

from repo_builder.core import files, watching

_OWN = "repo_builder"  # its code is part of the key by itself


def fingerprints(target: str) -> dict[str, str]:
    """Return the sha256 of every file of user code that ``module:function`` runs, by its module's name.

    Args:
        target: As ``loading.load_user`` takes it; anything else has no code.
    """
    module = target.rpartition(":")[0]
    if module.endswith(".py"):
        roots: tuple[Path, ...] = (Path(module).parent, Path.cwd())
        start = [(Path(module).stem, Path(module))] if Path(module).is_file() else []
    elif module and all(part.isidentifier() for part in module.split(".")):
        roots = (Path.cwd(),)
        start = list(_find(module, roots))
    else:
        return {}
    return {name: files.sha256_of(path) for name, path in _closure(start, roots).items()}


def _closure(start: list[tuple[str, Path]], roots: tuple[Path, ...]) -> dict[str, Path]:
    """Return the modules of ``start`` and all that they import, outside the installed packages."""
    found = dict(start)
    waiting = [item for item in start if watching.is_users(item[1])]
    while waiting:
        name, path = waiting.pop()
        for wanted in _imports(name, path):
            for other, place in _find(wanted, roots):
                if other not in found and watching.is_users(place):
                    found[other] = place
                    waiting.append((other, place))
    return found


def _imports(name: str, path: Path) -> Iterator[str]:
    """Yield the modules that a file may import, anywhere in it; a name that is none is found nowhere."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (item.name for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = [*above, *((node.module or "").split(".") if node.module else [])]
            if base:
                yield ".".join(base)
            yield from (".".join([*base, item.name]) for item in node.names if item.name != "*")
        elif isinstance(node, ast.Call):
            yield from _named_in_call(node)


def _named_in_call(node: ast.Call) -> Iterator[str]:
    """Yield what ``importlib.import_module("x")`` and ``__import__("x")`` name in so many words."""
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    first = node.args[0] if node.args else None
    if called in ("import_module", "__import__") and isinstance(first, ast.Constant) and isinstance(first.value, str):
        yield first.value


def _find(module: str, roots: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
    """Yield the files that importing a module runs: its packages' and its own, as far as there are any."""
    top, *rest = module.split(".")
    if not top.isidentifier() or top == _OWN:
        return
    places = [root for root in roots if _at(root, top)]
    place = places[0] if places else _outside(top)
    if place is None:
        return
    for depth in range(1, len(rest) + 2):
        parts = module.split(".")[:depth]
        path = _at(place.joinpath(*parts[:-1]), parts[-1])
        if path is None:
            return
        if path.is_file():
            yield ".".join(parts), path


def _at(folder: Path, name: str) -> Path | None:
    """Return a module's or a package's file in a folder; the folder of a package that has none."""
    for path in (folder / name / "__init__.py", folder / f"{name}.py"):
        if path.is_file():
            return path
    return folder / name if (folder / name).is_dir() else None


def _outside(top: str) -> Path | None:
    """Return the folder on the search path in which a top-level module lies."""
    try:
        # The search path first: what this process has loaded under that name may be another module of it.
        spec = PathFinder.find_spec(top) or importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).parent
    return Path(spec.origin).parent if spec.origin and spec.has_location else None
