"""What is searched: for every setting its choices, and the configurations that they make."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from repo_builder.core.errors import MeasureError
from repo_builder.results.tuning import Settings

DELAYS_US = (0, 100, 500, 2000)
_MOST_INSTANCES = 16


@dataclass(frozen=True, kw_only=True)
class Space:
    """A grid of configurations.

    Attributes:
        choices: Setting → its choices, ascending; those with a single one are fixed.
    """

    choices: Mapping[str, tuple[int, ...]]

    def settings(self, places: Mapping[str, int]) -> Settings:
        """Return the configuration at a place of the grid; a setting that is not named stands at its first choice."""
        values = {name: choices[places.get(name, 0)] for name, choices in self.choices.items()}
        return canonical(Settings(**values))  # type: ignore[arg-type] # names of fields, all of them whole numbers

    def places(self, settings: Settings) -> dict[str, int]:
        """Return where a configuration stands, at the nearest choice of each setting."""
        found = {}
        for name, choices in self.choices.items():
            value = getattr(settings, name) or 0
            found[name] = min(range(len(choices)), key=lambda place: abs(choices[place] - value))
        return found

    def all(self) -> Iterator[Settings]:
        """Yield every different configuration once."""
        seen: set[Settings] = set()
        for places in itertools.product(*(range(len(item)) for item in self.choices.values())):
            made = self.settings(dict(zip(self.choices, places, strict=True)))
            if made not in seen:
                seen.add(made)
                yield made

    @property
    def free(self) -> dict[str, int]:
        """The settings that have a choice, and how many each has."""
        return {name: len(item) for name, item in self.choices.items() if len(item) > 1}

    def distance(self, one: Settings, other: Settings) -> float:
        """Return how many steps two configurations are apart, as the square root of the sum of squares."""
        first, second = self.places(one), self.places(other)
        return math.sqrt(sum((first[name] - second[name]) ** 2 for name in first))


def canonical(settings: Settings) -> Settings:
    """Return a configuration without what does nothing in it: a delay where there are no batches to wait for."""
    if settings.max_batch_size > 1:
        return settings
    return replace(settings, max_queue_delay_us=0, preferred_batch_sizes=())


def usual(
    present: Settings,
    given: Mapping[str, tuple[int, ...]],
    *,
    cores: int,
    on_gpu: bool,
    batch_size: int,
    most_batch: int,
    max_p99_us: float | None,
    builds: int,
) -> Space:
    """Return what is searched of a model.

    Args:
        present: The configuration that stands there.
        given: Choices of the user's own.
        cores: Cores of the server's machine.
        on_gpu: Whether the model runs on a GPU.
        batch_size: Samples a request.
        most_batch: Largest batch that the model takes; 0 where Triton does not batch it.
        max_p99_us: The limit; a delay of more than half of it is not tried.
        builds: Number of builds.

    Raises:
        MeasureError: A choice is none.
    """
    latest = max_p99_us / 2 if max_p99_us else math.inf
    instances = (1, 2, 4, 8) if on_gpu else _doubling(1, min(_MOST_INSTANCES, 2 * cores))
    found = {
        "instances": instances,
        "max_batch_size": _doubling(max(1, batch_size), most_batch) if most_batch else (0,),
        "max_queue_delay_us": tuple(item for item in DELAYS_US if item <= latest) if most_batch > 1 else (0,),
        "threads": _doubling(1, cores) if present.threads is not None else (),
        "build": tuple(range(builds)),
    }
    for name, choices in given.items():
        _refuse(name, choices, found[name], batch_size, most_batch)
        found[name] = tuple(sorted(set(choices)))
    return Space(choices={name: item for name, item in found.items() if item})


def _refuse(name: str, choices: Sequence[int], usual_ones: Sequence[int], batch_size: int, most_batch: int) -> None:
    where = f"--{'queue-delay-us' if name == 'max_queue_delay_us' else name.replace('_', '-')}"
    if not usual_ones:
        raise MeasureError("the model's backend has no such setting", where=where, hint="leave it out")
    if name == "max_batch_size" and most_batch and min(choices) < batch_size:
        message = f"{min(choices)} is less than the {batch_size} samples of a request"
        raise MeasureError(message, where=where, hint="leave it out, or choose a smaller --batch-size")
    if name in ("max_batch_size", "max_queue_delay_us") and not most_batch and max(choices):
        raise MeasureError("Triton does not batch this model", where=where, hint="leave it out")


def _doubling(least: int, most: int) -> tuple[int, ...]:
    """Return least, twice that and so on, and the most itself."""
    found = []
    while least < most:
        found.append(least)
        least *= 2
    return (*found, most)


def ladder(most: int) -> tuple[int, ...]:
    """Return the concurrencies that are measured: powers of two up to the most."""
    return _doubling(1, most)
