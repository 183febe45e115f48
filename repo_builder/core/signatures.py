"""What an ONNX file takes and gives: the one place where `config`, `validate`, `build` and the backend get its dims.

The shapes are those that ONNX Runtime states when it has loaded the file, since those are what both Triton's own
onnxruntime backend and the embedded one hold config.pbtxt against. Without ONNX Runtime, or where it refuses the file,
they come from the file and ONNX's shape inference, which may know less.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from repo_builder.core import loading
from repo_builder.core.errors import MissingDependency, ModelError, RepositoryError
from repo_builder.core.tensors import DType, TensorSpec

_LARGEST_BYTES = 2 << 30  # weights above this are not loaded only to see shapes


@dataclass(frozen=True, kw_only=True)
class OnnxTensor:
    """An input or output of a graph.

    Attributes:
        name: Its name.
        type: Its ONNX element type, as in ``FLOAT`` or ``BFLOAT16``; ``SEQUENCE`` and the like where it is no tensor.
        dtype: The element type, None where Triton has none for it.
        shape: Its whole shape, the batch included; -1 for a dimension that varies; None where the rank is not known.
        symbols: The file's names of dimensions, empty for one that has none; empty where the rank is not known.
    """

    name: str
    type: str
    dtype: DType | None
    shape: tuple[int, ...] | None
    symbols: tuple[str, ...] = ()

    @property
    def config_type(self) -> str:
        """Its type in config.pbtxt, empty where Triton has none."""
        return self.dtype.config if self.dtype else ""

    def spec(self, *, batched: bool, dims: tuple[int, ...] | None, where: Path) -> TensorSpec:
        """Return the tensor as config.pbtxt names it.

        Args:
            batched: Whether the first dimension is the batch, which config.pbtxt leaves out.
            dims: Dimensions to take in place of the file's.
            where: The file, for errors.

        Raises:
            RepositoryError: Triton has no such type, or there is no shape.
        """
        if self.dtype is None:
            raise RepositoryError(f"'{self.name}' is {self.type}, a type that Triton does not have", where=str(where))
        if dims is None and self.shape is None:
            raise RepositoryError(
                f"'{self.name}' has no shape in the file",
                where=str(where),
                hint=f"name its dimensions: --dims {self.name}:...",
            )
        shape = dims if dims is not None else (self.shape or ())[1 if batched else 0 :]
        if 0 in shape:
            raise RepositoryError(
                f"'{self.name}' has a size of 0 in {list(shape)}, which config.pbtxt cannot say",
                where=str(where),
                hint="export the model without it, or with a dimension that varies",
            )
        return TensorSpec(name=self.name, dtype=self.dtype, shape=shape)


@dataclass(frozen=True, kw_only=True)
class OnnxSignature:
    """Inputs that a caller must give, and outputs, in the order of the graph.

    Attributes:
        inputs: Inputs; initializers that are listed as inputs are left out.
        optional: Those initializers: inputs that a caller may give.
        outputs: Outputs, with dimensions that only shape inference finds.
        external: Files that hold weights, relative to the ONNX file's folder.
        ir_version: The IR version of the file.
        opsets: Operator domain → version; the default domain is empty.
        runtime: The ONNX Runtime whose shapes these are, empty where they are the file's own.
        refusal: Why ONNX Runtime does not load the file, empty where it does or was not asked.
    """

    inputs: tuple[OnnxTensor, ...]
    optional: tuple[OnnxTensor, ...]
    outputs: tuple[OnnxTensor, ...]
    external: frozenset[str] = frozenset()
    ir_version: int = 0
    opsets: tuple[tuple[str, int], ...] = ()
    runtime: str = ""
    refusal: str = ""

    @property
    def tensors(self) -> tuple[OnnxTensor, ...]:
        """Inputs and outputs."""
        return self.inputs + self.outputs

    @property
    def why_no_batch(self) -> str:
        """Why the model cannot batch by the rule of Triton's onnxruntime backend; empty where it can.

        The first dimension of every input and output must vary. Whether it then is a batch tells ``batchable.batches``.
        """
        for item in self.tensors:
            if item.shape is None:
                return f"the first dimension of '{item.name}' does not vary (no shape is known)"
            if item.shape[:1] != (-1,):
                return f"the first dimension of '{item.name}' does not vary (its shape is {list(item.shape)})"
        return ""


def read(path: Path) -> OnnxSignature:
    """Read the signature of an ONNX file, or of ``model.onnx`` in a folder (the form of models above 2 GB).

    Raises:
        RepositoryError: The file is missing, is no ONNX model or has no outputs.
    """
    path = path / "model.onnx" if path.is_dir() else path
    try:
        state = path.stat()
    except OSError:
        raise RepositoryError("there is no such ONNX file", where=str(path)) from None
    return _read(path, (state.st_mtime_ns, state.st_size, state.st_ino))


@functools.lru_cache(maxsize=64)
def _read(path: Path, _state: tuple[int, ...]) -> OnnxSignature:
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise RepositoryError(f"cannot be read ({error.strerror or error})", where=str(path)) from None
    except (DecodeError, ValueError):
        raise RepositoryError(
            "is not an ONNX model, or is cut short", where=str(path), hint="export or copy it again"
        ) from None
    if not model.graph.output:
        raise RepositoryError("is not an ONNX model: it has no outputs", where=str(path), hint="export it again")
    found = of_model(model)
    places = [path, *(path.parent / name for name in found.external)]
    if all(item.is_file() for item in places) and sum(item.stat().st_size for item in places) <= _LARGEST_BYTES:
        return _as_loaded(found, path)
    return found


def of_model(model: onnx.ModelProto) -> OnnxSignature:
    """Return the signature of a graph by itself: the file's shapes, completed by ONNX's own inference."""
    initial = {item.name for item in model.graph.initializer}
    initial |= {item.values.name for item in model.graph.sparse_initializer}
    given = [item for item in model.graph.input if item.name not in initial]
    return OnnxSignature(
        inputs=tuple(_tensor(item) for item in given),
        optional=tuple(_tensor(item) for item in model.graph.input if item.name in initial),
        outputs=tuple(
            dataclasses.replace(_tensor(found), symbols=_tensor(said).symbols)
            for found, said in zip(_inferred(model).graph.output, model.graph.output, strict=True)
        ),
        external=frozenset(
            entry.value
            for item in model.graph.initializer
            if item.data_location == onnx.TensorProto.EXTERNAL
            for entry in item.external_data
            if entry.key == "location"
        ),
        ir_version=model.ir_version,
        opsets=tuple(sorted((item.domain, item.version) for item in model.opset_import)),
    )


def _as_loaded(found: OnnxSignature, path: Path) -> OnnxSignature:
    """Return a signature with the shapes that ONNX Runtime states, or with its reason to refuse the file."""
    try:
        with loading.needs("onnxruntime", what="reading shapes as ONNX Runtime states them"):
            from repo_builder.core.sessions import VERSION, Session
        session = Session(path)
    except MissingDependency:
        return found
    except ModelError as error:
        return dataclasses.replace(found, refusal=error.message)
    shapes: dict[str, tuple[int, ...]] = {**session.inputs, **session.outputs}

    def seen(tensors: Sequence[OnnxTensor]) -> tuple[OnnxTensor, ...]:
        # a tensor without any shape is () for ONNX Runtime's Python, as one number is: the file tells them apart
        return tuple(
            dataclasses.replace(item, shape=shapes[item.name]) if item.shape is not None and item.dtype else item
            for item in tensors
        )

    return dataclasses.replace(found, inputs=seen(found.inputs), outputs=seen(found.outputs), runtime=VERSION)


def versions(path: Path) -> tuple[int, int]:
    """Return the operator set and the IR version of a file; 0 where it is no ONNX model that can be read."""
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError, ValueError):
        return 0, 0
    return max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=0), int(
        model.ir_version
    )


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with its outputs' shapes completed, as ONNX Runtime does when it loads one."""
    shapes = [_tensor(item).shape for item in model.graph.output]
    if all(shape is not None and -1 not in shape[1:] for shape in shapes):
        return model
    try:
        return onnx.shape_inference.infer_shapes(model)
    except Exception:  # inference is a courtesy here: operators of other domains or a graph above 2 GB stop it
        return model


def _tensor(value: onnx.ValueInfoProto) -> OnnxTensor:
    kind = value.type.WhichOneof("value") or "undefined type"
    if kind != "tensor_type":
        return OnnxTensor(name=value.name, type=kind.removesuffix("_type").upper(), dtype=None, shape=None)
    tensor = value.type.tensor_type
    try:
        name = onnx.TensorProto.DataType.Name(tensor.elem_type)
    except ValueError:
        name = f"element type {tensor.elem_type}"
    dtype = next((item for item in DType if item.onnx == name), None)
    if not tensor.HasField("shape"):
        return OnnxTensor(name=value.name, type=name, dtype=dtype, shape=None)
    return OnnxTensor(
        name=value.name,
        type=name,
        dtype=dtype,
        shape=tuple(_size(item) for item in tensor.shape.dim),
        symbols=tuple(item.dim_param for item in tensor.shape.dim),
    )


def _size(dimension: onnx.TensorShapeProto.Dimension) -> int:
    """Return a dimension's size. Exporters have written negative sizes for one that varies; 0 is 0 for ONNX Runtime."""
    return dimension.dim_value if dimension.HasField("dim_value") and dimension.dim_value >= 0 else -1
