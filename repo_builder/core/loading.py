"""What needs a library that may not be installed is imported when it is used; one sentence says what is missing.

Three ways in::

    with loading.needs("build", what="exporting"):  # the rule: an import that type checkers follow
        from repo_builder.export import torch_onnx
    finder: FinderMaker = loading.load("repo_builder.quantize.modelopt:finder")  # rows of a table, typed by a protocol
    loading.load_user("my_net.py:make", where="model.source")  # what a user's recipe names
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from repo_builder.core import codec
from repo_builder.core.errors import MissingDependency, RecipeError, RepoBuilderError, did_you_mean, first_line

_DISTRUSTED: ContextVar[Mapping[str, Path]] = ContextVar("distrusted", default=types.MappingProxyType({}))


@contextmanager
def needs(extra: str | None = None, *, what: str) -> Iterator[None]:
    """Say what is missing where an import inside the block fails.

    Args:
        extra: The extra of repo-builder that installs what is imported.
        what: What needs it, in the user's words.

    Raises:
        MissingDependency: A library that is imported is not installed, or cannot be loaded.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or str(error)).partition(".")[0]
        hint = f"pip install 'repo-builder[{extra}]'" if extra else f"pip install {missing}"
        raise MissingDependency(f"{what} needs the library '{missing}', which is not installed", hint=hint) from error
    except ImportError as error:  # installed, and broken: a shared library of another version, say
        message = f"{what} needs a library that cannot be loaded: {error}"
        raise MissingDependency(message, hint="install it anew, as built for this machine") from error


def load(target: str, *, extra: str | None = None, what: str | None = None) -> Any:  # noqa: ANN401 - whatever is named
    """Import ``module:attribute``, for a table whose rows name their leaves; everything else imports inside ``needs``.

    Args:
        target: The place, as in ``repo_builder.quantize.modelopt:ModeloptQuantizer``.
        extra: The extra of repo-builder that installs what the module imports.
        what: What needs it, in the user's words; None takes the attribute's name.

    Raises:
        MissingDependency: A library that the module imports is not installed, or cannot be loaded.
    """
    module, _, attribute = target.partition(":")
    with needs(extra, what=what or attribute):
        return getattr(importlib.import_module(module), attribute)


class UntrustedCode(RecipeError):  # noqa: N818 - reads as what it is
    """Code that a file from elsewhere names, and that nobody has said to run."""


@contextmanager
def distrusting(targets: Iterable[str], *, origin: Path) -> Iterator[None]:
    """Refuse to import some ``module:function`` values inside the block, whoever asks for them.

    Args:
        targets: The values, as a file from elsewhere names them.
        origin: That file.
    """
    before = _DISTRUSTED.set({**_DISTRUSTED.get(), **dict.fromkeys(targets, origin)})
    try:
        yield
    finally:
        _DISTRUSTED.reset(before)


def refuse_distrusted(target: str, *, where: str) -> None:
    """Refuse a ``module:function`` that a file from elsewhere names.

    Raises:
        UntrustedCode: Inside ``distrusting`` of it.
    """
    if target in _DISTRUSTED.get():
        message = f"'{target}' is code that {_DISTRUSTED.get()[target]} names, and what a copied file names is not run"
        raise UntrustedCode(message, where=where, hint="--trust-code runs it")


def load_user(target: str, *, where: str) -> Any:  # noqa: ANN401 - whatever is named
    """Import a user's ``module:function`` from the current folder or the installed packages.

    ``folder/module.py:function`` names a file; its folder is looked in first, also for what the module imports.

    Raises:
        RecipeError: The module or the function is not there.
        UntrustedCode: Inside ``distrusting`` of it.
        MissingDependency: A library that the module imports is not installed.
    """
    refuse_distrusted(target, where=where)
    module, attribute, places = _module_of(target, where)
    sys.path[:0] = places
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            message = f"'{module}' needs the library '{error.name}'"
            raise MissingDependency(message, where=where, hint=f"pip install {error.name}") from error
        raise _missing(module, places, where) from error
    except RepoBuilderError:
        raise
    except Exception as error:  # whatever a user's module raises while it is imported
        if isinstance(error, AttributeError) and module in sys.modules:
            raise RecipeError(f"the module '{module}' has no '{attribute}'", where=where) from error
        message = f"the module '{module}' cannot be imported: {type(error).__name__}: {first_line(error)}"
        raise RecipeError(message, where=where) from error
    finally:
        for place in places:
            sys.path.remove(place)


def require_user(target: str, *, where: str) -> None:
    """Refuse a ``module:function`` whose module is nowhere, without running any of it.

    Raises:
        RecipeError: That is so.
    """
    module, _, places = _module_of(target, where)
    outermost = module.partition(".")[0]
    if outermost not in sys.modules and PathFinder.find_spec(outermost, [*places, *sys.path]) is None:
        raise _missing(module, places, where)


def _module_of(target: str, where: str) -> tuple[str, str, list[str]]:
    """Return a module's name, what is wanted of it, and the folders in which it is looked for first."""
    module, _, attribute = target.rpartition(":")
    places = [str(Path.cwd())]
    if module.endswith(".py"):
        places.insert(0, str(Path(module).parent))
        module = Path(module).stem
    if not all(part.isidentifier() for part in module.split(".")):
        raise RecipeError(f"'{target}' names no Python module", where=where, hint="write module:function")
    return module, attribute, places


def _missing(module: str, places: list[str], where: str) -> RecipeError:
    hint = f"looked in {', '.join(places)} and the installed packages"
    return RecipeError(f"there is no Python module '{module}'", where=where, hint=hint)


def call(function: Callable[..., Any], arguments: Mapping[str, Any], *, where: str, **given: Any) -> Any:  # noqa: ANN401 - whatever the function takes and returns
    """Call a function with a recipe's table of keyword arguments, strictly.

    Args:
        function: What is called.
        arguments: The recipe's table, as in ``[model.arguments]``.
        where: The table's key path.
        given: Keyword arguments that do not come from the recipe.

    Raises:
        RecipeError: The function takes no such argument, needs one that is not there, or says in its annotations that
            it takes another type.
    """
    parameters = inspect.signature(function).parameters.values()
    if not any(item.kind is item.VAR_KEYWORD for item in parameters):
        takes = {item.name for item in parameters if item.kind is not item.POSITIONAL_ONLY} - set(given)
        for key in arguments:
            if key not in takes:
                raise RecipeError(f"unknown argument '{key}'", where=f"{where}.{key}", hint=did_you_mean(key, takes))
    for item in parameters:
        needed = item.default is item.empty and item.kind not in (item.VAR_KEYWORD, item.VAR_POSITIONAL)
        if needed and item.name not in arguments and item.name not in given:
            raise RecipeError(f"the argument '{item.name}' is missing", where=where, hint=f"add {item.name} = ...")
    kinds = _kinds(function)
    checked = {
        key: codec.convert(kinds[key], value, f"{where}.{key}") if key in kinds else value
        for key, value in arguments.items()
    }
    return function(**given, **checked)


def _kinds(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a function's parameters that TOML values can be checked against."""
    while isinstance(function, functools.partial):
        function = function.func
    try:
        found = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except (NameError, TypeError, AttributeError):  # a user's annotations that only a type checker resolves
        return {}
    return {name: kind for name, kind in found.items() if codec.knows(kind)}
