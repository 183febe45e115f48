"""What one config.pbtxt says, before it is text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from repo_builder.core.errors import RepositoryError
from repo_builder.core.tensors import TensorSpec

CONFIG = "config.pbtxt"
LABELS = "labels.txt"
# Backends that Triton brings → the older platforms that go with them.
BACKENDS: dict[str, tuple[str, ...]] = {
    "tensorrt": ("tensorrt_plan",),
    "onnxruntime": ("onnxruntime_onnx",),
    "pytorch": ("pytorch_libtorch", "torch_aoti"),
    "tensorflow": ("tensorflow_savedmodel", "tensorflow_graphdef"),
    "openvino": (),
    "python": (),
    "dali": (),
    "fil": (),
    "identity": (),
    "repeat": (),
    "square": (),
    "tensorrtllm": (),
    "vllm": (),
}
# What the Python backend's stub is started with goes through a shell, and a model is a folder.
_NAME = re.compile(r"(?!\.{1,2}$)[\w.:+@-]+")
_INT32, _UINT64 = 1 << 31, 1 << 64


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """An execution accelerator of the onnxruntime backend.

    Attributes:
        name: ``cuda`` or ``tensorrt``.
        parameters: Its options, under the backend's names.
    """

    name: str
    parameters: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ModelConfigSpec:
    """What one config.pbtxt says.

    Attributes:
        name: The model's name, which is also its folder's.
        backend: Triton's backend, as in ``onnxruntime``.
        platform: The older way to name the backend; empty leaves it out.
        max_batch_size: Largest batch; 0 where the tensors' shapes are whole ones.
        inputs: Inputs; their shapes leave the batch out unless ``max_batch_size`` is 0. A shape of no dimensions is
            one number a sample.
        outputs: Outputs, likewise.
        labels: The output whose classes labels.txt names, None where there are none.
        dynamic_batching: Whether requests may be put together into one batch.
        preferred_batch_sizes: Batch sizes that the dynamic batcher tries to reach.
        max_queue_delay_us: How long a request may wait for others, microseconds.
        instance_count: Model instances (per GPU where there is one).
        instance_kind: ``cpu`` or ``gpu``.
        profiles: TensorRT optimization profiles of an instance, by index; empty leaves the first.
        warmup_batch_sizes: Batch sizes run, with zeros, before the model is ready.
        warmup_shapes: Shapes during warm-up of the inputs that have dynamic dimensions.
        warmup_files: Input → file below ``warmup`` that its data is read from, in place of zeros.
        keep_versions: Newest versions that are served.
        response_cache: Whether Triton may answer from its response cache.
        parameters: Parameters of the backend.
        accelerators: Execution accelerators on the GPU, in the order they are tried.
        notes: Sentences on why it says what it says; comments in the file.
    """

    name: str
    backend: str
    platform: str = ""
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: str | None = None
    dynamic_batching: bool = False
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_us: int = 0
    instance_count: int = 1
    instance_kind: Literal["cpu", "gpu"] = "cpu"
    profiles: tuple[str, ...] = ()
    warmup_batch_sizes: tuple[int, ...] = ()
    warmup_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    warmup_files: dict[str, str] = field(default_factory=dict)
    keep_versions: int = 1
    response_cache: bool = False
    parameters: dict[str, str] = field(default_factory=dict)
    accelerators: tuple[Accelerator, ...] = ()
    notes: tuple[str, ...] = ()

    def warmup_shape(self, tensor: TensorSpec) -> tuple[int, ...]:
        """Return an input's concrete dimensions during warm-up."""
        return self.warmup_shapes.get(tensor.name, tensor.shape) or (1,)

    def check(self) -> None:
        """Refuse what Triton would refuse.

        Raises:
            RepositoryError: Naming the first thing that makes no sense.
        """
        for message, wrong in (
            (f"'{self.name}' cannot be a model's name: use letters, digits, '-', '_' and '.'", not self._named()),
            (
                "a batch size, a number of instances or a size is too large for config.pbtxt",
                max(self.max_batch_size, self.instance_count, *self.preferred_batch_sizes, 0) >= _INT32
                or self.max_queue_delay_us >= _UINT64
                or any(size >= _UINT64 // 2 for size in self._sizes()),
            ),
            ("max_batch_size must not be negative", self.max_batch_size < 0),
            ("there must be at least one input and one output", not (self.inputs and self.outputs)),
            ("two tensors on one side have the same name", self._doubled()),
            ("every dimension must be at least 1, or -1", any(size < 1 and size != -1 for size in self._sizes())),
            (
                f"preferred batch sizes must lie between 1 and max_batch_size ({self.max_batch_size})",
                any(not 1 <= size <= self.max_batch_size for size in self.preferred_batch_sizes),
            ),
            (
                f"warm-up batch sizes must lie between 1 and {max(1, self.max_batch_size)}",
                any(not 1 <= size <= max(1, self.max_batch_size) for size in self.warmup_batch_sizes),
            ),
            (
                "preferred batch sizes are for dynamic batching, and there is none",
                bool(self.preferred_batch_sizes) and not self.dynamic_batching,
            ),
            ("dynamic batching needs a max_batch_size", self.dynamic_batching and not self.max_batch_size),
            ("the queue delay must not be negative", self.max_queue_delay_us < 0),
            ("there must be at least one instance", self.instance_count < 1),
            ("at least one version must be kept", self.keep_versions < 1),
            ("execution accelerators run on the GPU only", bool(self.accelerators) and self.instance_kind != "gpu"),
        ):
            if wrong:
                raise RepositoryError(message, where=self.name)
        for tensor in self.inputs if self.warmup_batch_sizes else ():
            shape = self.warmup_shape(tensor)
            if -1 in shape or (tensor.shape and not tensor.fits(shape)):
                raise RepositoryError(
                    f"warm-up needs a concrete shape for the input {tensor}",
                    where=self.name,
                    hint="name its size during warm-up, or leave warm-up out",
                )

    def _named(self) -> bool:
        return bool(_NAME.fullmatch(self.name)) and len(self.name.encode(errors="replace")) <= 255

    def _doubled(self) -> bool:
        return any(len({item.name for item in side}) < len(side) for side in (self.inputs, self.outputs))

    def _sizes(self) -> list[int]:
        return [size for tensor in self.inputs + self.outputs for size in tensor.shape]


@dataclass(frozen=True, kw_only=True)
class EnsembleStep:
    """One step of an ensemble.

    Attributes:
        model: The model's name.
        takes: Its input → tensor of the ensemble.
        gives: Its output → tensor of the ensemble.
    """

    model: str
    takes: dict[str, str]
    gives: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class EnsembleSpec:
    """What the config.pbtxt of an ensemble says.

    Attributes:
        name: The model's name.
        max_batch_size: Largest batch.
        inputs: Inputs, batch left out.
        outputs: Outputs, likewise.
        labels: The output whose classes labels.txt names, None where there are none.
        steps: Its steps.
        parameters: Parameters, which Triton reads past.
        notes: Sentences on why it says what it says; comments in the file.
    """

    name: str
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: str | None = None
    steps: tuple[EnsembleStep, ...]
    parameters: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def versions(model_folder: Path) -> list[int]:
    """Return the versions in a model's folder, oldest first: its sub-folders that are whole numbers from 1 on."""
    if not model_folder.is_dir():
        return []
    names = (item.name for item in model_folder.iterdir() if item.is_dir())
    return sorted(int(name) for name in names if name.isascii() and name.isdigit() and name[0] != "0")
