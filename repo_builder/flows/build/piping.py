"""The pipeline around a network: its steps in front of the data, then all of it as the models that are placed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from repo_builder import datasets
from repo_builder.core import artifacts, codec, files, foreign
from repo_builder.core.errors import RecipeError, RepositoryError
from repo_builder.core.recipe import Recipe
from repo_builder.core.tensors import TensorSpec
from repo_builder.datasets import Dataset
from repo_builder.flows.build import keys
from repo_builder.flows.build.options import BuildOptions
from repo_builder.pipeline import around, chain, graph, here, parts, shipping
from repo_builder.pipeline.chain import Chain

_KEY = "steps.json"
CODE = ("pipeline", "core/recipe/pipeline.py", "core/recipe/steps.py")


@dataclass(frozen=True, kw_only=True)
class Piped:
    """A recipe's pipeline, ready to be run.

    Attributes:
        chain: Its tensors and steps.
        folder: Where the folders of its Python steps lie.
        key: Hash of its steps.
    """

    chain: Chain
    folder: Path
    key: str
    _made: dict[tuple[str, ...], here.Steps] = field(default_factory=dict, repr=False, compare=False)

    def steps(self, classes: tuple[str, ...]) -> here.Steps:
        """Return its steps, for the names of some classes."""
        return self._made.setdefault(classes, here.Steps(self.chain, self.folder, classes))

    def around(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Piped:
        """Return it around a compiled network, whose types may be others."""
        return Piped(chain=around.compiled(self.chain, inputs, outputs), folder=self.folder, key=self.key)

    def require_labels(self, classes: tuple[str, ...]) -> None:
        """Refuse labels that do not fit, before the work that would be in vain.

        Raises:
            RecipeError: That is so.
        """
        for part in parts.whole(self.chain, self.chain.after):
            if not part.python:
                graph.write(part, None, classes)

    def through(self, dataset: Dataset) -> Dataset:
        """Return a data set as the network sees it."""
        steps, inputs = self.steps(dataset.classes), self.chain.network.binds
        return dataset.through(steps.before, inputs, key=self.key)


def begin(options: BuildOptions) -> Piped | None:
    """Check a recipe's pipeline and write the folders of its Python steps; None where it has none.

    Raises:
        RecipeError: Steps do not fit each other or the network.
        MissingDependency: A library that a step needs is missing.
    """
    recipe = options.recipe
    if not recipe.pipeline.some:
        return None
    found = _checked(options)
    python = [link for link in found.links if link.python]
    for link in python:
        shipping.require(link)
    table = recipe.pipeline
    key = files.sha256_of_json({
        "inputs": codec.plain(found.inputs),
        "steps": [codec.plain(list(side)) if side else [] for side in (_told(table.before), _told(table.after))],
        "shipped": [shipping.key(link) for link in python],
        "network": [codec.plain(list(side)) for side in (recipe.model.inputs, recipe.model.outputs)],
        "code": keys.code_version(*CODE),
        "libraries": keys.versions("pillow", "tokenizers", "onnxruntime", "numpy"),
    })  # fmt: skip
    folder = options.work / recipe.name / "steps"
    if _key_of(folder) != key:
        with files.replacing_folder(folder) as fresh:
            for link in python:
                shipping.ship(link, fresh / here.folder_of(link))
            files.write_json(fresh / _KEY, {"key": key, "files": artifacts.hashes(fresh)})
    return Piped(chain=found, folder=folder, key=key)


def refuse_target(recipe: Recipe, target: str) -> None:
    """Refuse ``fuse = true`` for what cannot hold steps, before the work that would be in vain.

    Raises:
        RecipeError: That is so.
    """
    accelerator = recipe.compile.onnxruntime.accelerator
    if recipe.pipeline.some and recipe.pipeline.fuse and (target != "onnxruntime" or accelerator != "none"):
        named = (
            f"the target is {target}" if target != "onnxruntime" else f"the network has the accelerator {accelerator}"
        )
        hint = "leave fuse out: what can be fused is"
        raise RecipeError(f"true is impossible: {named}", where="pipeline.fuse", hint=hint)


def _told(steps: tuple[object, ...]) -> list[object]:
    """Return steps without paths, which may differ where their contents, which are hashed, do not."""
    paths = ("file", "function")
    return [{name: value for name, value in codec.plain(step).items() if name not in paths} for step in steps]


def copied(options: BuildOptions) -> Piped | None:
    """Return the pipeline of an artifact that was made elsewhere, with the folders of its steps that came with it.

    Raises:
        RepositoryError: They did not come with it.
    """
    if not options.recipe.pipeline.some:
        return None
    found, folder = _checked(options), options.work / options.recipe.name / "steps"
    key = _key_of(folder)
    if not key:
        hint = f"copy all of {folder.parent} again"
        raise RepositoryError("the steps of the pipeline are not here, or not whole", where=str(folder), hint=hint)
    for link in found.links:
        if link.python:
            shipping.require_own(folder / here.folder_of(link), link)
    return Piped(chain=found, folder=folder, key=key)


def load_data(options: BuildOptions, piped: Piped | None) -> Dataset:
    """Return the recipe's data, as clients send it.

    Raises:
        DataError: It cannot be read, or is of other shapes.
    """
    recipe = options.recipe
    return load_raw(recipe, piped.chain.inputs if piped else recipe.model.inputs, options.data_dir)


@contextmanager
def fed(recipe: Recipe, data_dir: Path | None) -> Iterator[Dataset]:
    """Yield a recipe's data as its network sees it: behind the pipeline's steps, where there is one.

    Raises:
        RepoBuilderError: The data or the pipeline makes no sense.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = BuildOptions(recipe=recipe, work=Path(folder), repository=Path(folder), data_dir=data_dir)
        piped = begin(options)
        raw = load_data(options, piped)
        yield piped.through(raw) if piped else raw


def load_raw(recipe: Recipe, inputs: tuple[TensorSpec, ...], data_dir: Path | None) -> Dataset:
    """Return a recipe's data as clients of a model of these inputs send it."""
    return datasets.load(recipe.data, inputs=inputs, seed=recipe.seed, data_dir=data_dir)


def _checked(options: BuildOptions) -> Chain:
    recipe = options.recipe
    found = chain.resolve(recipe.pipeline, recipe.model)
    if recipe.pipeline.fuse:
        parts.split(found, fuse=True, why_not="")  # what is impossible whatever the target
    if options.version != "replace":
        message = "a pipeline has one version: all of its models are replaced together"
        raise RecipeError(message, where="--version", hint="leave --version out")
    return found


def _key_of(folder: Path) -> str:
    """Return the key of folders of steps that are whole; empty where they are not."""
    try:
        value = foreign.parsed(json.loads, (folder / _KEY).read_text(encoding="utf-8"))
        there = {name: digest for name, digest in artifacts.hashes(folder).items() if name != _KEY}
        return str(value["key"]) if value["files"] == there else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""
