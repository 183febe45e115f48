"""Whether what lies in a model repository can be served on this machine, asked before a server starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from repo_builder.compile.inspection import ask_engine
from repo_builder.core.errors import MissingDependency, RepoBuilderError, ServeError
from repo_builder.repository.validate import Missing, preflight


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What was found.

    Attributes:
        refusals: Why plans cannot be served here; empty where all can.
        notes: What else is to be said: ``warning`` or ``info``, and the sentence.
    """

    refusals: tuple[RepoBuilderError, ...] = ()
    notes: tuple[tuple[str, RepoBuilderError], ...] = ()


def look(repository: Path, models: Sequence[str], *, container: bool) -> Preflight:
    """Hold the plans of a repository against this machine.

    Args:
        repository: The model repository.
        models: Models that are to be served; empty means all.
        container: Whether the container serves them, whose TensorRT cannot be asked from here.
    """
    names = {path.parents[1].name for path in repository.glob("*/*/*.plan")}
    chosen = sorted(name for name in names if not models or name in models)
    if not chosen:
        return Preflight()
    refusals: list[RepoBuilderError] = []
    notes: list[tuple[str, RepoBuilderError]] = []
    for item in preflight(repository, chosen, ask_engine=None if container else ask_engine):
        kind = MissingDependency if isinstance(item, Missing) else ServeError
        told = kind(item.message, where=str(repository / item.path), hint=item.hint)
        if item.level == "error":
            refusals.append(told)
        else:
            notes.append((item.level, told))
    return Preflight(refusals=tuple(refusals), notes=tuple(notes))
