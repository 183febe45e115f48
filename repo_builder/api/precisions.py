"""What each layer gains and costs in a lower precision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repo_builder.api.building import Target
from repo_builder.api.places import WORK, path
from repo_builder.core import environment, files
from repo_builder.core.recipe import Precision, Recipe
from repo_builder.flows import search
from repo_builder.flows.build import BuildOptions
from repo_builder.report import precision_page
from repo_builder.results.sensing import LayerSense, Sensed


@dataclass(frozen=True, kw_only=True)
class SenseResult:
    """What each layer alone gains and costs.

    Attributes:
        found: All that was measured.
    """

    found: Sensed

    @property
    def layers(self) -> tuple[LayerSense, ...]:
        """One entry a layer and precision, what pays best first."""
        return self.found.rows

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values, as ``sense --json`` prints them."""
        return self.found.to_dict()

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML page.

        Raises:
            OutputError: It cannot be written.
        """
        files.write_text(Path(path), precision_page.sense_page(self.found, environment.describe()))
        return Path(path)


def sense(
    recipe: Recipe | str | Path,
    *,
    budget: float = 600.0,
    also: Sequence[Precision] = (),
    target: Target | None = None,
    work: str | Path = WORK,
    checkpoint: str | Path | None = None,
    data_dir: str | Path | None = None,
    settings: Iterable[str] = (),
) -> SenseResult:
    """Measure what each layer gains and costs in a lower precision, as ``repo-builder sense`` does.

    Args:
        recipe: A recipe, or what ``Recipe.load`` takes.
        budget: Seconds that may be measured.
        also: Precisions of which the loss alone is measured where the target does not have them.
        target: What to compile for; None takes the recipe's.
        work: Folder of the intermediate artifacts; what was measured there is not measured again.
        checkpoint: Weights instead of the recipe's.
        data_dir: Folder of the data set instead of a download.
        settings: ``key.path=value`` items, laid over the recipe.

    Raises:
        RepoBuilderError: The branch tells what failed; what was measured stays.
    """
    found = (recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)).changed(settings)
    options = BuildOptions(
        recipe=found,
        work=Path(work),
        repository=Path(work),
        target=target,
        checkpoint=path(checkpoint),
        data_dir=path(data_dir),
    )
    return SenseResult(found=search.sense(options, budget_s=budget, also=tuple(also)))
