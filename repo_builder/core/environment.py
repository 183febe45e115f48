"""What this machine is: versions, CPU and GPUs, read without importing torch or TensorRT."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import platform
import resource
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from repo_builder import __version__

LIBRARIES = (
    "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxscript", "torch", "nvidia-modelopt",
    "pytorch-quantization", "tensorrt", "tritonclient", "nvidia-pytriton",
)  # fmt: skip
# Other distributions that install a library under the same module's name.
_ALSO = {"tensorrt": ("tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu11")}
# What is done about a CPU's sums of 8-bit products that saturate: nothing, weights of 7 bits, or layers left in float.
Saturation = Literal["none", "7 bits", "float"]


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One NVIDIA GPU.

    Attributes:
        name: As the driver says it, as in ``NVIDIA H200``.
        compute_capability: As in ``9.0``.
        memory_mib: Its memory, MiB.
        driver: Version of the driver.
    """

    name: str
    compute_capability: str
    memory_mib: int
    driver: str


def version(library: str) -> str | None:
    """Return the version of an installed distribution, or of another that brings the same; None where there is none."""
    for name in (library, *_ALSO.get(library, ())):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # noqa: PERF203 - at most four
            continue
    return None


@functools.cache
def gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that nvidia-smi lists; empty where there is no driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    fields = "name,compute_cap,memory.total,driver_version"
    command = [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.count(",") == 3]
    return tuple(
        Gpu(name=row[0], compute_capability=row[1], memory_mib=int(float(row[2])), driver=row[3])
        for row in rows
        if done.returncode == 0
    )


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Return the CPU's feature flags as Linux names them; empty where they cannot be read."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return frozenset(line.partition(":")[2].split())


def cpu_name() -> str:
    """Return the CPU's model name, or the machine type where it has none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    lines = (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name"))
    return next(lines, platform.machine())


def memory_free_bytes() -> int | None:
    """Return how much memory a process can still take: by the kernel, its control group and its own limit.

    None where none of the three is known.
    """
    bounds = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        bounds.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        bounds.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        bounds.append(limit)
    return min(bounds, default=None)


def describe() -> dict[str, Any]:
    """Return versions, system, CPU and GPUs as plain JSON values, for manifests and reports."""
    # repo-builder's own is told also where it runs uninstalled
    found = {"repo-builder": __version__, **{name: version(name) for name in LIBRARIES}}
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "gpus": [asdict(item) for item in gpus()],
        "libraries": {name: value for name, value in found.items() if value is not None},
    }
