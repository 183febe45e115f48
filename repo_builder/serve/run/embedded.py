"""The tritonserver of the nvidia-pytriton wheel with our Python-based backends, as a child of this process."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from repo_builder.core import environment, files
from repo_builder.core.errors import MissingDependency, ServeError
from repo_builder.serve.run import mps as cuda_mps
from repo_builder.serve.run.folders import cache_folder
from repo_builder.serve.run.ports import Endpoints
from repo_builder.serve.run.process import Child
from repo_builder.serve.run.server import Server

_BACKENDS = Path(__file__).resolve().parents[1] / "backends"
# what only fails, and says so, where there is no GPU
_WITHOUT_GPU = ("--allow-gpu-metrics=false", "--pinned-memory-pool-byte-size=0")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives on Linux
_SHARED_MEMORY_BYTES = 16 << 20
_SEARCH_PATH = "REPO_BUILDER_SYS_PATH"
# The stub initialises Python in isolated mode: PYTHONPATH does not reach it, so the first module that it imports
# brings this process's search path along.
_PRELUDE = f"""import os as _os, sys as _sys
_sys.path.extend(p for p in _os.environ.get("{_SEARCH_PATH}", "").split(_os.pathsep) if p and p not in _sys.path)
"""


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """What is used of the installed nvidia-pytriton.

    Attributes:
        server: The tritonserver binary.
        python_backend: Folder of the Python backend.
        stub: The stub process for the Python that runs now.
        libraries: Folder of the shared libraries that all of them need.
    """

    server: Path
    python_backend: Path
    stub: Path
    libraries: Path


def unavailable() -> str | None:
    """Return why an embedded server cannot be started here, None where it can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"the embedded Triton runs on Linux x86-64 only, and this is {sys.platform} {platform.machine()}"
    if importlib.util.find_spec("pytriton") is None:
        return "nvidia-pytriton is not installed"
    return None


def find_wheel() -> Wheel:
    """Find the parts of the installed wheel.

    Raises:
        MissingDependency: It is not installed, or has no stub for this Python.
    """
    reason = unavailable()
    spec = importlib.util.find_spec("pytriton") if reason is None else None
    if spec is None or spec.origin is None:
        raise MissingDependency(
            reason or "nvidia-pytriton is damaged",
            hint="pip install 'repo-builder[embedded]', or use --runtime container, which needs docker",
        )
    package = Path(spec.origin).parent
    root = package / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        there = ", ".join(sorted(item.name for item in (root / "python_backend_stubs").glob("3.*")))
        raise MissingDependency(
            f"nvidia-pytriton has no stub for Python {version}", where=str(root), hint=f"use a Python of {there}"
        )
    return Wheel(
        server=root / "bin" / "tritonserver",
        python_backend=root / "backends" / "python",
        stub=stub,
        libraries=package.parent / "nvidia_pytriton.libs",
    )


def start(
    repository: Path,
    endpoints: Endpoints,
    *,
    models: Sequence[str] = (),
    options: Sequence[str] = (),
    log: Path | None = None,
    detached: bool = False,
    mps: bool = False,
) -> Server:
    """Start tritonserver on a repository, under CUDA MPS if asked; it may not be ready yet when this returns."""
    wheel = find_wheel()
    _check_shared_memory()
    backends = assemble(wheel)
    server = _executable(wheel.server, backends)
    quiet = () if _has_gpu() else _WITHOUT_GPU
    served = arguments(repository, endpoints, models)
    command = [str(server), *served, f"--backend-directory={backends}", *quiet, *options]
    values = stub_environment(wheel)
    if not mps:
        child = Child(command, values, log=log, detached=detached)
        return Server(child, endpoints, runtime="embedded", models=tuple(models), log=log)
    shared = cuda_mps.prepare(gpu=_has_gpu())
    try:
        child = Child(shared.command(command), values, log=log, detached=detached)
    except BaseException:
        shared.clean_up()
        raise
    return Server(
        child, endpoints, runtime="embedded", models=tuple(models), clean_up=shared.clean_up, log=log, mps=shared
    )


def mps_is_idle() -> bool:
    """Whether this machine has a GPU and CUDA MPS, and nobody started the latter."""
    control = cuda_mps.find_control()
    return control is not None and _has_gpu() and cuda_mps.running(control) is None


