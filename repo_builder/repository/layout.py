"""The tree that Triton reads, written so that it is whole at every moment.

    repository/<model>/config.pbtxt
                       labels.txt
                       <version>/model.onnx or model.plan, manifest.json

Triton takes every folder in a repository for a model, hidden ones too, and one that does not load stops the server.
So new trees are staged beside the repository, where Triton does not look, and exchanged for the old in one step.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from repo_builder.core import artifacts, codec, files
from repo_builder.core.artifacts import MANIFEST, EngineArtifact
from repo_builder.core.errors import OutputError, RepositoryError
from repo_builder.core.pipelines import MARK
from repo_builder.repository import config, validate
from repo_builder.repository.spec import versions

PATIENCE_S = 30.0
_KEPT_BEHIND = ("*.npz", "placed.onnx*")  # recorded outputs, and the graph that a plan was made of
_NO_LOCKS = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def place(
    engine: EngineArtifact,
    repository: Path,
    *,
    version: int | Literal["replace", "next"] = "replace",
    keep_versions: int | None = None,
) -> Path:
    """Put an engine into a model repository; the model's folder is exchanged in one step.

    Whatever happens, a reader finds the old folder or the new one. Two writers of one repository wait for each other.

    Args:
        engine: What a compile target made.
        repository: The model repository; made if need be.
        version: ``replace`` makes it version 1 and the only one; ``next`` adds it after the newest; a number adds or
            replaces that version. Other versions stay as they are, byte by byte.
        keep_versions: How many of the newest versions stay and are served; None takes the recipe's.

    Returns:
        The model's folder.

    Raises:
        RepositoryError: The engine does not go with what is there, or Triton would not load what came of it.
        OutputError: The repository cannot be written, or another writer does not come to an end.
    """
    keep = engine.recipe.repository.keep_versions if keep_versions is None else keep_versions
    spec = dataclasses.replace(config.from_engine(engine), keep_versions=keep)
    text = config.render(spec)
    refuse_broken_lines(engine.classes if spec.labels else ())
    where = repository.absolute()
    target = where / engine.recipe.name
    with exclusive(where) as staging, files.output_errors(where):
        refuse_foreign(target)
        number, kept = _plan(target, version, keep)
        for old in kept:
            _refuse_other_shapes(target / str(old), engine)
        with files.replacing_folder(target, staging=staging) as fresh:
            if version != "replace":
                _carry_over(target, fresh, kept)
            write_version(engine, fresh / str(number))
            if spec.labels:
                files.write_text(fresh / config.LABELS, "".join(f"{name}\n" for name in engine.classes))
            files.write_text(fresh / config.CONFIG, text)
            validate.refuse_staged(fresh, engine.recipe.name)
    return repository / engine.recipe.name


def reconfigure(model_folder: Path, text: str) -> None:
    """Give a model that lies in a repository another config.pbtxt; its folder is exchanged in one step.

    Args:
        model_folder: The model's folder in its repository.
        text: The new config.pbtxt.

    Raises:
        RepositoryError: Triton would not load what came of it; the old one stays.
        OutputError: The repository cannot be written, or another writer does not come to an end.
    """
    target = model_folder.absolute()
    with (
        exclusive(target.parent) as staging,
        files.output_errors(target),
        files.replacing_folder(target, staging=staging) as fresh,
    ):
        for item in sorted(target.iterdir()):
            if item.is_dir():
                shutil.copytree(item, fresh / item.name, symlinks=True, copy_function=_link)
            elif item.name != config.CONFIG:
                shutil.copy2(item, fresh / item.name, follow_symlinks=False)
        files.write_text(fresh / config.CONFIG, text)
        validate.refuse_staged(fresh, target.name)


def sweep(repository: Path) -> None:
    """Remove what a killed writer staged, unless a living one has the repository; the next writer would do the same."""
    with suppress(OSError):
        handle = os.open(repository, os.O_RDONLY)
        try:
            if _try_lock(handle):
                shutil.rmtree(_staging(repository), ignore_errors=True)
        finally:
            os.close(handle)


def _plan(target: Path, version: int | str, keep: int) -> tuple[int, list[int]]:
    """Return the number of the new version and the older ones that stay."""
    if version == "replace":
        return 1, []
    there = versions(target)
    number = max(there, default=0) + 1 if version == "next" else int(version)
    if number < 1:
        raise RepositoryError(f"version {number} is not a number from 1 on", where=str(target))
    newest = sorted({*there, number})[-keep:]
    if number not in newest:
        raise RepositoryError(
            f"version {number} is older than the {keep} that are kept ({', '.join(map(str, newest))})",
            where=str(target),
            hint="keep more versions, or use --version next",
        )
    return number, [item for item in newest if item != number]


def refuse_broken_lines(classes: Sequence[str]) -> None:
    """Refuse names of classes that would be more than one line of labels.txt and shift all behind them."""
    for place, name in enumerate(classes):
        if "\n" in name or "\r" in name:
            raise RepositoryError(
                f"the name of class {place} ({name!r}) has a line break, and labels.txt has one line a class",
                where="labels.txt",
                hint="name the class without it",
            )


def refuse_foreign(target: Path) -> None:
    """Refuse to replace a folder that was not written here."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise RepositoryError("is not a folder", where=str(target), hint="move it away, or choose another repository")
    if (
        target.is_dir()
        and any(target.iterdir())
        and not any((*target.glob(f"*/{MANIFEST}"), *target.glob(f"*/{MARK}")))
    ):
        raise RepositoryError(
            "holds a model that was not written by repo-builder",
            where=str(target),
            hint="move it away, name the model otherwise in the recipe, or choose another repository",
        )


