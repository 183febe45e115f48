"""What stages hand on: a folder with a manifest.json that says what it is, what made it and what it holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from repo_builder.core import codec, files, foreign
from repo_builder.core.bounds import shown
from repo_builder.core.details import EngineDetails, OnnxDetails, TensorRTDetails
from repo_builder.core.errors import RecipeError, RepositoryError
from repo_builder.core.profiles import Profile
from repo_builder.core.recipe import Recipe
from repo_builder.core.records import AccuracyRecord, LayerRecord
from repo_builder.core.tensors import TensorSpec

MANIFEST = "manifest.json"
SEARCH_PAGE = "search/search.html"  # beside the artifacts' folders: what a search of precisions tried
PLACED_MODEL = "placed.onnx"  # beside the model that was compiled of it, where that is another file
FP32_MODEL, REPAIRED_MODEL, RANGES = "model.fp32.onnx", "model.repaired.onnx", "ranges.npz"
SCHEMA = 2  # rises when a field changes its meaning or goes: an older folder is built again


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
        layers: One entry a layer.
        accuracy: One entry a form of the model, each compared with the one before.
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

    def to_manifest(self) -> dict[str, Any]:
        """Return the manifest's JSON value: the fields, less the folder, which may be moved or copied."""
        values: dict[str, Any] = codec.plain(self)
        del values["path"]
        return {"schema": SCHEMA, "kind": self.kind, **values}


@dataclass(frozen=True, kw_only=True)
class OnnxArtifact(Artifact):
    """``model.fp32.onnx``, ``ranges.npz`` and their manifest: what is to be placed and compiled for a target.

    ``model.repaired.onnx`` lies beside them where repairs changed the graph.
    """

    kind: ClassVar[str] = "onnx"
    details: OnnxDetails

    @property
    def model(self) -> Path:
        """The network in fp32, or as it came where no rule asks for anything."""
        return self.path / FP32_MODEL

    @property
    def to_place(self) -> Path:
        """The fp32 graph that Q/DQ is placed in: ``model``, or what repairs made of it."""
        return self.path / REPAIRED_MODEL if REPAIRED_MODEL in self.files else self.model

    @property
    def ranges(self) -> Path:
        """What calibration found; not there where no rule asks for anything."""
        return self.path / RANGES

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
    """What a compile target made: ``model.onnx`` or ``model.plan``, to be put in a version folder as it is."""

    kind: ClassVar[str] = "engine"
    details: EngineDetails

    @property
    def target(self) -> str:
        """``onnxruntime`` or ``tensorrt``."""
        return self.details.target

    @property
    def placed(self) -> Path:
        """The graph that the target compiled: Q/DQ and fp16 regions in it.

        For ONNX Runtime it is the model itself, but where layers have int4 weights, which its own operators hold.
        """
        apart = self.path / PLACED_MODEL
        return apart if self.target == "tensorrt" or apart.is_file() else self.path / "model.onnx"

    @property
    def model(self) -> Path:
        """The model file."""
        return self.path / ("model.plan" if self.target == "tensorrt" else "model.onnx")

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """What shapes a plan takes; empty for ONNX."""
        return self.details.profiles if isinstance(self.details, TensorRTDetails) else ()


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
        value = foreign.parsed(json.loads, manifest.read_text(encoding="utf-8"))
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
        message = f"holds {shown(found[0])} of schema {shown(found[1])}, not {cls.kind!r} of schema {SCHEMA}"
        raise RepositoryError(message, where=str(manifest), hint="build again with --force")
    body = {name: item for name, item in value.items() if name not in ("schema", "kind")}
    try:
        made = codec.build(cls, {**body, "path": str(folder)})
        _check_names(made)
        return made
    except RecipeError as error:
        said = f"{error.where}: {error.message}" if error.where else error.message
        raise RepositoryError(f"is damaged ({said})", where=str(manifest), hint="build again with --force") from None


def _check_names(artifact: Artifact) -> None:
    """Refuse inputs and outputs that are not those of the recipe beside them.

    Raises:
        RecipeError: They differ.
    """
    for key in ("inputs", "outputs"):
        names = [item.name for item in getattr(artifact, key)]
        wanted = [item.name for item in getattr(artifact.recipe.model, key)]
        if sorted(names) != sorted(wanted):
            raise RecipeError(f"{', '.join(names) or 'none'} are not the recipe's {', '.join(wanted)}", where=key)


def up_to_date(cls: type[A], folder: Path, key: str) -> A | None:
    """Return the artifact in a folder where its key is ``key`` and its files are whole, else None."""
    try:
        found = read(cls, folder)
    except RepositoryError:
        return None
    return found if found.key == key and found.files == hashes(folder) else None
