"""Files that are replaced whole: a reader sees the old one or the new one, whatever happens in between."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from repo_builder.core.errors import OutputError, RepoBuilderError, first_line

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_STAGED = ".new"  # how the names of what is not in place yet end: .NAME.xxxxxxxx.new


@contextmanager
def parsing(path: Path, error: type[RepoBuilderError], said: str, *, hint: str | None = None) -> Iterator[None]:
    """Turn whatever a parser raises on a damaged or hostile file into one error that names the file.

    zipfile, the decompressors, numpy's headers, Pillow, pickle, protobuf and json share no base class, and each
    raises more kinds of exception than it documents. So only calls of parsers stand in such a block.

    Args:
        path: The file.
        error: The branch that the file's kind belongs to.
        said: What is wrong then, as in ``is no .npz file of plain arrays``; the parser's own words follow.
        hint: What to do next.

    Raises:
        RepoBuilderError: Of the kind ``error``; errors of the tree pass unchanged.
    """
    try:
        yield
    except RepoBuilderError:
        raise
    except RecursionError as problem:
        raise error(f"{said} (it is nested too deeply)", where=str(path), hint=hint) from problem
    except MemoryError as problem:
        raise error(f"{said} (it would need more memory than there is)", where=str(path), hint=hint) from problem
    except Exception as problem:
        reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else first_line(problem)
        raise error(f"{said} ({reason[:200]})", where=str(path), hint=hint) from problem


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_json(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """Return the sha256 of a value's canonical JSON, in hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def tree_size(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file's content atomically; its folder is made if need be. A pipe or device is written to.

    Raises:
        OutputError: The file cannot be written.
    """
    with output_errors(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if _takes_a_stream(path):
            with path.open("ab") as stream:
                stream.write(data)
            return
        with replacing_file(path) as stream:
            stream.write(data)


@contextmanager
def replacing_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a stream whose content takes ``path``'s place when the block ends well; else nothing is left of it.

    Raises:
        OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    fresh, handle = _owned(path, path.parent, folder=False)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(handle)
            fresh.chmod(0o666 & ~_umask())
            os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically, in UTF-8.

    Raises:
        OutputError: The file cannot be written.
    """
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Replace a JSON file atomically; keys keep their order.

    Raises:
        OutputError: The file cannot be written.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def require_writable(path: Path) -> None:
    """Refuse early a folder that could not be written after long work.

    Raises:
        OutputError: A file is in its way, or its nearest folder that exists may not be written.
    """
    nearest = next(item for item in (path, *path.absolute().parents) if item.exists())
    if not nearest.is_dir():
        raise OutputError("cannot be a folder: a file is in its way", where=str(nearest), hint="choose another path")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError("may not be written", where=str(nearest), hint="choose a folder that you may write to")


@contextmanager
def replacing_folder(target: Path, *, staging: Path | None = None) -> Iterator[Path]:
    """Yield an empty folder that takes ``target``'s place when the block ends well.

    The new folder lies beside the target until then. On Linux the two are exchanged in one system call; elsewhere
    the old one is moved aside first. When the block fails, the target is untouched.

    Args:
        target: The folder to replace, or to make.
        staging: A folder on the target's file system in which the new one lies until then; None is beside the target.

    Raises:
        OutputError: The folder cannot be written.
    """
    with output_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target)
        fresh, handle = _owned(target, staging or target.parent, folder=True)
        fresh.chmod(0o777 & ~_umask())
    try:
        with output_errors(target):
            yield fresh
            _exchange(fresh, target)
    finally:
        os.close(handle)
        shutil.rmtree(fresh, ignore_errors=True)


def _owned(target: Path, place: Path, *, folder: bool) -> tuple[Path, int]:
    """Make the file or folder that will be ``target``, and return it with the handle by which this process owns it.

    The kernel lets go of a lock when its process ends, however it ends: that is how a sweep tells left from living.
    """
    prefix = f".{target.name}."
    while True:
        if folder:
            fresh = Path(tempfile.mkdtemp(_STAGED, prefix, place))
            handle = os.open(fresh, os.O_RDONLY)
        else:
            handle, name = tempfile.mkstemp(_STAGED, prefix, place)
            fresh = Path(name)
        with suppress(OSError):  # a file system without locks: then nobody can sweep there either
            fcntl.flock(handle, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if fresh.stat().st_ino == os.fstat(handle).st_ino:
                return fresh, handle
        os.close(handle)  # swept before it was owned


def sweep(target: Path) -> None:
    """Remove what killed writers of ``target`` left beside it: staged files and folders that no process owns."""
    ours = re.compile(re.escape(f".{target.name}.") + "[a-z0-9_]{8}" + re.escape(_STAGED))
    try:
        left = [Path(item.path) for item in os.scandir(target.parent) if ours.fullmatch(item.name)]
    except OSError:
        return
    for path in left:
        with suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where its owner lives, or there are no locks
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
            finally:
                os.close(handle)


def _exchange(fresh: Path, target: Path) -> None:
    """Put ``fresh`` in ``target``'s place; what was there is left under ``fresh``'s name."""
    if not target.exists():
        os.rename(fresh, target)
        return
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        done = libc.renameat2(_AT_FDCWD, os.fsencode(fresh), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE)
        if done == 0:
            return
        if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(target))
    aside = fresh.with_suffix(".old")
    os.rename(target, aside)
    os.rename(fresh, target)
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block that concerns ``path`` or its neighbours into an OutputError that names it."""
    try:
        yield
    except OSError as error:
        concerned = error.filename is None or str(error.filename).startswith(str(path.parent))
        if error.errno is None or not concerned:
            raise
        hint = {
            errno.EACCES: "choose a folder that you may write to",
            errno.EROFS: "choose a folder on a file system that is not read-only",
            errno.ENOSPC: "free some space there, or choose another folder",
            errno.ENOTDIR: "a part of that path is a file; choose another",
            errno.EEXIST: "something of that name is in the way; choose another",
        }.get(error.errno or 0, "check that path")
        reason = error.strerror or str(error)
        raise OutputError(f"cannot be written ({reason})", where=str(path), hint=hint) from error


def _takes_a_stream(path: Path) -> bool:
    """Whether a path is a pipe or device such as /dev/stdout, whose place no file may take."""
    return path.absolute().parent == Path("/dev") or (path.exists() and not path.is_file() and not path.is_dir())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
