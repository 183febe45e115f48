"""Builds until every layer is what was asked, with as few constraints as that takes.

TensorRT up to 10 chooses freely among the precisions that its flags allow. A per-layer constraint stops that, and it
also stops fusions around the layer: ResNet-50 takes a third longer with every layer pinned, and transformers get no
plan at all where a constraint lies inside a region that is compiled at once. So the first build has none; layers that
the inspector shows in fewer bits than asked are pinned for the next, and a pin that leaves TensorRT without an
implementation is taken back, which the notes say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from repo_builder.compile.tensorrt import inspector
from repo_builder.core.errors import CompileError
from repo_builder.core.records import Verdict

if TYPE_CHECKING:  # what needs TensorRT is handed in
    from repo_builder.compile.tensorrt.build import BuildRequest, Built
    from repo_builder.compile.tensorrt.log import Say
    from repo_builder.compile.tensorrt.plan import Plan

MOST_BUILDS = 5  # one, one with pins, one or two without those that were refused, one to spare


@dataclass(frozen=True, kw_only=True)
class Settled:
    """The plan that was kept.

    Attributes:
        built: It and how it came about.
        plan: It as it was deserialized to be looked at, for whoever asks it more.
        verdicts: What each layer of the recipe became in it.
        engine_layers: How many layers the engine has.
        pinned: Nodes held to their precision in it.
        builds: How many plans were built on the way.
        seconds: Time that all of them took.
        notes: Sentences for the user.
    """

    built: Built
    plan: Plan
    verdicts: tuple[Verdict, ...]
    engine_layers: int
    pinned: frozenset[str]
    builds: int
    seconds: float
    notes: tuple[str, ...]


def settle(
    request: BuildRequest,
    *,
    build: Callable[[BuildRequest, Say], Built],
    deserialize: Callable[[bytes], Plan],
    say: Say,
    most: int = MOST_BUILDS,
) -> Settled:
    """Build, look, pin what departed, and build again.

    Args:
        request: What is to be built; its ``pinned`` is where it starts from.
        build: Builds a plan.
        deserialize: Returns a plan that can be looked at.
        say: Takes lines of progress.
        most: How many plans to build at most; a layer that departs in the last one is in its verdicts.

    Raises:
        CompileError: No plan can be built, with no layer pinned either.
    """
    pinned, given_up = request.pinned, frozenset[str]()
    best: tuple[Built, Plan, tuple[Verdict, ...], int] | None = None
    builds, seconds = 0, 0.0
    notes: list[str] = []
    while builds < most:
        builds += 1
        try:
            built = build(dataclasses.replace(request, pinned=pinned), say)
        except CompileError as error:
            if not pinned:
                raise
            refused = frozenset(node for node in pinned if node in error.message) or pinned
            notes.append(
                f"left to TensorRT, which has no implementation otherwise: {_listed(refused)} ({error.message})"
            )
            pinned, given_up = pinned - refused, given_up | refused
            if not pinned and best is not None:
                break  # that is the first build again
            continue
        seconds += built.seconds
        plan = deserialize(built.plan)
        engine = inspector.parse(plan.inspect(), request.precisions.nodes)
        verdicts = inspector.judge(request.precisions.layers, engine, request.precisions.nodes)
        best = (built, plan, verdicts, len(engine))
        departed = {item.node for item in verdicts if item.departs and item.node in request.precisions.float_nodes}
        new = departed - pinned - given_up
        if not new or builds == most:
            break
        say(f"{len(new)} layers ran in fewer bits than asked: building again with those pinned")
        pinned |= new
    if best is None:
        raise CompileError("TensorRT built no plan with the layers pinned, nor without", where=str(request.model))
    return Settled(
        built=best[0],
        plan=best[1],
        verdicts=best[2],
        engine_layers=best[3],
        pinned=pinned,
        builds=builds,
        seconds=seconds,
        notes=tuple(notes),
    )


def _listed(nodes: frozenset[str]) -> str:
    shown = sorted(nodes)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
