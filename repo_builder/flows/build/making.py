"""One compiled form of an artifact: its graph placed for the target, some int8 layers left out, compiled."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from repo_builder.compile import CompileOptions, CompileTarget
from repo_builder.core import progress
from repo_builder.core.artifacts import PLACED_MODEL, OnnxArtifact
from repo_builder.core.details import EngineDetails, TensorRTDetails
from repo_builder.core.recipe import Precision, Recipe
from repo_builder.core.samples import Batches
from repo_builder.datasets import Dataset
from repo_builder.flows.build import lowering, running
from repo_builder.flows.build.lowering import Lowered
from repo_builder.flows.build.options import CACHE, BuildOptions


@dataclass(frozen=True, kw_only=True)
class Form:
    """A compiled form.

    Attributes:
        folder: Where its files are.
        graph: The graph that it was compiled from.
        lowered: What placement made of the layers.
        details: What the target said.
    """

    folder: Path
    graph: Path
    lowered: Lowered
    details: EngineDetails

    @property
    def model(self) -> Path:
        """The compiled file."""
        return self.folder / ("model.plan" if isinstance(self.details, TensorRTDetails) else "model.onnx")

    def move(self, folder: Path) -> None:
        """Put its files in place of those that are there."""
        for item in self.folder.iterdir():
            os.replace(item, folder / item.name)
        shutil.rmtree(self.folder)


@dataclass(frozen=True, kw_only=True)
class Making:
    """What forms of one artifact are made with.

    Attributes:
        exported: The artifact.
        target: What compiles.
        options: What of the build is asked for.
        recipe: The recipe, its largest batch one that is right for the model.
        batches: How the model takes samples.
        dataset: Samples; None where they are not on this machine.
        shown: Where the folder will be once it is whole.
    """

    exported: OnnxArtifact
    target: CompileTarget
    options: BuildOptions
    recipe: Recipe
    batches: Batches
    dataset: Dataset | None
    shown: Path

    def form(
        self,
        folder: Path,
        left: Mapping[str, str],
        instead: Precision = "fp32",
        *,
        like: Form | None = None,
        unrepaired: bool = False,
    ) -> Form:
        """Place and compile.

        Args:
            folder: Where the files go; it is there.
            left: int8 layer → why it is left in floating point.
            instead: What these layers are instead.
            like: A form that was compiled before: the plan of another is built once, with what was pinned in that one.
            unrepaired: Whether the codes and shifts that repairs found are left out.

        Raises:
            CompileError: The target refuses the graph.
        """
        target, data = self.target, self.dataset
        apart = target.name == "tensorrt" or any(row.asked == "int4" for row in self.exported.layers)
        graph = folder / (PLACED_MODEL if apart else "model.onnx")
        placement = target.placement(self.options.recipe)
        with progress.step(f"place Q/DQ ({target.name})") as step:
            # a plan that another is built beside has its layers' noise measured already
            samples = running.whole(self.batches, data.split("calibration").inputs) if data and not like else None
            lowered = lowering.lower(self.exported, placement, graph, samples, left, instead, unrepaired=unrepaired)
            if like:
                step.note("to be weighed")
            else:
                step.wrote(graph, shown=self.shown / graph.name)
        pinned = like.details.pinned if like and isinstance(like.details, TensorRTDetails) else ()
        with progress.step(f"compile ({target.name})") as step:
            details = target.compile(
                self.exported,
                folder,
                options=CompileOptions(
                    recipe=self.recipe,
                    graph=graph,
                    layer_precisions=lowered.layer_precisions,
                    cache_folder=self.options.work / CACHE,
                    allow_precision_mismatch=self.options.allow_precision_mismatch,
                    batches=self.batches,
                    samples=data.split("test").inputs if data else None,
                    most_builds=1 if like else 0,
                    pinned=pinned,
                ),
            )
            for item in sorted(folder.glob("model.*")) if not like else ():
                step.wrote(item, shown=self.shown / item.name)
        return Form(folder=folder, graph=graph, lowered=lowered, details=details)
