"""The steps before and behind a network as calibration and every form of the network use them, in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from repo_builder.core import loading, onnx_files
from repo_builder.core.errors import DataError
from repo_builder.core.tensors import Array
from repo_builder.pipeline import graph, parts, running, shipping
from repo_builder.pipeline.chain import Chain, Link
from repo_builder.pipeline.parts import Part
from repo_builder.pipeline.running import Runnable


def folder_of(link: Link) -> str:
    """Return the name of a Python step's folder, as in ``before.0.decode_image``."""
    return f"{link.place.partition('.')[2].replace('[', '.').rstrip(']')}.{link.kind}"


def runnable(part: Part, folder: Path, classes: tuple[str, ...]) -> Runnable:
    """Return a part that the network is not in, ready to run.

    Args:
        part: The part.
        folder: Where the folders of Python steps lie.
        classes: Names of the classes.

    Raises:
        MissingDependency: A library is missing.
        RecipeError: A step cannot be loaded.
    """
    if part.python:
        return python(part, folder / folder_of(part.links[0]))
    model = graph.write(part, None, classes)
    with loading.needs("onnxruntime", what="running the steps of a pipeline"):
        from repo_builder.core.sessions import Session
    with onnx_files.loadable(model) as source:
        session = Session(Path(source) if isinstance(source, str) else source)
    return Runnable(part=part, run=session.run)


def python(part: Part, folder: Path) -> Runnable:
    """Return a Python step, ready to run from its folder.

    Raises:
        MissingDependency: A library is missing.
        RecipeError: It cannot be loaded.
    """
    link = part.links[0]
    step, alone = shipping.load(link, folder), shipping.form_of(link).alone(link.spec)
    names, given = [item.name for item in link.takes], [item.name for item in link.gives]
    return Runnable(
        part=part,
        run=lambda feed: dict(zip(given, step(*(feed[name] for name in names)), strict=False)),
        alone=alone,
    )


class Steps:
    """The steps of a chain.

    Args:
        chain: The chain.
        folder: Where the folders of Python steps lie.
        classes: Names of the classes.
    """

    def __init__(self, chain: Chain, folder: Path, classes: tuple[str, ...]) -> None:
        self._chain, self._folder, self._classes = chain, folder, classes
        self._made: dict[str, list[Runnable]] = {}

    def before(self, raw: Mapping[str, Array]) -> dict[str, Array]:
        """Return the network's inputs, ``(n, *shape)`` by the recipe's names, for what clients send.

        Raises:
            DataError: A sample is refused, samples come out in different shapes, or a value is not finite.
        """
        link = self._chain.network
        found = self._run("before", self._chain.before, raw, [wire.name for wire in link.takes])
        ready = running.stacked(found, link.takes)
        inputs = {spec.name: ready[wire.name] for spec, wire in zip(link.binds, link.takes, strict=True)}
        for name, values in inputs.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                bad = int(np.argmin(np.isfinite(values.reshape(len(values), -1)).all(axis=1)))
                hint = "look at that sample, and at the steps' numbers"
                raise DataError(f"sample {bad} becomes NaN or infinite in '{name}'", where="pipeline.before", hint=hint)
        return inputs

    def after(self, raw: Mapping[str, Array], outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return what clients get, ``(n, *shape)`` by name, for what the network gave.

        Args:
            raw: What clients send, which steps behind the network may read.
            outputs: The network's outputs by the recipe's names.
        """
        link = self._chain.network
        found: dict[str, Array | list[Array]] = dict(raw)
        if carried := self._carried():
            found |= self._run("before", self._chain.before, raw, carried)
        given = zip(link.yields, link.gives, strict=True)
        found |= {wire.name: outputs[spec.name] for spec, wire in given if spec.name in outputs}
        names = [item.name for item in self._chain.outputs]
        return running.stacked(self._run("after", self._chain.after, found, names), self._chain.outputs)

    def _carried(self) -> list[str]:
        """Return the tensors of steps before the network that steps behind it take."""
        made = {item.name for link in self._chain.before for item in link.gives}
        return sorted({item.name for link in self._chain.after for item in link.takes} & made)

    def _run(
        self, side: str, links: Sequence[Link], samples: running.Values, keep: Sequence[str]
    ) -> dict[str, Array | list[Array]]:
        if side not in self._made:
            split = parts.whole(self._chain, tuple(links))
            self._made[side] = [runnable(part, self._folder, self._classes) for part in split]
        return running.run(self._made[side], samples, keep)
