"""A recipe's pipeline with every tensor resolved: which step takes what of which, all types and shapes checked.

Tensors have a name that the recipe's author sees, as ``image``, which the next step may give anew, and a name of their
own in the chain, by which graphs and ensembles tell them apart: ``image``, ``image.2``, ``image.3``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repo_builder.core.errors import RecipeError, did_you_mean
from repo_builder.core.recipe import ModelSpec, PipelineSpec
from repo_builder.core.tensors import TensorSpec
from repo_builder.pipeline.form import ONE_STRING, Form, Kind, Unfit, kind_of, told
from repo_builder.pipeline.steps import TABLE

NETWORK = "network"


@dataclass(frozen=True, kw_only=True)
class Link:
    """A step, or the network, in its place.

    Attributes:
        place: The key path of its table, as in ``pipeline.before[0]``.
        kind: The step's word, as in ``resize``, or ``network``.
        spec: The recipe's table; None for the network.
        form: What the step is; None for the network.
        takes: Tensors of the chain, in the step's order; in that of the recipe's inputs for the network.
        gives: Likewise.
        binds: The network's inputs, as the recipe has them.
        yields: The network's outputs.
    """

    place: str
    kind: str
    spec: Any = None
    form: Form | None = None
    takes: tuple[TensorSpec, ...]
    gives: tuple[TensorSpec, ...]
    binds: tuple[TensorSpec, ...] = ()
    yields: tuple[TensorSpec, ...] = ()

    @property
    def python(self) -> bool:
        """Whether it runs as Python."""
        return self.form is not None and self.form.python is not None

    def __str__(self) -> str:
        """Return it as messages name it, as in ``pipeline.before[0] (resize)``."""
        return f"{self.place} ({self.kind})" if self.spec is not None else "the network"


@dataclass(frozen=True, kw_only=True)
class Chain:
    """All of them.

    Attributes:
        links: In the order in which they run.
        inputs: What clients send.
        outputs: What clients get.
    """

    links: tuple[Link, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def network(self) -> Link:
        """The network."""
        return next(link for link in self.links if link.kind == NETWORK and link.spec is None)

    @property
    def before(self) -> tuple[Link, ...]:
        """The steps before the network."""
        return self.links[: self.links.index(self.network)]

    @property
    def after(self) -> tuple[Link, ...]:
        """The steps behind it."""
        return self.links[self.links.index(self.network) + 1 :]


def resolve(spec: PipelineSpec, model: ModelSpec) -> Chain:
    """Resolve a pipeline around a network.

    Args:
        spec: The recipe's ``[pipeline]``.
        model: The recipe's ``[model]``, for the network's tensors.

    Raises:
        RecipeError: A step cannot take what it is given, or the network cannot; both are named, with types and shapes.
    """
    for tensor in (*spec.inputs, *model.inputs, *model.outputs):
        if tensor.batch_axis:
            message = f"'{tensor.name}' counts samples on axis {tensor.batch_axis}, and a pipeline's samples come first"
            raise RecipeError(message, where="pipeline", hint="remove the pipeline, or change the network")
    names = [item.name for item in spec.inputs]
    if len(set(names)) < len(names):
        raise RecipeError("names an input twice", where="pipeline.inputs")
    building = _Building(spec, model)
    for place, step in enumerate(spec.before):
        building.add(f"pipeline.before[{place}]", step)
    building.network()
    for place, step in enumerate(spec.after):
        building.add(f"pipeline.after[{place}]", step)
    return building.done()


class _Building:
    """A chain as far as it has come."""

    def __init__(self, spec: PipelineSpec, model: ModelSpec) -> None:
        self._spec, self._model = spec, model
        self.links: list[Link] = []
        self.inputs: list[TensorSpec] = []
        self._seen: dict[str, TensorSpec] = {}  # name that is seen → tensor
        self._makers: dict[str, str] = {}  # tensor → who gives it
        self._current: list[str] = []  # names of what the last step gave
        for item in spec.inputs:
            self._client(item)
        self._current = [item.name for item in spec.inputs]

    def add(self, place: str, step: Any) -> None:  # noqa: ANN401 - any of the recipe's tables
        form, kind = TABLE[type(step)], str(step.step)
        link = Link(place=place, kind=kind, spec=step, form=form, takes=(), gives=())
        names = self._taken(link, form)
        takes = tuple(self._seen[name] for name in names)
        try:
            kinds = form.gives(step, [kind_of(item) for item in takes])
        except Unfit as error:
            raise RecipeError(f"({kind}) {error}, and {self._told(names, takes)}", where=place) from None
        given = step.outputs or self._named(step, form, names, len(kinds))
        if len(given) > len(kinds) or len(set(given)) < len(given):
            message = f"({kind}) gives {len(kinds)} tensors, and outputs names {', '.join(given)}"
            raise RecipeError(message, where=f"{place}.outputs")
        gives = tuple(self._made(name, kind, str(link)) for name, kind in zip(given, kinds, strict=False))
        self.links.append(dataclasses.replace(link, takes=takes, gives=gives))
        self._current = list(given)

    def network(self) -> None:
        """Bind the network's inputs to what there is, each by its name; an only one to what the last step gave."""
        takes, inputs = [], self._model.inputs
        for wanted in inputs:
            name = wanted.name
            if len(inputs) == 1 and self.links and name not in self._current and len(self._current) == 1:
                name = self._current[0]
            if name not in self._seen:
                if self._spec.inputs:
                    hint = f"{did_you_mean(name, self._seen)}; outputs = [...] of a step names what it gives"
                    raise RecipeError(f"nothing gives the network's input {wanted}", where="pipeline.before", hint=hint)
                self._client(wanted)
            found = self._seen[name]
            if not _fits(found, wanted):
                maker = self._makers[found.name]
                message = f"{maker} gives '{name}' {told(kind_of(found))}, and the network takes {wanted}"
                raise RecipeError(message, where="pipeline.before", hint=_advice(found, wanted))
            takes.append(found)
        gives = tuple(self._made(item.name, kind_of(item), "the network") for item in self._model.outputs)
        network = Link(place=NETWORK, kind=NETWORK, takes=tuple(takes), gives=gives)
        self.links.append(dataclasses.replace(network, binds=inputs, yields=self._model.outputs))
        self._current = [item.name for item in self._model.outputs]

    def done(self) -> Chain:
        """Return the chain, with the names that clients see for what they get."""
        read = {item.name for link in self.links for item in link.takes}
        made = {item.name for link in self._behind() for item in link.gives}
        wanted = self._spec.outputs or tuple(
            name for name, item in self._seen.items() if item.name in made and item.name not in read
        )
        for name in wanted:
            if name not in self._seen or self._seen[name].name not in {i.name for k in self.links for i in k.gives}:
                hint = did_you_mean(name, (seen for seen, item in self._seen.items() if item.name in made))
                raise RecipeError(f"no step gives '{name}'", where="pipeline.outputs", hint=hint)
        unused = next((item.name for item in self.inputs if item.name not in read), None)
        if unused is not None:
            hint = "name it in inputs = [...] of a step, or leave it out"
            raise RecipeError(f"nothing takes '{unused}'", where="pipeline.inputs", hint=hint)
        if len(set(wanted)) < len(wanted) or not wanted:
            raise RecipeError("names an output twice" if wanted else "there is no output", where="pipeline.outputs")
        clash = next((item.name for item in self.inputs if item.name in wanted), None)
        if clash is not None:
            hint = "name it otherwise with outputs = [...] of the step that gives it"
            raise RecipeError(f"'{clash}' is an input and an output", where="pipeline.outputs", hint=hint)
        names = {self._seen[name].name: name for name in wanted}
        taken = set(wanted)
        for item in (item for link in self.links for item in link.gives):
            if item.name in taken and item.name not in names:  # the tensor of that name is another one than clients get
                names[item.name] = f"{item.name}.0"
        renamed = tuple(_renamed(link, names) for link in self.links)
        outputs = tuple(dataclasses.replace(self._seen[name], name=name) for name in wanted)
        return Chain(links=renamed, inputs=tuple(self.inputs), outputs=outputs)

    def _behind(self) -> list[Link]:
        place = next(place for place, link in enumerate(self.links) if link.kind == NETWORK)
        return self.links[place:]

    def _client(self, spec: TensorSpec) -> None:
        self.inputs.append(spec)
        self._seen[spec.name] = spec
        self._makers[spec.name] = "the client"

    def _made(self, name: str, kind: Kind, maker: str) -> TensorSpec:
        """Return a new tensor that is seen under a name from here on."""
        own, count = name, 1
        while own in self._makers:
            count += 1
            own = f"{name}.{count}"
        found = TensorSpec(name=own, dtype=kind[0], shape=tuple(kind[1]))
        self._seen[name], self._makers[own] = found, maker
        return found

    def _taken(self, link: Link, form: Form) -> Sequence[str]:
        """Return the names of what a step takes."""
        least, most = form.takes
        names = list(link.spec.inputs)
        if not names and not self._current and form.reads:
            names = [form.reads]
        if not names:
            names = list(self._current[:]) if least <= len(self._current) <= most else []
            if form.also and len(self._current) == 1:
                names = [*self._current, form.also]
        if form.reads and len(names) == 1 and names[0] not in self._seen and not self._spec.inputs:
            dtype, shape = ONE_STRING
            self._client(TensorSpec(name=names[0], dtype=dtype, shape=shape))
        if not names:
            there = ", ".join(self._current)
            said = f"does not say which of {there} it takes" if there else "has nothing to take"
            hint = 'say it with inputs = ["..."]' if there else "declare what clients send with [[pipeline.inputs]]"
            raise RecipeError(f"({link.kind}) {said}", where=link.place, hint=hint)
        for name in names:
            if name not in self._seen:
                message = f"({link.kind}) takes '{name}', and nothing gives it"
                raise RecipeError(message, where=f"{link.place}.inputs", hint=did_you_mean(name, self._seen))
        if not least <= len(names) <= most:
            count = str(least) if least == most else f"{least} to {most}"
            raise RecipeError(f"({link.kind}) takes {count} tensors, not {len(names)}", where=f"{link.place}.inputs")
        return names

    def _named(self, step: Any, form: Form, taken: Sequence[str], count: int) -> tuple[str, ...]:  # noqa: ANN401
        """Return the names of what a step gives where the recipe has none."""
        if form.names:
            return form.names[:count]
        return tuple(item.name for item in step.gives) if hasattr(step, "gives") else tuple(taken[:count])

    def _told(self, names: Sequence[str], takes: Sequence[TensorSpec]) -> str:
        pairs = zip(names, takes, strict=True)
        each = (f"{self._makers[item.name]} gives '{name}' {told(kind_of(item))}" for name, item in pairs)
        return " and ".join(each)


def _fits(found: TensorSpec, wanted: TensorSpec) -> bool:
    """Whether a tensor may be what the network wants: a size that is not known before a request comes may fit."""
    pairs = zip(found.shape, wanted.shape, strict=False)
    same = len(found.shape) == len(wanted.shape) and all(one == other or -1 in (one, other) for one, other in pairs)
    return same and found.dtype is wanted.dtype


def _advice(found: TensorSpec, wanted: TensorSpec) -> str:
    """Return which step would make a tensor fit."""
    if len(found.shape) == 3 and (found.shape[2], *found.shape[:2]) == wanted.shape:
        return "add the step layout"
    if found.shape == wanted.shape:
        return f'add the step cast with dtype = "{wanted.dtype.value}"'
    return "change a step, or model.inputs"


def _renamed(link: Link, names: Mapping[str, str]) -> Link:
    takes, gives = (
        tuple(dataclasses.replace(item, name=names.get(item.name, item.name)) for item in side)
        for side in (link.takes, link.gives)
    )
    return dataclasses.replace(link, takes=takes, gives=gives)
