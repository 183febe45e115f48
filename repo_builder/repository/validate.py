"""Check a model repository as Triton would, without starting it.

Reads configurations through the ModelConfig protobuf and models through their files; works on any repository, whoever
wrote it. Which questions are asked stands in ``checks/``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from repo_builder.core.errors import RepositoryError, did_you_mean
from repo_builder.repository.checks import batching, ensemble, sequences, settings, tensors, versions, warmup
from repo_builder.repository.checks.findings import Finding, Missing, error, info
from repo_builder.repository.checks.folder import ModelFolder, read
from repo_builder.repository.checks.plans import AskEngine
from repo_builder.repository.checks.target import Target
from repo_builder.repository.spec import CONFIG

__all__ = ["Finding", "Missing", "models", "preflight", "refuse_staged", "validate"]


def models(repository: Path) -> tuple[str, ...]:
    """Return the models of a repository: the names of its folders, since that is what Triton takes for models.

    Raises:
        RepositoryError: There is no repository, or nothing in it.
    """
    where = str(repository)
    if not repository.exists():
        raise RepositoryError("there is no such folder", where=where, hint="repo-builder build makes one")
    if not repository.is_dir():
        raise RepositoryError("is a file, not a model repository", where=where)
    if (repository / CONFIG).is_file():
        raise RepositoryError(
            "is one model's folder, not a repository", where=where, hint=f"use {repository.absolute().parent}"
        )
    try:
        names = tuple(sorted(item.name for item in repository.iterdir() if item.is_dir()))
    except OSError as reason:
        raise RepositoryError(f"cannot be read ({reason.strerror})", where=where) from None
    if not names:
        raise RepositoryError("is empty: a model repository has one folder a model", where=where)
    return names


def validate(
    repository: Path, names: Sequence[str] = (), *, ask_engine: AskEngine | None = None, target: Target | None = None
) -> tuple[Finding, ...]:
    """Check a repository.

    Args:
        repository: The model repository.
        names: Models to report on; all where there are none.
        ask_engine: Says what a plan takes and gives, by means of this machine's TensorRT; None leaves that out.
        target: Where it is to be served; None means the embedded server and the newest container alike.

    Returns:
        What was found, in the order of the models.

    Raises:
        RepositoryError: There is no repository, nothing in it, or not that model.
    """
    there, names = models(repository), tuple(dict.fromkeys(names))
    for name in names:
        if name not in there:
            raise RepositoryError(f"has no model '{name}'", where=str(repository), hint=did_you_mean(name, there))
    folders: dict[str, ModelFolder | None] = {}
    findings: dict[str, list[Finding]] = {}
    for name in there:
        folders[name], findings[name] = _read(repository / name)
    for name in ensemble.closure(names or there, folders):
        findings[name].extend(_check(folders[name], folders, ask_engine, target or Target()))
    ensemble.spread(folders, findings)
    chosen = [finding for name in names or there for finding in findings[name]]
    return tuple(chosen if names else [*_strays(repository), *chosen])


def refuse_staged(path: Path, name: str, beside: Mapping[str, Path] | None = None) -> None:
    """Refuse a model's folder that is about to be placed and that Triton would not load.

    Args:
        path: The folder as it is staged.
        name: The name that it is going to have.
        beside: Other models that are placed with it, by the names that they are going to have: an ensemble's steps.

    Raises:
        RepositoryError: There are errors; the first is named.
    """
    folder, findings = read(path, staged_for=name)
    if folder is not None:
        others = {other: read(place, staged_for=other)[0] for other, place in (beside or {}).items()}
        findings += _check(folder, {name: folder, **others}, None, Target())
    errors = [item for item in findings if item.level == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        first = errors[0]
        message = f"is not placed, since Triton would not load it: {first.message}{more}"
        raise RepositoryError(message, where=first.path, hint=first.hint or None)


def preflight(repository: Path, names: Sequence[str], *, ask_engine: AskEngine | None) -> tuple[Finding, ...]:
    """Check the TensorRT plans of models that are about to be served here.

    Args:
        repository: The model repository.
        names: The models; a configuration that cannot be understood is left to Triton.
        ask_engine: As for ``validate``; None where Triton's TensorRT is another than this machine's.
    """
    found: list[Finding] = []
    for name in names:
        folder, _ = _read(repository / name)
        if folder is not None and folder.config.backend == "tensorrt":
            found += _found(folder, tensors.check(folder, ask_engine, Target(), serving=True))
    return tuple(found)


def _read(path: Path) -> tuple[ModelFolder | None, list[Finding]]:
    """Read a model's folder, or say that a hidden folder is none: one that does not load stops the server."""
    if path.name.startswith(".") and not (path / CONFIG).exists():
        return None, [error(path.name, "is hidden, and Triton takes it for a model all the same", "move it away")]
    try:
        return read(path)
    except OSError as reason:
        return None, [_unreadable(path.name, reason)]


def _check(
    folder: ModelFolder | None, folders: dict[str, ModelFolder | None], ask_engine: AskEngine | None, target: Target
) -> list[Finding]:
    if folder is None:
        return []  # has its own finding
    return _found(
        folder,
        versions.check(folder, target),
        settings.check(folder, target),
        batching.check(folder),
        sequences.check(folder),
        warmup.check(folder),
        ensemble.check(folder, folders) if folder.ensemble else tensors.check(folder, ask_engine, target),
    )


def _found(folder: ModelFolder, *checks: Iterator[Finding]) -> list[Finding]:
    try:
        return [finding for check in checks for finding in check]
    except OSError as reason:
        return [_unreadable(folder.name, reason)]


def _unreadable(name: str, reason: OSError) -> Finding:
    return error(name, f"cannot be read ({reason.strerror}): {reason.filename}")


def _strays(repository: Path) -> list[Finding]:
    found: list[Finding] = []
    for item in sorted(repository.iterdir()):
        if item.is_symlink() and not item.exists():
            found.append(error(item.name, "is a link to nothing, which stops tritonserver", "remove it"))
        elif not item.is_dir() and not item.name.startswith("."):
            found.append(info(item.name, "is not used by Triton"))
    return found
