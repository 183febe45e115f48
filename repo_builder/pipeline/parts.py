"""What runs as one model: a Python step by itself, ONNX steps together, with the network among them where that goes."""

from __future__ import annotations

from dataclasses import dataclass

from repo_builder.core.errors import RecipeError
from repo_builder.core.tensors import TensorSpec
from repo_builder.pipeline.chain import NETWORK, Chain, Link

STEPS = "steps"  # the kind of a part that is ONNX steps alone


@dataclass(frozen=True, kw_only=True)
class Part:
    """Links that run as one model.

    Attributes:
        kind: ``network`` where the network is among them, ``steps`` where they are ONNX steps, else the step's word.
        links: In their order.
        takes: Tensors of the chain that it takes.
        gives: Tensors of the chain that it gives, those that somebody takes.
    """

    kind: str
    links: tuple[Link, ...]
    takes: tuple[TensorSpec, ...]
    gives: tuple[TensorSpec, ...]

    @property
    def python(self) -> bool:
        """Whether it is a Python step."""
        return self.links[0].python

    @property
    def bare(self) -> bool:
        """Whether it is the network and nothing else."""
        return self.kind == NETWORK and len(self.links) == 1


def split(chain: Chain, *, fuse: bool | None, why_not: str) -> tuple[Part, ...]:
    """Return the parts of a chain.

    Args:
        chain: The chain.
        fuse: As the recipe has it.
        why_not: Why the network cannot be in one graph with steps; empty where it can.

    Raises:
        RecipeError: ``fuse = true``, and that is impossible.
    """
    if fuse:
        step = next((link for link in chain.links if link.python), None)
        obstacle = f"{step} is Python, which no ONNX graph holds" if step else why_not
        if obstacle:
            hint = "leave fuse out: what can be fused is"
            raise RecipeError(f"true is impossible: {obstacle}", where="pipeline.fuse", hint=hint)
    apart = fuse is False or bool(why_not)
    groups: list[list[Link]] = []
    for link in chain.links:
        alone = link.python or (link.kind == NETWORK and apart)
        if alone or not groups or _closed(groups[-1], apart=apart):
            groups.append([])
        groups[-1].append(link)
    return tuple(_part(chain, group) for group in groups)


def whole(chain: Chain, links: tuple[Link, ...]) -> tuple[Part, ...]:
    """Return the parts of some links that the network is not among, as it is for steps that run here."""
    groups: list[list[Link]] = []
    for link in links:
        if link.python or not groups or groups[-1][-1].python:
            groups.append([])
        groups[-1].append(link)
    return tuple(_part(chain, group) for group in groups)


def _closed(group: list[Link], *, apart: bool) -> bool:
    return group[-1].python or (apart and group[-1].kind == NETWORK)


def _part(chain: Chain, group: list[Link]) -> Part:
    mine = {item.name for link in group for item in link.gives}
    takes = {item.name: item for link in group for item in link.takes if item.name not in mine}
    others = [link for link in chain.links if link not in group]
    read = {item.name for link in others for item in link.takes} | {item.name for item in chain.outputs}
    gives = tuple(item for link in group for item in link.gives if item.name in read)
    kind = NETWORK if any(link.kind == NETWORK for link in group) else group[0].kind if group[0].python else STEPS
    return Part(kind=kind, links=tuple(group), takes=tuple(takes.values()), gives=gives)
