"""A first recipe for a user's model: what can be read off it is written, and what is left to decide is said.

facts.py        what a recipe can know of a model     onnx_facts.py, torch_facts.py   where that comes from
samples.py      what the data says of the task         render.py                       the commented TOML
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repo_builder.core import files
from repo_builder.core.errors import ModelError, RecipeError
from repo_builder.core.recipe import parse, reading
from repo_builder.flows.init import onnx_facts, render, samples, torch_facts

__all__ = ["Draft", "default_name", "draft", "write"]


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A recipe that was written for a model.

    Attributes:
        name: The model's name in Triton.
        text: The recipe, TOML with comments.
        found: What was read off the model and the data, a sentence each.
        undecided: What is left to decide, a sentence each.
        complete: Whether the recipe can be parsed as it is; what is missing is among ``undecided``.
    """

    name: str
    text: str
    found: tuple[str, ...]
    undecided: tuple[str, ...]
    complete: bool


def default_name(model: str) -> str:
    """Return the name of a model that was given none: its file's, or its module's."""
    module, colon, _ = model.rpartition(":")
    return Path(module).stem.rpartition(".")[2] if colon else Path(model).stem


def draft(name: str, model: str, *, data: str | None = None, arguments: Mapping[str, Any] | None = None) -> Draft:
    """Write a recipe for a model.

    Args:
        name: The model's name in Triton.
        model: An .onnx file, or ``module:function`` that returns a ``torch.nn.Module``.
        data: Where its samples come from, as ``[data] source``; None leaves that to decide.
        arguments: Keyword arguments of the function.

    Raises:
        RecipeError: The name is none, or a built-in's; or the function cannot be called.
        ModelError: The model cannot be read, or no recipe can be written for it.
        DataError: The data is missing, or does not fit the model.
    """
    _check_name(name)
    if model.endswith(".onnx"):
        if arguments:
            raise RecipeError("an ONNX model takes no arguments", where="--argument", hint="leave it out")
        facts = onnx_facts.read(Path(model))
    elif ":" in model:
        facts = torch_facts.read(model, arguments or {}, data)
    else:
        hint = "name a file that ends in .onnx, or module:function that returns a torch.nn.Module"
        raise ModelError("is neither an .onnx file nor module:function", where=f"'{model}'", hint=hint)
    told = samples.read(name, facts, data)
    undecided = (*facts.undecided, *told.undecided)
    text = render.render(name, facts, told, undecided)
    complete = all(item.shape is not None for item in (*facts.inputs, *facts.outputs))
    if complete:
        parse(reading.parsed(text))  # what is written is what `build` takes
    return Draft(name=name, text=text, found=(*facts.found, *told.found), undecided=undecided, complete=complete)


def write(made: Draft, path: Path, *, force: bool = False) -> Path:
    """Write a recipe.

    Raises:
        RecipeError: The file is there already, and ``force`` is not given.
        OutputError: It cannot be written.
    """
    if path.exists() and not force:
        raise RecipeError("is there already", where=str(path), hint="give another NAME, or --force to replace it")
    files.write_text(path, made.text)
    return path


def _check_name(name: str) -> None:
    """Refuse a name that no model can have, or that means a built-in on the command line."""
    tensor = {"name": "x", "dtype": "fp32", "shape": [1]}
    parse({"name": name, "model": {"source": "x", "inputs": [tensor], "outputs": [tensor]}, "data": {"source": "x"}})
    if name in reading.built_in():
        raise RecipeError(f"'{name}' is a built-in recipe", where="NAME", hint="give the model another name")
