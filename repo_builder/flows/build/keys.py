"""What a stage's result depends on beside its inputs: the code of its rooms, the user's code, library versions."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from repo_builder.core import environment, files
from repo_builder.core.errors import ModelError, first_line
from repo_builder.core.recipe import Recipe
from repo_builder.core.recipe.steps import Call
from repo_builder.flows.build.user_code import fingerprints

_PACKAGE = Path(__file__).resolve().parents[2]


@functools.cache
def code_version(*parts: str) -> str:
    """Return the sha256 over the source files of rooms or modules of this package."""
    digest = hashlib.sha256()
    for part in parts:
        place = _PACKAGE / part
        for source in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(source.relative_to(_PACKAGE).as_posix().encode())
            digest.update(source.read_bytes())
    return digest.hexdigest()


def user_code(recipe: Recipe) -> dict[str, dict[str, str]]:
    """Return the sha256 of the code behind the recipe's ``module:function`` values, by value and module.

    A metric of the user's is none of it: it is called anew whenever it is shown.
    """
    found = {value: fingerprints(value) for value in (recipe.model.source, recipe.data.source)}
    return {value: hashes for value, hashes in found.items() if hashes}


def code_names(recipe: Recipe) -> dict[str, str]:
    """Return the recipe's values that may name a ``module:function``, which whoever uses it runs: key → value."""
    values = {
        "model.source": recipe.model.source,
        "data.source": recipe.data.source,
        "measure.metric": recipe.measure.metric,
    }
    for side, steps in (("before", recipe.pipeline.before), ("after", recipe.pipeline.after)):
        for place, step in enumerate(steps):
            if isinstance(step, Call):
                values[f"pipeline.{side}[{place}].function"] = step.function
    return {key: value for key, value in values.items() if value and ":" in value}


def weights(path: Path) -> str:
    """Return the sha256 of a checkpoint; of an .onnx file together with the files beside it that hold its weights.

    Raises:
        ModelError: The .onnx file is damaged, or such a file is missing.
    """
    digest = files.sha256_of(path)
    beside = _external(path) if path.suffix == ".onnx" else []
    if not beside:
        return digest
    try:
        return files.sha256_of_json([digest, *((name, files.sha256_of(path.parent / name)) for name in beside)])
    except (OSError, ValueError) as error:  # the second where a name holds a NUL
        named = f" '{error.filename}'" if isinstance(error, OSError) else ""
        message = f"the file{named} that holds its weights cannot be read ({first_line(error)})"
        raise ModelError(message, where=str(path), hint="copy it beside the .onnx file") from None


def _external(path: Path) -> list[str]:
    """Return the files that hold weights of an .onnx file, relative to its folder."""
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, _get_all_tensors, uses_external_data

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's and onnx's errors share no base class
        hint = "export or copy it again"
        raise ModelError(f"is not an ONNX model ({first_line(error)})", where=str(path), hint=hint) from error
    return sorted({ExternalDataInfo(item).location for item in _get_all_tensors(model) if uses_external_data(item)})


def versions(*libraries: str) -> dict[str, str | None]:
    """Return the installed versions of libraries, or of a quantization back end's; None where there is none."""
    alias = {"modelopt": "nvidia-modelopt"}
    return {name: environment.version(alias.get(name, name)) for name in libraries}
