"""One model's folder: its configuration as Triton completes it, and its versions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from repo_builder.core import signatures
from repo_builder.core.errors import RepositoryError
from repo_builder.repository import protobuf, spec
from repo_builder.repository.checks.findings import Finding, error, info
from repo_builder.repository.spec import BACKENDS as PLATFORMS
from repo_builder.repository.spec import CONFIG

ENSEMBLE = "ensemble"
# backend → file that it loads unless the configuration names one
MODEL_FILES: dict[str, str] = {
    "tensorrt": "model.plan",
    "onnxruntime": "model.onnx",
    "pytorch": "model.pt",
    "tensorflow": "model.savedmodel",
    "openvino": "model.xml",
    "python": "model.py",
}
_FILES = {
    "model.plan": "tensorrt",
    "model.onnx": "onnxruntime",
    "model.pt": "pytorch",
    "model.savedmodel": "tensorflow",
    "model.graphdef": "tensorflow",
    "model.xml": "openvino",
    "model.py": "python",
}
_DEFAULT_BATCH = 4  # what tritonserver tells backends to complete a configuration without max_batch_size with


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A model's folder.

    Attributes:
        path: The folder.
        config: The ModelConfig, completed.
        written: The ModelConfig as it stands in the file; empty where there is none.
        versions: The version folders that Triton sees, oldest first.
        staged_for: The name that the folder is going to have; empty where it has it.
    """

    path: Path
    config: Any
    written: Any = field(repr=False)
    versions: tuple[int, ...]
    staged_for: str = ""

    @property
    def name(self) -> str:
        """The model's name."""
        return self.staged_for or self.path.name

    @property
    def config_path(self) -> str:
        """Where findings about the configuration point to."""
        return f"{self.name}/{CONFIG}"

    @property
    def ensemble(self) -> bool:
        """Whether it is an ensemble of other models."""
        return bool(self.config.platform == ENSEMBLE or self.config.HasField("ensemble_scheduling"))

    @property
    def served(self) -> tuple[int, ...]:
        """The versions that the version policy serves, oldest first."""
        policy = self.config.version_policy
        if policy.HasField("all"):
            return self.versions
        if policy.HasField("specific"):
            return tuple(number for number in self.versions if number in policy.specific.versions)
        count = policy.latest.num_versions if policy.HasField("latest") else 1
        return self.versions[-count:] if count else ()

    @cached_property
    def filename(self) -> str:
        """The file that the backend loads from a version's folder; empty where that is not known."""
        named: str = self.config.default_model_filename
        if self.config.platform == "tensorflow_graphdef":
            return named or "model.graphdef"
        return named or MODEL_FILES.get(self.config.backend, "")

    @cached_property
    def completes(self) -> bool:
        """Whether the backend may fill in what the configuration leaves out of a tensor that it names."""
        if self.config.backend == "python":
            return any(completes(self.file(version)) for version in self.served)
        return str(self.config.backend) != "onnxruntime"

    @property
    def named_inputs(self) -> set[str]:
        """The model's inputs that the configuration names: its own, and those that sequences and batches fill."""
        config = self.config
        named = {item.name for item in (*config.input, *config.sequence_batching.control_input)}
        named |= {item.input_name for item in config.sequence_batching.state}
        return named | {name for item in config.batch_input for name in item.target_name}

    def file(self, version: int) -> Path:
        """Return the model file of a version."""
        return self.path / str(version) / self.filename


