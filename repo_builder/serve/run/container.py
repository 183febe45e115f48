"""NVIDIA's Triton container: which release fits a repository, and the command that runs it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repo_builder.core import releases, signatures
from repo_builder.core.errors import MissingDependency, ServeError
from repo_builder.core.foreign import parsed
from repo_builder.core.releases import Release
from repo_builder.core.servers import Endpoints
from repo_builder.serve.run import choices, configs, control
from repo_builder.serve.run.job import Job

_ENGINES = ("docker", "podman")
_GPU = {"docker": ["--gpus", "all"], "podman": ["--device", "nvidia.com/gpu=all"]}
_SHM_SIZE = "1g"  # the engines' own 64 MB are soon full
_RESTRICTS = (24, 1)  # the first release listed whose Triton knows --http-restricted-api
_WANTS_GPU = re.compile(r"\bKIND_GPU\b|\b(backend|platform)\s*:\s*[\"'](tensorrt|tensorrt_plan)[\"']")


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a repository asks of a container.

    Attributes:
        gpu: Whether a model wants a GPU.
        tensorrt: Versions of TensorRT that built its plans → the models.
        opset: Newest operator set of its ONNX files, 0 where there are none.
        ir_version: Newest IR version of them.
    """

    gpu: bool
    tensorrt: dict[str, list[str]]
    opset: int = 0
    ir_version: int = 0


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a container is to serve, and how.

    Attributes:
        repository: The model repository, mounted read-only.
        endpoints: Where it shall be reachable on this machine.
        models: Models to load; empty loads all.
        image: The image; None is that of the release that fits.
        options: Further options of tritonserver.
        key: What opens the server's administration; None leaves that open to all.
    """

    repository: Path
    endpoints: Endpoints
    models: Sequence[str] = ()
    image: str | None = None
    options: Sequence[str] = ()
    key: str | None = None

    def settled(self) -> tuple[str, bool]:
        """Return the image, and whether it gets the GPUs.

        Raises:
            ServeError: No release fits.
        """
        wanted = demand(self.repository, self.models)
        return self.image or choose(wanted)[0].image, wanted.gpu


def demand(repository: Path, models: Sequence[str] = ()) -> Demand:
    """Read from configurations and manifests what the models ask for.

    Args:
        repository: The model repository.
        models: The models to look at; empty means all.
    """
    gpu, opset, ir_version = False, 0, 0
    built: dict[str, list[str]] = {}
    for folder in sorted(
        item for item in repository.iterdir() if item.is_dir() and (not models or item.name in models)
    ):
        config = folder / "config.pbtxt"
        text = config.read_text(encoding="utf-8", errors="replace") if config.is_file() else ""
        gpu |= bool(_WANTS_GPU.search(re.sub(r"#.*", "", text))) or any(folder.glob("*/*.plan"))
        for version in {_tensorrt(manifest) for manifest in folder.glob("*/manifest.json")} - {""}:
            built.setdefault(version, []).append(folder.name)
        for file in folder.glob("*/*.onnx"):
            found = signatures.versions(file)
            opset, ir_version = max(opset, found[0]), max(ir_version, found[1])
    return Demand(gpu=gpu, tensorrt=built, opset=opset, ir_version=ir_version)


def choose(wanted: Demand) -> tuple[Release, str]:
    """Return the release that fits, and why.

    Raises:
        ServeError: No known release has the TensorRT of the plans, or they come from several versions.
    """
    known = [item for item in releases.releases() if _reads(item, wanted)]
    if not known:
        raise ServeError(
            f"no Triton release is known that reads ONNX of opset {wanted.opset} and IR version {wanted.ir_version}",
            hint="export it with an older opset, or name a newer release with --image",
        )
    if not wanted.tensorrt:
        return known[-1], "the newest release known, no plan asks for another"
    versions = {_short(version): models for version, models in wanted.tensorrt.items()}
    if len(versions) > 1:
        raise ServeError(
            "the plans come from several versions of TensorRT ("
            + "; ".join(f"{version}: {', '.join(models)}" for version, models in sorted(versions.items()))
            + "), and one Triton has one",
            hint="serve them one by one with --model, or compile them again with one version",
        )
    (version,) = versions
    fitting = [item for item in known if item.tensorrt and _short(item.tensorrt) == version]
    if not fitting:
        raise ServeError(
            f"no Triton release is known that has the TensorRT {version} of the plans",
            hint="name one with --image; deploy/triton_releases.toml lists those known",
        )
    return fitting[-1], f"its TensorRT {version} is that of the plans"


def _reads(release: Release, wanted: Demand) -> bool:
    """Whether a release's ONNX Runtime reads the models; where it is not known which that is, it is not promised."""
    if not wanted.opset:
        return True
    found = releases.reads(release)
    return found is not None and wanted.opset <= found.opset and wanted.ir_version <= found.ir_version


