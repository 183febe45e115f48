"""A model.py of the Python backend, as far as can be told without running it."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from repo_builder.repository.checks.findings import Finding, error, warning
from repo_builder.repository.checks.folder import ModelFolder
from repo_builder.repository.checks.target import Target

_ENVIRONMENT = "EXECUTION_ENV_PATH"
_HERE = "$$TRITON_MODEL_DIRECTORY"  # what Triton replaces by the model's folder
_BROUGHT = ("triton_python_backend_utils", "c_python_backend_utils")  # by the backend itself


def check(folder: ModelFolder, version: int, target: Target) -> Iterator[Finding]:
    """Check that a model.py compiles, has the class that the backend looks for, and finds what it imports."""
    file, where = folder.file(version), f"{folder.name}/{version}/{folder.filename}"
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError) as reason:
        yield error(where, f"is not Python ({reason})")
        return
    defined = {item.name for item in ast.walk(tree) if isinstance(item, ast.ClassDef)}
    brought = {
        name.asname or name.name for item in ast.walk(tree) if isinstance(item, ast.ImportFrom) for name in item.names
    }
    if "TritonPythonModel" not in defined | brought:
        yield error(where, "has no class TritonPythonModel", "the Python backend looks for that name")
    yield from _methods(where, tree)
    packed = folder.config.parameters[_ENVIRONMENT].string_value if _ENVIRONMENT in folder.config.parameters else ""
    if packed and not Path(packed.replace(_HERE, str(folder.path))).exists():
        report = warning if target.runtime == "container" and not packed.startswith(_HERE) else error
        yield report(folder.config_path, f"{_ENVIRONMENT} is '{packed}', and there is no such file")
    elif not packed and target.runtime != "container":
        # the embedded server runs models in the environment of this program; a container has one of its own
        report = error if target.runtime == "embedded" else warning
        for name in _not_installed(tree, file.parent):
            yield report(where, f"imports '{name}', which is not installed here", f"pip install {name}")


def _methods(where: str, tree: ast.Module) -> Iterator[Finding]:
    for item in ast.walk(tree):
        if not isinstance(item, ast.ClassDef) or item.name != "TritonPythonModel" or item.bases:
            continue
        methods = {part.name for part in ast.walk(item) if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)}
        if "execute" not in methods:
            yield warning(where, "its TritonPythonModel has no execute, so every request fails")


def _not_installed(tree: ast.Module, place: Path) -> Iterator[str]:
    """Yield packages that the file imports whatever happens, and that this environment does not have."""
    names: list[str] = []
    for item in tree.body:  # what stands in a try or a function may be meant to be missing
        if isinstance(item, ast.Import):
            names += [name.name for name in item.names]
        elif isinstance(item, ast.ImportFrom) and item.module and not item.level:
            names.append(item.module)
    for name in dict.fromkeys(name.partition(".")[0] for name in names):
        beside = (place / f"{name}.py").exists() or (place / name).exists()
        if name not in _BROUGHT and not beside and importlib.util.find_spec(name) is None:
            yield name