def completes(file: Path) -> bool:
    """Whether a model.py has an ``auto_complete_config`` that does something."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return False
    found = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    mine = [node for node in found if node.name == "auto_complete_config"]
    return any(isinstance(part, ast.Call) for node in mine for part in ast.walk(node))


def shape_of(tensor: Any) -> list[int]:  # noqa: ANN401 - a ModelInput or ModelOutput
    """Return the shape that the model gets: dims, or what they are reshaped to."""
    return list(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims)


def read(path: Path, *, staged_for: str = "") -> tuple[ModelFolder | None, list[Finding]]:
    """Read a model's folder; None where its configuration cannot be understood.

    Args:
        path: The folder.
        staged_for: The name that it is going to have; empty where it has it.
    """
    written, findings = _config(path)
    if written is None:
        return None, findings
    config = type(written)()
    config.CopyFrom(written)
    config.name = config.name or staged_for or path.name
    versions = tuple(spec.versions(path))
    findings.extend(_complete_backend(path, config, versions))
    folder = ModelFolder(path=path, config=config, written=written, versions=versions, staged_for=staged_for)
    if folder.config.backend == "onnxruntime":
        _complete_tensors(folder)
    return folder, findings


def _config(path: Path) -> tuple[Any, list[Finding]]:
    file, where = path / CONFIG, f"{path.name}/{CONFIG}"
    if file.exists() and not file.is_file():
        return None, [error(where, "is not a file, which makes tritonserver abort", "remove it")]
    if not file.exists():
        return protobuf.parse("", where), []
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
        return protobuf.parse(text, where), []
    except OSError as reason:
        return None, [error(where, f"cannot be read ({reason.strerror or reason})")]
    except RepositoryError as reason:
        hint = "remove the byte order mark at its start" if text.startswith("\ufeff") else reason.hint or ""
        return None, [error(reason.where or where, reason.message, hint)]


def _complete_backend(path: Path, config: Any, versions: tuple[int, ...]) -> Iterator[Finding]:  # noqa: ANN401
    """Fill in backend and platform as Triton does from the platform, the file name or the files there."""
    where = f"{path.name}/{CONFIG}"
    if config.platform == ENSEMBLE or config.HasField("ensemble_scheduling"):
        return
    if not config.backend:
        by_platform = next((name for name, known in PLATFORMS.items() if config.platform in known), "")
        there = {item.name for item in (path / str(versions[0])).iterdir()} if versions else set()
        by_file = _FILES.get(config.default_model_filename) or next(
            (_FILES[name] for name in _FILES if name in there), ""
        )
        config.backend = by_platform or (by_file if not config.platform else "")
        if not (config.backend or config.platform or config.default_model_filename):
            # Triton's last guess: a model named model.dali is one of the backend dali, and so is its file
            config.backend = path.name.partition(".")[2]
            config.default_model_filename = f"model.{config.backend}" if config.backend else ""
        if not config.backend:
            told = (
                f"unknown platform '{config.platform}'" if config.platform else "neither backend nor platform is given"
            )
            yield error(
                where if (path / CONFIG).exists() else path.name,
                f"{told}, and the files do not tell",
                'add backend: "..." to config.pbtxt',
            )
            return
        if not (path / CONFIG).exists():
            yield info(path.name, f"has no config.pbtxt: Triton completes one for backend '{config.backend}'")
    if config.backend not in MODEL_FILES:
        yield info(where, f"the files of backend '{config.backend}' are not known here: its configuration is checked")
    known = PLATFORMS.get(config.backend, ())
    if config.platform and known and config.platform not in known:
        yield error(
            where,
            f"platform '{config.platform}' does not go with backend '{config.backend}'",
            f'remove the platform, or write "{known[0]}"',
        )


def _complete_tensors(folder: ModelFolder) -> None:
    """Fill in tensors and max_batch_size from the newest ONNX file where the configuration leaves them out."""
    config = folder.config
    if (config.input and config.output) or not folder.served:
        return
    try:
        signature = signatures.read(folder.file(folder.served[-1]))
    except RepositoryError:
        return  # reported where the file is checked
    config.max_batch_size = config.max_batch_size or (0 if signature.why_no_batch else _DEFAULT_BATCH)
    batch = bool(config.max_batch_size)
    for entries, tensors in ((config.input, signature.inputs), (config.output, signature.outputs)):
        if entries:
            continue
        for tensor in tensors:
            if not tensor.config_type or tensor.shape is None:
                continue  # reported where the file is checked
            entry = entries.add(name=tensor.name, data_type=protobuf.data_type(tensor.config_type))
            dims = tensor.shape[1:] if batch else tensor.shape
            entry.dims.extend([size or -1 for size in dims] or [1])  # -1 is how a size of 0 is written
            if not dims and batch:
                entry.reshape.SetInParent()
