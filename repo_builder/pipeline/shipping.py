"""The folder of a Python step as it goes into a model repository, and the same folder's code run in this process."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from repo_builder.core import files, foreign, loading
from repo_builder.core.errors import DataError, RecipeError, RepoBuilderError, RepositoryError, first_line
from repo_builder.core.tensors import Array
from repo_builder.pipeline.chain import Link
from repo_builder.pipeline.form import Python
from repo_builder.pipeline.steps import call

_SHIPPED = Path(__file__).resolve().parent / "shipped"
MODEL, CODE, SETTINGS = "model.py", "step.py", "step.json"
_COUNT = itertools.count()
Run = Callable[..., tuple[Array, ...]]


def form_of(link: Link) -> Python:
    """Return the Python form of a link that has one."""
    if link.form is None or link.form.python is None:
        raise ValueError(f"{link} is no Python")
    return link.form.python


def require(link: Link) -> None:
    """Refuse a step whose libraries are missing here, before any work.

    Raises:
        MissingDependency: That is so.
    """
    form = form_of(link)
    with loading.needs(form.extra or None, what=f"{link}"):
        for name in form.libraries:
            importlib.import_module(name)


def key(link: Link) -> Any:  # noqa: ANN401 - JSON values
    """Return what a step's folder depends on beside the code of this package.

    Raises:
        RepoBuilderError: A file that it ships is not there.
    """
    with _at(link):
        found: list[Any] = [form_of(link).settings(link.spec)]
        paths = call.files_of(link.spec) if link.kind == "call" else ()
        paths = (Path(link.spec.file),) if hasattr(link.spec, "file") else paths
        try:
            return [*found, *(files.sha256_of(path) for path in paths)]
        except OSError as error:
            hint = "a relative path is taken from the recipe's folder"
            raise DataError(f"cannot be read ({error.strerror})", where=str(error.filename), hint=hint) from None


def ship(link: Link, folder: Path) -> None:
    """Write a step's folder.

    Raises:
        RepoBuilderError: A file that it ships cannot be read.
    """
    form = form_of(link)
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in ((MODEL, "model"), (CODE, form.file)):
        files.write_bytes(folder / name, (_SHIPPED / f"{source}.py").read_bytes())
    with _at(link):
        files.write_json(folder / SETTINGS, form.settings(link.spec))
        if form.ship is not None:
            form.ship(link.spec, folder)


def require_own(folder: Path, link: Link) -> None:
    """Refuse a step's folder that came from elsewhere with other code than this package's: it would be run, and served.

    Raises:
        RepositoryError: That is so.
    """
    for name, source in ((MODEL, "model"), (CODE, form_of(link).file)):
        try:
            same = (folder / name).read_bytes() == (_SHIPPED / f"{source}.py").read_bytes()
        except OSError:
            same = False
        if not same:
            hint = "build it again with this version of repo-builder"
            raise RepositoryError(f"is not what this repo-builder has for {link}", where=str(folder / name), hint=hint)


def load(link: Link, folder: Path) -> Run:
    """Return a step's own code, read from its folder: what Triton runs.

    Args:
        link: The step.
        folder: What ``ship`` wrote.

    Raises:
        RecipeError: It cannot be loaded, as where a tokenizer.json is damaged.
        MissingDependency: Its library is missing.
        UntrustedCode: It is a user's function, and nobody has said to run it.
    """
    if link.kind == "call":
        loading.refuse_distrusted(link.spec.function, where=f"{link.place}.function")
    name = f"repo_builder_step_{next(_COUNT)}"
    spec = importlib.util.spec_from_file_location(name, folder / CODE)
    if spec is None or spec.loader is None:
        raise RecipeError(f"{folder / CODE} is no Python", where=link.place)
    module = importlib.util.module_from_spec(spec)
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # the folder is what is placed, and stays as it was written
    try:
        with loading.needs(form_of(link).extra or None, what=f"{link}"):
            spec.loader.exec_module(module)
            made = module.Step(folder, foreign.parsed(json.loads, (folder / SETTINGS).read_text(encoding="utf-8")))
    except RepoBuilderError:
        raise
    except Exception as error:  # whatever a library or a user's module raises
        said = f"({link.kind}) cannot be loaded: {type(error).__name__}: {first_line(error)}"
        raise RecipeError(said, where=link.place) from error
    finally:
        sys.dont_write_bytecode = before

    def run(*arrays: Array) -> tuple[Array, ...]:
        try:
            found: tuple[Array, ...] = made(*arrays)
        except module.Refused as error:
            raise DataError(f"({link.kind}) {error}", where=link.place) from None
        return found

    return run


class _at:  # noqa: N801 - reads as a word
    """Adds the step's place to what is raised about its table."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RecipeError) and error.where in ("function", "file"):
            raise RecipeError(error.message, where=f"{self._link.place}.{error.where}", hint=error.hint) from None
