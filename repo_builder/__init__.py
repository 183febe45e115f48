"""repo-builder: from a trained model to a measured NVIDIA Triton deployment.

    import repo_builder as rb

    rb.build(rb.Recipe.load("vgg"))
    with rb.serve() as server:
        rb.perf("vgg", server=server).report("vgg.html")

Importing this package loads nothing else; each name brings its own when it is used. docs/python.md tells of them.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repo_builder.api import (
        PerfResult,
        SenseResult,
        TuneResult,
        build,
        compile,
        config,
        init,
        inspect,
        layers,
        perf,
        sense,
        serve,
        tune,
        validate,
    )
    from repo_builder.core.errors import RepoBuilderError
    from repo_builder.core.recipe import Recipe
    from repo_builder.flows.build import BuildResult
    from repo_builder.flows.validating import Validation
    from repo_builder.serve import Server

# ONNX Runtime reports to Microsoft, and keeps a device's number and a database of events in the user's cache folder,
# unless this is set before it is imported, here and in every process that is started from here.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
__all__ = [
    "BuildResult",
    "PerfResult",
    "Recipe",
    "RepoBuilderError",
    "SenseResult",
    "Server",
    "TuneResult",
    "Validation",
    "build",
    "compile",
    "config",
    "init",
    "inspect",
    "layers",
    "perf",
    "sense",
    "serve",
    "tune",
    "validate",
]

_API = "repo_builder.api"
_PLACES = {
    "BuildResult": "repo_builder.flows.build",
    "PerfResult": _API,
    "Recipe": "repo_builder.core.recipe",
    "RepoBuilderError": "repo_builder.core.errors",
    "SenseResult": _API,
    "Server": "repo_builder.serve",
    "TuneResult": _API,
    "Validation": "repo_builder.flows.validating",
    "build": _API,
    "config": _API,
    "init": _API,
    "inspect": _API,
    "layers": _API,
    "perf": _API,
    "sense": _API,
    "tune": _API,
    "validate": _API,
}
# Names of functions and of rooms of this package alike: the room is imported, and calling it calls the function.
_BOTH = ("compile", "serve")


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever has that name
    import importlib

    if name in _BOTH:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])


class _Callable(ModuleType):
    """A room that is called as the function of its name."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - the function's
        import importlib

        return getattr(importlib.import_module(_API), self.__name__.rpartition(".")[2])(*arguments, **named)


class _Package(ModuleType):
    """This package, to which Python's import gives every room as an attribute."""

    def __setattr__(self, name: str, value: Any) -> None:  # noqa: ANN401 - any attribute
        if name in _BOTH and isinstance(value, ModuleType):
            value.__class__ = _Callable
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