def command(engine: str, image: str, asked: Asked, *, gpu: bool, name: str | None = None) -> list[list[str]]:
    """Return the command that runs the container in the foreground, an option and its value a list.

    A Triton too old to close its administration loads no model by request: of such a repository only the models named
    are mounted.

    Args:
        engine: ``docker`` or ``podman``.
        image: The image.
        asked: What it serves, and how.
        gpu: Whether it gets the GPUs.
        name: The container's name.
    """
    models, options, key = asked.models, asked.options, asked.key
    repository, endpoints = asked.repository, asked.endpoints
    host = f"[{endpoints.host}]" if ":" in endpoints.host else endpoints.host
    published = ((endpoints.http, 8000), (endpoints.grpc, 8001), (endpoints.metrics, 8002))
    closes = key is None or restricts(image)
    mounted = [(repository, "/models")] if closes or not models else [(repository / m, f"/models/{m}") for m in models]
    return [
        [engine, "run", "--rm"],
        *([["--name", name]] if name else []),
        *([_GPU[engine]] if gpu else []),
        ["--shm-size", _SHM_SIZE],
        *(["--publish", f"{host}:{outer}:{inner}"] for outer, inner in published),
        *(["--mount", _mount(source, target)] for source, target in mounted),
        [image, "tritonserver", "--model-repository=/models"],
        *([option] for option in (choices.loading(models, options, by_name=False) if closes else ())),
        *([option] for option in (control.closing(key, options) if key and closes else ())),
        *([option] for option in choices.caching(configs.models(repository, models), options)),
        *([option] for option in options),
    ]


def restricts(image: str) -> bool:
    """Whether the Triton of an image can close parts of its interface; an image without a release is taken for new."""
    tag = re.search(r":(\d\d\.\d\d)\b", image)
    return tag is None or releases.numbers(tag[1]) >= _RESTRICTS


def left_open(repository: Path, models: Sequence[str], image: str | None) -> str | None:
    """Return what is to be said of a container whose Triton is too old to be closed, None where it is not."""
    image = image or choose(demand(repository, models))[0].image
    what = f"the Triton of {image} cannot close the administration of shared memory, tracing and logging to clients"
    return None if restricts(image) else f"warning: {what}; let none but trusted ones reach its ports"


def _mount(source: Path, target: str) -> str:
    where = f"source={source.resolve()}"
    if any(c in where for c in ',"'):
        where = '"' + where.replace('"', '""') + '"'  # the option is one line of CSV
    return f"type=bind,{where},target={target},readonly"


def printed(asked: Asked) -> str:
    """Return the command that would be run, ready for a shell; no container engine is needed.

    Raises:
        ServeError: No release fits.
    """
    image, gpu = asked.settled()
    engine = next((item for item in _ENGINES if shutil.which(item)), _ENGINES[0])
    return shell_text(command(engine, image, asked, gpu=gpu))


def shell_text(parts: Sequence[Sequence[str]]) -> str:
    """Return a command for a POSIX shell, an option and its value a line."""
    return " \\\n  ".join(shlex.join(part) for part in parts)


def find_engine() -> str:
    """Return the container engine that works here.

    Raises:
        MissingDependency: There is none.
        ServeError: There is one, and it does not answer.
    """
    reasons = []
    for engine in _ENGINES:
        if shutil.which(engine) is None:
            continue
        reason = _unanswering(engine)
        if reason is None:
            return engine
        reasons.append(f"{engine} does not answer: {reason}")
    if reasons:
        raise ServeError("; ".join(reasons), hint="start it, or use --runtime embedded")
    raise MissingDependency(
        "neither docker nor podman is installed", hint="install one of them, or use --runtime embedded"
    )


def prepare(asked: Asked) -> Job:
    """Return what starts the container on a repository; an image that is not here is pulled first.

    Raises:
        MissingDependency: There is no container engine.
        ServeError: No release fits, or the image cannot be pulled.
    """
    engine = find_engine()
    image, gpu = asked.settled()
    _pull(engine, image)
    name = f"repo-builder-{uuid.uuid4().hex[:12]}"
    words = [word for part in command(engine, image, asked, gpu=gpu, name=name) for word in part]
    there = configs.models(asked.repository, asked.models)
    return Job(
        command=words,
        environment=os.environ,
        runtime="container",
        root=asked.repository,
        explicit=choices.explicit(words),
        polls=choices.polls(asked.options),
        backends=dict.fromkeys(sorted({item.backend for item in there} - {"", "ensemble"}), "native"),
        cached=choices.cached(there, words),
        removal=[engine, "rm", "--force", name],
    )


def _pull(engine: str, image: str) -> None:
    """Pull an image that is not here, with the engine's own progress on stderr."""
    if subprocess.run([engine, "image", "inspect", image], capture_output=True, check=False).returncode == 0:
        return
    if subprocess.run([engine, "pull", image], stdout=sys.stderr, check=False).returncode != 0:
        raise ServeError(
            f"{engine} could not pull {image}", hint="check the name, the network and docker login nvcr.io"
        )


def _unanswering(engine: str) -> str | None:
    try:
        done = subprocess.run([engine, "version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = [line.removeprefix("ERROR: ").strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[0] if lines else f"exit code {done.returncode}"


def _tensorrt(manifest: Path) -> str:
    """Return the TensorRT version in a manifest, empty where it tells none."""
    try:
        value: Any = parsed(json.loads, manifest.read_text(encoding="utf-8"))
        return str(value["details"].get("tensorrt_version", ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""


def _short(version: str) -> str:
    """Return major.minor.patch, to which plans are tied."""
    return ".".join(version.split(".")[:3])