def arguments(repository: Path, endpoints: Endpoints, models: Sequence[str]) -> list[str]:
    """Return the options of tritonserver that say what to serve and where."""
    chosen = [f"--load-model={name}" for name in models]
    return [
        f"--model-repository={repository.resolve()}",
        f"--http-address={endpoints.host}",
        f"--http-port={endpoints.http}",
        f"--grpc-address={endpoints.host}",
        f"--grpc-port={endpoints.grpc}",
        f"--metrics-address={endpoints.host}",
        f"--metrics-port={endpoints.metrics}",
        *(["--model-control-mode=explicit", *chosen] if chosen else []),
    ]


def stub_environment(wheel: Wheel) -> dict[str, str]:
    """Return the environment in which the stub finds this very Python and what it has installed."""
    values = dict(os.environ)
    programs = [str(Path(sys.executable).parent), str(Path(sys.base_prefix) / "bin")]
    libraries = [str(wheel.libraries), str(_libpython_folder())]
    values["PATH"] = os.pathsep.join([*programs, values.get("PATH", os.defpath)])
    values["LD_LIBRARY_PATH"] = os.pathsep.join([*libraries, values.get("LD_LIBRARY_PATH", "")]).rstrip(os.pathsep)
    values[_SEARCH_PATH] = os.pathsep.join([*filter(None, sys.path), str(Path(__file__).resolve().parents[3])])
    return values


def assemble(wheel: Wheel) -> Path:
    """Return a private backend directory: the wheel's Python backend with its stub, and our backends.

    It is made once for each combination of contents; Triton refuses links that leave the directory, so all are copies.
    """
    ours = sorted(_BACKENDS.glob("*/model.py"))
    digest = hashlib.sha256(_PRELUDE.encode())
    for item in (*ours, wheel.stub, wheel.python_backend / "libtriton_python.so"):
        digest.update(f"{item}:{files.sha256_of(item)}\n".encode())
    folder = cache_folder() / "backends" / digest.hexdigest()[:16]
    if not folder.is_dir():
        with files.replacing_folder(folder) as fresh:
            python = fresh / "python"
            python.mkdir()
            shutil.copyfile(wheel.python_backend / "libtriton_python.so", python / "libtriton_python.so")
            utils = (wheel.python_backend / "triton_python_backend_utils.py").read_text(encoding="utf-8")
            (python / "triton_python_backend_utils.py").write_text(_PRELUDE + utils, encoding="utf-8")
            shutil.copyfile(wheel.stub, python / "triton_python_backend_stub")
            (python / "triton_python_backend_stub").chmod(0o755)
            for item in ours:
                target = fresh / item.relative_to(_BACKENDS)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(item, target)
    return folder


def _has_gpu() -> bool:
    return Path("/dev/nvidiactl").exists() or bool(environment.gpus())


def _check_shared_memory() -> None:
    """Refuse to start where /dev/shm has no room for a few instances of the Python backend.

    Raises:
        ServeError: It is not there, or full.
    """
    if not _SHARED_MEMORY.is_dir():
        raise ServeError("there is no /dev/shm, through which Triton hands tensors on", hint="mount a tmpfs there")
    free = shutil.disk_usage(_SHARED_MEMORY).free
    if free < _SHARED_MEMORY_BYTES:
        raise ServeError(
            f"has {free >> 10} KiB free, and Triton hands tensors on through it",
            where=str(_SHARED_MEMORY),
            hint="enlarge it (docker run --shm-size=1g; mount -o remount,size=1g /dev/shm) or remove what fills it",
        )


def _executable(server: Path, backends: Path) -> Path:
    """Return tritonserver, or a copy of it where an installer dropped the executable bit."""
    if os.access(server, os.X_OK):
        return server
    copy = backends / "tritonserver"
    if not copy.exists():
        files.write_bytes(copy, server.read_bytes())
        copy.chmod(0o755)
    return copy


def _libpython_folder() -> Path:
    """Return the folder of this Python's shared library, which the stub links.

    Raises:
        ServeError: This Python was built without one and the system has none.
    """
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    places = [sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib", f"/usr/lib/{multiarch}", "/usr/lib64"]
    for place in filter(None, places):
        if (Path(place) / name).exists():
            return Path(place)
    raise ServeError(
        f"the embedded Triton needs {name}, and this Python has none",
        where=sys.executable,
        hint=f"install it (apt-get install {name[:-7]}), use a Python from uv or conda, or --runtime container",
    )
