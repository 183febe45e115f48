"""What stages hand on: a folder with a manifest.json that says what it is, what made it and what it holds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

from repo_builder.core import files
from repo_builder.core.errors import RecipeError, RepositoryError
from repo_builder.core.profiles import Profile, from_json
from repo_builder.core.recipe import Precision, Recipe, parse
from repo_builder.core.tensors import DType, TensorSpec

MANIFEST = "manifest.json"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """What one layer was asked to be and what calibration found.

    Attributes:
        name: Qualified module name.
        type: Module type, as in ``Conv2d``.
        rule: The rule that won, in words; empty where none matched.
        precision: ``int8``, ``fp16`` or ``fp32``.
        calibrator: Input calibrator, as in ``percentile 99.99``; empty unless int8.
        input_amax: Largest absolute input that the int8 range keeps; None unless int8.
        weight_amax: Largest absolute weight kept, over all channels; None unless int8 with a weight.
        sqnr_db: Signal to quantization noise of the layer's output on calibration data, dB; None unless int8.
    """

    name: str
    type: str
    rule: str
    precision: str
    calibrator: str = ""
    input_amax: float | None = None
    weight_amax: float | None = None
    sqnr_db: float | None = None


@dataclass(frozen=True, kw_only=True)
class AccuracyRecord:
    """The accuracy of one form of the model on the held-out split.

    Attributes:
        form: ``fp32``, ``fake-quantized``, ``onnx``, ``onnxruntime``, ``tensorrt`` or ``served``.
        samples: Number of samples scored.
        top1: Fraction of them classified right; None where outputs are not classes.
        low: Lower end of the 95 % Wilson interval of top1.
        high: Upper end of it.
        agreement: Fraction of samples with the same argmax as the form it derives from; None for the first.
        max_abs_diff: Largest absolute difference to the outputs of that form; None for the first.
    """

    form: str
    samples: int
    top1: float | None = None
    low: float | None = None
    high: float | None = None
    agreement: float | None = None
    max_abs_diff: float | None = None


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A folder and what its manifest says.

    Attributes:
        path: The folder.
        key: Hash of everything the stage's result depends on; equal keys mean nothing to do.
        recipe: The recipe that it was made from.
        inputs: Inputs of the model, batch left out.
        outputs: Outputs of the model, batch left out.
        classes: Names of the classes, in the order of the output; empty where there are none.
        files: File name → sha256, for every file but the manifest.
        environment: Versions, CPU and GPU of the machine that made it.
        details: What only this kind has, as plain JSON values.
    """

    kind: ClassVar[str] = "artifact"
    path: Path
    key: str
    recipe: Recipe
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    classes: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    layers: tuple[LayerRecord, ...] = ()
    accuracy: tuple[AccuracyRecord, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    def to_manifest(self) -> dict[str, Any]:
        """Return the manifest's JSON value."""
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            "key": self.key,
            "files": self.files,
            "inputs": [_tensor(item) for item in self.inputs],
            "outputs": [_tensor(item) for item in self.outputs],
            "classes": list(self.classes),
            "layers": [dataclasses.asdict(item) for item in self.layers],
            "accuracy": [dataclasses.asdict(item) for item in self.accuracy],
            "details": self.details,
            "environment": self.environment,
            "recipe": self.recipe.to_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class OnnxArtifact(Artifact):
    """``model.onnx`` (Q/DQ and fp16 regions), ``model.fp32.onnx`` (unquantized) and their manifest.

    ``details["calibration_samples"]`` and ``details["weights_sha256"]`` say what calibrated it and what it was made of.
    """

    kind: ClassVar[str] = "onnx"

    @property
    def model(self) -> Path:
        """The portable ONNX with the precisions of the recipe."""
        return self.path / "model.onnx"

    @property
    def reference(self) -> Path:
        """The same network in fp32."""
        return self.path / "model.fp32.onnx"

    @property
    def layer_precisions(self) -> dict[str, str]:
        """Layer name → ``int8``, ``fp16`` or ``fp32``, as derived from the graph.

        Raises:
            RepositoryError: The manifest's are damaged.
        """
        found = self.details.get("layer_precisions")
        if not isinstance(found, Mapping) or any(item not in get_args(Precision) for item in found.values()):
            message = f"the layer_precisions in it are damaged ({found!r:.60})"
            raise RepositoryError(message, where=str(self.path / MANIFEST), hint="copy or build it again")
        return dict(found)

    def require_whole(self) -> None:
        """Refuse files that are not those of the manifest: part of a copy, or from elsewhere.

        Raises:
            RepositoryError: A file is missing, or has another content than the manifest lists.
        """
        for name in sorted({self.model.name, *self.files}):
            try:
                same = files.sha256_of(self.path / name) == self.files.get(name)
                said = "is not the file that manifest.json lists"
            except OSError as error:
                same, said = False, f"cannot be read ({error.strerror})"
            if not same:
                hint = f"copy all of {self.path} again, or build it again"
                raise RepositoryError(said, where=str(self.path / name), hint=hint)


@dataclass(frozen=True, kw_only=True)
class EngineArtifact(Artifact):
    """What a compile target made: ``model.onnx`` or ``model.plan``, to be put in a version folder as it is.

    ``details["target"]`` names the target, ``details["backend"]`` Triton's backend, ``details["max_batch_size"]`` and
    (TensorRT) ``details["profiles"]`` what it covers.
    """

    kind: ClassVar[str] = "engine"

    @property
    def target(self) -> str:
        """``onnxruntime`` or ``tensorrt``."""
        return str(self.details["target"])

    @property
    def model(self) -> Path:
        """The model file."""
        return self.path / ("model.plan" if self.target == "tensorrt" else "model.onnx")

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """What shapes a plan takes; empty for ONNX.

        Raises:
            RepositoryError: The manifest's are damaged.
        """
        try:
            return from_json(self.details.get("profiles") or ())
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            message = f"the profiles in it are damaged ({error!r})"
            raise RepositoryError(message, where=str(self.path / MANIFEST), hint="build again with --force") from None


A = TypeVar("A", bound=Artifact)


def hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below a folder, the manifest left out, by POSIX path."""
    found = sorted(item for item in folder.rglob("*") if item.is_file() and item.name != MANIFEST)
    return {item.relative_to(folder).as_posix(): files.sha256_of(item) for item in found}


def write_manifest(artifact: Artifact) -> None:
    """Write ``manifest.json`` into the artifact's folder, atomically."""
    files.write_json(artifact.path / MANIFEST, artifact.to_manifest())


def read(cls: type[A], folder: Path) -> A:
    """Read the artifact in a folder.

    Raises:
        RepositoryError: There is none, it is of another kind or schema, or its manifest is damaged.
    """
    manifest = folder / MANIFEST
    try:
        value = json.loads(manifest.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RepositoryError(
            "there is no manifest.json", where=str(folder), hint="run repo-builder build first"
        ) from None
    except NotADirectoryError:
        nearest = next(item for item in (folder, *folder.parents) if item.exists())
        hint = "name the folder that repo-builder build made, as build/vgg"
        raise RepositoryError("is a file, not a folder", where=str(nearest), hint=hint) from None
    except (OSError, ValueError) as error:
        raise RepositoryError(f"is damaged ({error})", where=str(manifest), hint="build again with --force") from None
    found = (value.get("kind"), value.get("schema")) if isinstance(value, Mapping) else (None, None)
    if found != (cls.kind, SCHEMA):
        message = f"holds {found[0]!r} of schema {found[1]}, not {cls.kind!r} of schema {SCHEMA}"
        raise RepositoryError(message, where=str(manifest), hint="build again with --force")
    try:
        return cls(
            path=folder,
            key=value["key"],
            recipe=parse(value["recipe"]),
            inputs=tuple(_spec(item) for item in value["inputs"]),
            outputs=tuple(_spec(item) for item in value["outputs"]),
            classes=tuple(value["classes"]),
            files=dict(value["files"]),
            environment=value["environment"],
            layers=tuple(LayerRecord(**item) for item in value["layers"]),
            accuracy=tuple(AccuracyRecord(**item) for item in value["accuracy"]),
            details=dict(value["details"]),
        )
    except (RecipeError, AttributeError, KeyError, TypeError, ValueError) as error:
        said = f"its {error}" if isinstance(error, RecipeError) else repr(error)
        raise RepositoryError(f"is damaged ({said})", where=str(manifest), hint="build again with --force") from None


def up_to_date(cls: type[A], folder: Path, key: str) -> A | None:
    """Return the artifact in a folder where its key is ``key`` and its files are whole, else None."""
    try:
        found = read(cls, folder)
    except RepositoryError:
        return None
    return found if found.key == key and found.files == hashes(folder) else None


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype.value, "shape": list(spec.shape)}


def _spec(value: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(name=value["name"], dtype=DType.of(value["dtype"]), shape=tuple(value["shape"]))
