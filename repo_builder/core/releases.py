"""What each release of NVIDIA's Triton container holds, from ``deploy/triton_releases.toml``."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from repo_builder.core import assets
from repo_builder.core.errors import ServeError, did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

IMAGE = "nvcr.io/nvidia/tritonserver:{release}-py3"
EMBEDDED = "24.10"  # the release that nvidia-pytriton 0.7.0 was made of: tritonserver 2.51.0
# Fields of ModelConfig (message, field) → the first release that reads them. Older ones refuse the whole file.
# Source: the history of protobuf/model_config.proto, https://github.com/triton-inference-server/common
NEWER_FIELDS = {
    ("ModelInput", "is_non_linear_format_io"): "24.08",
    ("ModelOutput", "is_non_linear_format_io"): "24.08",
    ("ModelConfig", "model_metrics"): "24.11",
    ("ModelEnsembling", "max_inflight_requests"): "25.11",
}


@dataclass(frozen=True, kw_only=True)
class Release:
    """One release of the container.

    Attributes:
        name: ``YY.MM``.
        triton: Version of tritonserver, empty where it could not be confirmed; so for all that follow.
        python: Version of Python for which its Python backend is built.
        tensorrt: Version of TensorRT.
        cuda: Version of CUDA.
        driver: NVIDIA driver branch that it asks for.
        onnxruntime: Version of ONNX Runtime.
        sources: Where that stands.
    """

    name: str
    triton: str
    python: str
    tensorrt: str
    cuda: str
    driver: str
    onnxruntime: str
    sources: tuple[str, ...]

    @property
    def image(self) -> str:
        """The image's name."""
        return IMAGE.format(release=self.name)


@dataclass(frozen=True, kw_only=True)
class Reads:
    """What a version of ONNX Runtime reads.

    Attributes:
        onnxruntime: The version.
        opset: Newest version of the default operator set.
        ir_version: Newest IR version.
    """

    onnxruntime: str
    opset: int
    ir_version: int


@functools.cache
def _table() -> Mapping[str, Any]:
    text = (assets.deploy_folder() / "triton_releases.toml").read_text(encoding="utf-8")
    found: dict[str, Any] = tomllib.loads(text)
    return found


@functools.cache
def releases() -> tuple[Release, ...]:
    """Return the known releases, oldest first."""
    found = (Release(**{**item, "sources": tuple(item["sources"])}) for item in _table()["release"])
    return tuple(sorted(found, key=lambda item: numbers(item.name)))


def release(name: str) -> Release:
    """Return a release by its name.

    Raises:
        ServeError: It is not known.
    """
    known = {item.name: item for item in releases()}
    if name not in known:
        raise ServeError(f"no Triton release '{name}' is known", hint=did_you_mean(name, known, most=1))
    return known[name]


def reads(found: Release) -> Reads | None:
    """Return what a release's ONNX Runtime reads at least, None where that is not known.

    A release whose ONNX Runtime could not be confirmed has at least that of the newest release before it.
    """
    before = [item.onnxruntime for item in releases() if item.onnxruntime and numbers(item.name) <= numbers(found.name)]
    if not before:
        return None
    known = [Reads(**item) for item in _table()["onnxruntime"]]
    fitting = [item for item in known if numbers(item.onnxruntime)[:2] <= numbers(before[-1])[:2]]
    return max(fitting, key=lambda item: numbers(item.onnxruntime)) if fitting else None


def numbers(version: str) -> tuple[int, ...]:
    """Return a version's numbers, for comparing."""
    return tuple(int(part) for part in version.partition("+")[0].split("."))
