"""The tritonserver of the nvidia-pytriton wheel with our Python-based backends, as a child of this process."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from repo_builder.core import environment, files
from repo_builder.core.errors import MissingDependency, ServeError
from repo_builder.core.servers import Endpoints
from repo_builder.serve.run import assembly, choices, configs
from repo_builder.serve.run import mps as cuda_mps
from repo_builder.serve.run.assembly import Wheel
from repo_builder.serve.run.job import Job

# what only fails, and says so, where there is no GPU
_WITHOUT_GPU = ("--allow-gpu-metrics=false", "--pinned-memory-pool-byte-size=0")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives on Linux
_SHARED_MEMORY_BYTES = 16 << 20


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
        caches=root / "caches",
    )


def prepare(
    repository: Path,
    endpoints: Endpoints,
    *,
    models: Sequence[str] = (),
    options: Sequence[str] = (),
    mps: bool = False,
    key: str | None = None,
    backend_directory: Path | None = None,
) -> Job:
    """Return what starts tritonserver on a repository, under CUDA MPS if asked.

    Args:
        repository: The model repository.
        endpoints: Where it shall listen.
        models: Models to load; empty loads all.
        options: Further options of tritonserver, as they are.
        mps: Whether its processes share the GPU through CUDA MPS.
        key: What opens its administration; None leaves that open to all.
        backend_directory: A folder of native backends, to be used before those of this package.

    Raises:
        MissingDependency: The wheel or MPS cannot be used here.
        ServeError: Something else is missing, or the backend directory is none.
    """
    wheel = find_wheel()
    _check_shared_memory()
    there = configs.models(repository, models)
    _check_names(there)
    backends = assembly.assemble(wheel, backend_directory)
    root = assembly.ascii_path(repository.resolve())
    words = [
        str(_executable(wheel.server, backends)),
        *addresses(endpoints),
        f"--model-repository={root}",
        f"--backend-directory={backends}",
        f"--cache-directory={wheel.caches}",
        *(() if _has_gpu() else _WITHOUT_GPU),
        *choices.of(there, models, options, key),
        *options,
    ]
    shared = cuda_mps.prepare(gpu=_has_gpu()) if mps else None
    values = stub_environment(wheel)
    if backend_directory is not None:
        values["LD_LIBRARY_PATH"] = os.pathsep.join(
            [values["LD_LIBRARY_PATH"], *assembly.library_folders(backend_directory)]
        )
    return Job(
        command=shared.command(words) if shared else words,
        environment=values,
        runtime="embedded",
        root=root,
        explicit=choices.explicit(words),
        polls=choices.polls(words),
        backends={
            name: assembly.whose(backends / name)
            for name in sorted({item.backend for item in there} - {"", "ensemble"})
        },
        cached=choices.cached(there, words),
        mps=shared,
    )


def mps_is_idle() -> bool:
    """Whether this machine has a GPU and CUDA MPS, and nobody started the latter."""
    control = cuda_mps.find_control()
    return control is not None and _has_gpu() and cuda_mps.running(control) is None


def addresses(endpoints: Endpoints) -> list[str]:
    """Return the options of tritonserver that say where to listen."""
    six = ":" in endpoints.host
    http, grpc = (f"ipv6:{endpoints.host}", f"[{endpoints.host}]") if six else (endpoints.host, endpoints.host)
    return [
        f"--http-address={http}",
        f"--http-port={endpoints.http}",
        f"--grpc-address={grpc}",
        f"--grpc-port={endpoints.grpc}",
        f"--metrics-address={http}",
        f"--metrics-port={endpoints.metrics}",
    ]


def stub_environment(wheel: Wheel) -> dict[str, str]:
    """Return the environment in which the stub finds this very Python and what it has installed."""
    values = dict(os.environ)
    programs = [str(Path(sys.executable).parent), str(Path(sys.base_prefix) / "bin")]
    libraries = [str(wheel.libraries), str(_libpython_folder())]
    values["PATH"] = os.pathsep.join([*programs, values.get("PATH", os.defpath)])
    values["LD_LIBRARY_PATH"] = os.pathsep.join([*libraries, values.get("LD_LIBRARY_PATH", "")]).rstrip(os.pathsep)
    values.setdefault("ORT_DISABLE_TELEMETRY", "1")
    values[assembly.SEARCH_PATH] = os.pathsep.join([*filter(None, sys.path), str(Path(__file__).resolve().parents[3])])
    return values


def _has_gpu() -> bool:
    return Path("/dev/nvidiactl").exists() or bool(environment.gpus())


def _check_names(models: Sequence[configs.Model]) -> None:
    """Refuse models whose name Python cannot look for modules in."""
    for item in models:
        if not item.name.isascii() and item.backend == "python":
            raise ServeError(
                "Triton's Python backend finds no model.py in a folder whose name is not ASCII",
                where=str(item.folder),
                hint="give the model another name, or use --runtime container",
            )


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