def _refuse_other_shapes(old: Path, engine: EngineArtifact) -> None:
    """Refuse to keep a version that the new config.pbtxt would not fit: one file describes all versions."""
    if not (old / MANIFEST).exists():
        return
    there = artifacts.read(EngineArtifact, old)
    for what, one, other in (
        ("backend", there.details.backend, engine.details.backend),
        ("inputs", " ".join(map(str, there.inputs)), " ".join(map(str, engine.inputs))),
        ("outputs", " ".join(map(str, there.outputs)), " ".join(map(str, engine.outputs))),
        ("classes", ", ".join(there.classes), ", ".join(engine.classes)),
        ("profiles", codec.plain(there.profiles), codec.plain(engine.profiles)),
        ("max_batch_size", there.details.max_batch_size, engine.details.max_batch_size),
    ):
        if one != other:
            raise RepositoryError(
                f"has other {what} ({one}) than the new version ({other}), and one config.pbtxt serves both",
                where=str(old),
                hint="use --version replace, or give the new model another name",
            )


def _carry_over(target: Path, fresh: Path, kept: list[int]) -> None:
    """Link, or copy where links are not possible, what stays of the old folder."""
    names = {str(number) for number in kept}
    gone = {str(number) for number in versions(target)} - names | {config.CONFIG, config.LABELS}
    for item in sorted(target.iterdir()) if target.is_dir() else ():
        if item.name in gone:
            continue
        if item.is_dir():
            shutil.copytree(item, fresh / item.name, symlinks=True, copy_function=_link)
        else:
            shutil.copy2(item, fresh / item.name, follow_symlinks=False)


def _link(source: str, destination: str) -> None:
    try:
        os.link(source, destination, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, destination, follow_symlinks=False)


def write_version(engine: EngineArtifact, folder: Path) -> None:
    """Copy the engine's files, but for the recorded outputs, and write its manifest."""
    if not engine.model.is_file():
        raise RepositoryError("is missing", where=str(engine.model), hint="build again with --force")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(engine.path, folder, ignore=shutil.ignore_patterns(MANIFEST, *_KEPT_BEHIND))
    placed = {
        name: digest
        for name, digest in engine.files.items()
        if not any(fnmatchcase(name, kind) for kind in _KEPT_BEHIND)
    }
    artifacts.write_manifest(dataclasses.replace(engine, path=folder, files=placed))


@contextmanager
def exclusive(repository: Path) -> Iterator[Path]:
    """Hold a repository for one writer, and yield the folder to stage in; what a killed writer left is removed."""
    with files.output_errors(repository):
        repository.mkdir(parents=True, exist_ok=True)
        handle = os.open(repository, os.O_RDONLY)
    try:
        alone = _lock(handle, repository)
        staging = _staging(repository)
        with files.output_errors(repository):
            if alone:
                shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(exist_ok=True)
        try:
            yield staging
        finally:
            with suppress(OSError):
                staging.rmdir()
    finally:
        os.close(handle)


def _lock(handle: int, repository: Path) -> bool:
    """Lock a repository's folder until ``handle`` is closed; False where its file system knows no locks."""
    deadline = time.monotonic() + PATIENCE_S
    while (locked := _try_lock(handle)) is None:
        if time.monotonic() >= deadline:
            raise OutputError(
                f"another repo-builder has been writing there for {PATIENCE_S:.0f} s",
                where=str(repository),
                hint="wait for it, or choose another repository",
            )
        time.sleep(0.05)
    return locked


def _try_lock(handle: int) -> bool | None:
    """Return True where the lock was got, None where another holds it, False where there are no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _staging(repository: Path) -> Path:
    """Return where to stage: beside the repository, or in it where it is a mount point or its parent is read-only."""
    real = repository.resolve()
    beside = real.stat().st_dev == real.parent.stat().st_dev and os.access(real.parent, os.W_OK)
    return (real.parent if beside else real) / f".{real.name}.staging"
