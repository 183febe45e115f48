"""The backend directory of the embedded server, and names that Python finds inside its processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from repo_builder.core import files
from repo_builder.core.errors import ServeError
from repo_builder.core.servers import cache_folder

SEARCH_PATH = "REPO_BUILDER_SYS_PATH"
_BACKENDS = Path(__file__).resolve().parents[1] / "backends"
# The stub initialises Python in isolated mode: PYTHONPATH does not reach it, so the modules that it imports first bring
# this process's search path along.
_PRELUDE = f"""import os as _os, sys as _sys
_sys.path.extend(p for p in _os.environ.get("{SEARCH_PATH}", "").split(_os.pathsep) if p and p not in _sys.path)
# There, names of files are ASCII, and others cannot be opened; where one is encoded, its other letters become UTF-8.
if _sys.getfilesystemencoding() == "ascii":
    import codecs as _codecs
    _usual = _codecs.lookup_error("surrogateescape")
    def _utf8(error):
        if not isinstance(error, UnicodeEncodeError) or error.encoding != "ascii":
            return _usual(error)
        letters = error.object[error.start : error.end]
        encoded = [bytes([ord(c) & 255]) if "\\udc80" <= c <= "\\udcff" else c.encode() for c in letters]
        return b"".join(encoded), error.end
    _codecs.register_error("surrogateescape", _utf8)
"""
# What a stub of ours imports first. A model needs no more of numpy than arrays: what else numpy imports is imported
# when it is used, and 4 MiB of each model's process are saved.
_MODEL = """import importlib.machinery as _machinery, importlib.util as _util
class _Lazily:
    names = {"numpy.fft", "numpy.ma", "numpy.polynomial", "numpy.random"}
    def find_spec(self, name, path=None, target=None):
        spec = _machinery.PathFinder.find_spec(name, path) if name in self.names else None
        if spec is not None:
            spec.loader = _util.LazyLoader(spec.loader)
        return spec
_sys.meta_path.insert(0, _Lazily())
from repo_builder.serve.backends.BACKEND.model import TritonPythonModel
"""


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """What is used of the installed nvidia-pytriton.

    Attributes:
        server: The tritonserver binary.
        python_backend: Folder of the Python backend.
        stub: The stub process for the Python that runs now.
        libraries: Folder of the shared libraries that all of them need.
        caches: Folder of the response caches.
    """

    server: Path
    python_backend: Path
    stub: Path
    libraries: Path
    caches: Path


def assemble(wheel: Wheel, natives: Path | None = None) -> Path:
    """Return a private backend directory: the wheel's Python backend with its stub, our backends, and native ones.

    It is made once for each combination of contents. Triton refuses links that leave the directory, so all are copies;
    native backends, which are large, are further names of the same files where the file system allows it.

    Args:
        wheel: The installed wheel.
        natives: A folder of backends, each taken instead of ours of that name; the wheel's Python backend stays.

    Raises:
        ServeError: ``natives`` holds no backend.
    """
    ours = sorted(item.parent.name for item in _BACKENDS.glob("*/model.py"))
    theirs = _natives(natives) if natives is not None else []
    digest = hashlib.sha256("".join((_PRELUDE, _MODEL, *ours)).encode())
    for item in (wheel.stub, wheel.python_backend / "libtriton_python.so"):
        digest.update(f"{item}:{files.sha256_of(item)}\n".encode())
    for item in (path for folder in theirs for path in sorted(folder.rglob("*"))):
        known = item.stat()
        digest.update(f"{item}:{known.st_size}:{known.st_mtime_ns}\n".encode())
    folder = _ascii_folder() / "backends" / digest.hexdigest()[:16]
    if not folder.is_dir():
        with files.replacing_folder(folder) as fresh:
            python = fresh / "python"
            python.mkdir()
            shutil.copyfile(wheel.python_backend / "libtriton_python.so", python / "libtriton_python.so")
            utils = (wheel.python_backend / "triton_python_backend_utils.py").read_text(encoding="utf-8")
            (python / "triton_python_backend_utils.py").write_text(_PRELUDE + utils, encoding="utf-8")
            shutil.copyfile(wheel.stub, python / "triton_python_backend_stub")
            (python / "triton_python_backend_stub").chmod(0o755)
            for item in theirs:
                shutil.copytree(item, fresh / item.name, copy_function=_linked)
            for name in ours:
                if not (fresh / name).exists():
                    (fresh / name).mkdir()
                    source = _PRELUDE + _MODEL.replace("BACKEND", name)
                    (fresh / name / "model.py").write_text(source, encoding="utf-8")
    return folder


def _natives(folder: Path) -> list[Path]:
    """Return the folders of a backend directory, without the Python backend, which the wheel has with its stub."""
    hint = "name the folder that holds onnxruntime/libtriton_onnxruntime.so, as /opt/tritonserver/backends of the image"
    if not folder.is_dir():
        raise ServeError("there is no such folder", where=str(folder), hint=hint)
    found = [
        item.resolve()
        for item in sorted(folder.iterdir())
        if item.name != "python" and (any(item.glob("libtriton_*.so")) or (item / "model.py").is_file())
    ]
    if not found:
        raise ServeError("holds no backend of Triton", where=str(folder), hint=hint)
    return found


def _linked(source: str, target: str) -> None:
    """Give a file a second name, or copy it where the file system allows none."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)


def library_folders(folder: Path) -> list[str]:
    """Return the folders of a backend directory in which its backends look for libraries of their own."""
    return [str(item) for item in _natives(folder)]


def whose(folder: Path) -> str:
    """Return whether a backend is one of Triton's own, or one that runs in the Python backend's processes."""
    if any(folder.glob("libtriton_*.so")):
        return "native"
    return "embedded" if (folder / "model.py").is_file() else "absent"


def _ascii_folder() -> Path:
    """Return a folder of this user's whose path is ASCII: inside a stub, Python looks for modules in no other."""
    folder = cache_folder()
    if str(folder.absolute()).isascii():
        return folder
    folder = Path(tempfile.gettempdir()) / f"repo-builder-{os.getuid()}"
    with files.output_errors(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        owner = folder.lstat()
    if owner.st_uid != os.getuid() or owner.st_mode & 0o022 or not folder.is_dir() or folder.is_symlink():
        raise ServeError("belongs to another user", where=str(folder), hint="set XDG_CACHE_HOME to an ASCII path")
    return folder


def ascii_path(repository: Path) -> Path:
    """Return a repository's path, or an ASCII name for it."""
    if str(repository).isascii():
        return repository
    name = hashlib.sha256(os.fsencode(repository)).hexdigest()[:16]
    link = _ascii_folder() / "repositories" / name
    with files.output_errors(link):
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            with contextlib.suppress(FileExistsError):  # another start made it
                link.symlink_to(repository)
    return link
