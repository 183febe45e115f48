"""A pipeline around what the network became when it was compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from repo_builder.core.recipe.steps import Cast
from repo_builder.core.tensors import DType, TensorSpec
from repo_builder.pipeline.chain import NETWORK, Chain, Link
from repo_builder.pipeline.steps import TABLE


def compiled(chain: Chain, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Chain:
    """Return the chain around the compiled network: casts stand where it got other types than the recipe says.

    Args:
        chain: The chain.
        inputs: The compiled network's inputs: TensorRT before 10 has int32 where the network has int64.
        outputs: Its outputs, likewise.
    """
    link = chain.network
    takes, gives = list(link.takes), list(link.gives)
    before, after = [], []
    ins, outs = {item.name: item for item in inputs}, {item.name: item for item in outputs}
    for place, (own, wire) in enumerate(zip(link.binds, link.takes, strict=True)):
        if ins[own.name].dtype is not wire.dtype:
            takes[place] = _as(wire, ins[own.name].dtype)
            before.append(_cast(f"{NETWORK}.inputs[{place}]", wire, takes[place]))
    for place, (own, wire) in enumerate(zip(link.yields, link.gives, strict=True)):
        if outs[own.name].dtype is not wire.dtype:
            gives[place] = _as(wire, outs[own.name].dtype)
            after.append(_cast(f"{NETWORK}.outputs[{place}]", gives[place], wire))
    if not before and not after:
        return chain
    network = dataclasses.replace(
        link,
        takes=tuple(takes),
        gives=tuple(gives),
        binds=tuple(ins[item.name] for item in link.binds),
        yields=tuple(outs[item.name] for item in link.yields),
    )
    return dataclasses.replace(chain, links=(*chain.before, *before, network, *after, *chain.after))


def _as(wire: TensorSpec, dtype: DType) -> TensorSpec:
    return dataclasses.replace(wire, name=f"{wire.name}.{dtype.value}", dtype=dtype)


def _cast(place: str, wire: TensorSpec, other: TensorSpec) -> Link:
    spec = Cast(dtype=other.dtype)
    return Link(place=place, kind=spec.step, spec=spec, form=TABLE[Cast], takes=(wire,), gives=(other,))
