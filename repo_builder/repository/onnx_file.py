"""What an ONNX file takes and gives, read from its graph; weights in external files are left alone."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from repo_builder.core.errors import RepositoryError
from repo_builder.core.recipe import RepositorySpec
from repo_builder.core.tensors import DType, TensorSpec


@dataclass(frozen=True, kw_only=True)
class OnnxTensor:
    """An input or output of a graph.

    Attributes:
        name: Its name.
        type: Its ONNX element type, as in ``FLOAT`` or ``BFLOAT16``; ``SEQUENCE`` and the like where it is no tensor.
        dtype: The element type, None where Triton has none for it.
        shape: Its whole shape, the batch included; -1 for a dimension that varies; None where the rank is not known.
        declared: The shape as the file states it, where shape inference has completed it; None where not.
    """

    name: str
    type: str
    dtype: DType | None
    shape: tuple[int, ...] | None
    declared: tuple[int, ...] | None = None

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
        return TensorSpec(name=self.name, dtype=self.dtype, shape=shape)


@dataclass(frozen=True, kw_only=True)
class OnnxSignature:
    """Inputs that a caller must give, and outputs, in the order of the graph.

    Attributes:
        inputs: Inputs; initializers that are listed as inputs are left out.
        defaults: Names of those initializers: inputs that a caller may give.
        outputs: Outputs, with dimensions that only shape inference finds.
        external: Files that hold weights, relative to the ONNX file's folder.
    """

    inputs: tuple[OnnxTensor, ...]
    defaults: frozenset[str]
    outputs: tuple[OnnxTensor, ...]
    external: frozenset[str] = frozenset()

    @property
    def tensors(self) -> tuple[OnnxTensor, ...]:
        """Inputs and outputs."""
        return self.inputs + self.outputs


def read(path: Path) -> OnnxSignature:
    """Read the signature of an ONNX file, or of ``model.onnx`` in a folder (the form of models above 2 GB).

    Raises:
        RepositoryError: The file is missing, is no ONNX model or has no outputs.
    """
    path = path / "model.onnx" if path.is_dir() else path
    try:
        model = onnx.load(path, load_external_data=False)
    except FileNotFoundError:
        raise RepositoryError("there is no such ONNX file", where=str(path)) from None
    except OSError as error:
        raise RepositoryError(f"cannot be read ({error.strerror or error})", where=str(path)) from None
    except (DecodeError, ValueError):
        raise RepositoryError(
            "is not an ONNX model, or is cut short", where=str(path), hint="export or copy it again"
        ) from None
    if not model.graph.output:
        raise RepositoryError("is not an ONNX model: it has no outputs", where=str(path), hint="export it again")
    initial = {item.name for item in model.graph.initializer}
    initial |= {item.values.name for item in model.graph.sparse_initializer}
    given = [item for item in model.graph.input if item.name not in initial]
    return OnnxSignature(
        inputs=tuple(_tensor(item) for item in given),
        defaults=frozenset(item.name for item in model.graph.input if item.name in initial),
        outputs=tuple(
            dataclasses.replace(_tensor(found), declared=_tensor(said).shape)
            for found, said in zip(_inferred(model).graph.output, model.graph.output, strict=True)
        ),
        external=frozenset(
            entry.value
            for item in model.graph.initializer
            if item.data_location == onnx.TensorProto.EXTERNAL
            for entry in item.external_data
            if entry.key == "location"
        ),
    )


def batching(signature: OnnxSignature, asked: int | None) -> tuple[int, str]:
    """Return the largest batch of a model and the sentence that says why.

    Args:
        signature: The model's; it batches where the first dimension of every tensor varies, which is the rule of
            Triton's onnxruntime backend.
        asked: The largest batch that the user wants, None to decide.
    """
    fixed = next((item for item in signature.tensors if item.shape is None or item.shape[:1] != (-1,)), None)
    if asked == 0:
        return 0, "max_batch_size 0, as asked: the dimensions are whole shapes"
    if fixed is None:
        batch = RepositorySpec.max_batch_size if asked is None else asked
        return batch, f"max_batch_size {batch}: the first dimension of every input and output varies"
    shape = "no shape is known" if fixed.shape is None else f"its shape is {list(fixed.shape)}"
    why = f"the first dimension of '{fixed.name}' does not vary ({shape})"
    if asked is None:
        return 0, f"max_batch_size 0: {why}"
    return asked, f"max_batch_size {asked}, as asked, although {why}: Triton's own onnxruntime backend will refuse it"


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
    shape = tuple(_size(item) for item in tensor.shape.dim) if tensor.HasField("shape") else None
    return OnnxTensor(name=value.name, type=name, dtype=dtype, shape=shape)


def _size(dimension: onnx.TensorShapeProto.Dimension) -> int:
    """Return a dimension's size; exporters have written 0 and negative sizes for one that varies."""
    return dimension.dim_value if dimension.HasField("dim_value") and dimension.dim_value > 0 else -1
