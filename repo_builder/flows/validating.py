"""What ``repo-builder validate`` finds in a model repository."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repo_builder.compile.inspection import ask_engine
from repo_builder.repository import validate as checking
from repo_builder.repository.checks import target
from repo_builder.repository.validate import Finding

LEVELS = ("error", "warning", "info")


@dataclass(frozen=True, kw_only=True)
class Validation:
    """A repository that was checked.

    Attributes:
        repository: The repository.
        models: Names of the models that were checked.
        findings: What was found, in the order of the models.
    """

    repository: Path
    models: tuple[str, ...]
    findings: tuple[Finding, ...]

    def count(self, level: str) -> int:
        """Return the number of findings of a level: ``error``, ``warning`` or ``info``."""
        return sum(item.level == level for item in self.findings)

    @property
    def ok(self) -> bool:
        """Whether Triton would load every model and answer rightly: no finding is an error."""
        return not self.count("error")

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values, as ``validate --json`` prints them."""
        rows = [dataclasses.asdict(item) for item in self.findings]
        counts = {level: self.count(level) for level in LEVELS}
        return {"repository": str(self.repository), "models": list(self.models), **counts, "findings": rows}


def validate(repository: Path, models: Sequence[str] = (), *, runtime: str = "any") -> Validation:
    """Check a model repository as Triton would, without starting it.

    Args:
        repository: The model repository.
        models: Models to report on; empty means all.
        runtime: Where it is to be served: ``any``, ``embedded``, ``container`` or ``container:RELEASE``.

    Raises:
        RepositoryError: There is no repository, or no such model.
        ServeError: There is no such runtime.
    """
    chosen = target.parse(runtime)
    checked = tuple(models) or checking.models(repository)
    findings = checking.validate(repository, tuple(models), ask_engine=ask_engine, target=chosen)
    return Validation(repository=repository, models=checked, findings=findings)
