"""config.pbtxt of every built-in recipe, for both targets, as it was last looked at.

pytest tests/repository/test_goldens.py --update-goldens
"""

from __future__ import annotations

from pathlib import Path

import pytest

from repo_builder import recipes
from repo_builder.compile import TARGETS
from repo_builder.compile.tensorrt import profiles as trt_profiles
from repo_builder.core.artifacts import EngineArtifact
from repo_builder.core.details import OnnxRuntimeDetails, TensorRTDetails
from repo_builder.repository import config

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
CASES = [(name, target) for name in sorted(recipes.built_in()) for target in sorted(TARGETS)]


def _engine(name: str, target: str) -> EngineArtifact:
    """Return what the target would make of the recipe, without a model."""
    recipe = recipes.load(name)
    batch = recipe.repository.max_batch_size
    details: OnnxRuntimeDetails | TensorRTDetails = OnnxRuntimeDetails(max_batch_size=batch)
    if target == "tensorrt":
        details = TensorRTDetails(max_batch_size=batch, profiles=tuple(trt_profiles.from_recipe(recipe)))
    return EngineArtifact(
        path=Path("engine"),
        key="the build's key",
        recipe=recipe,
        inputs=recipe.model.inputs,
        outputs=recipe.model.outputs,
        classes=tuple(f"class {place}" for place in range(recipe.model.outputs[0].shape[-1])),
        files={"model.plan" if target == "tensorrt" else "model.onnx": "the engine's sha256"},
        details=details,
    )


@pytest.mark.parametrize(("name", "target"), CASES)
def test_config_is_as_it_was(name: str, target: str, update_goldens: bool) -> None:
    golden = GOLDENS / f"{name}.{target}.config.pbtxt"
    text = config.render(config.from_engine(_engine(name, target)))
    if update_goldens:
        golden.write_text(text, encoding="utf-8")
    assert golden.is_file(), "there is no golden: look at the text, then write it with --update-goldens"
    assert text == golden.read_text(encoding="utf-8")


def test_there_is_no_golden_without_a_recipe() -> None:
    assert {item.name for item in GOLDENS.glob("*.config.pbtxt")} == {f"{a}.{b}.config.pbtxt" for a, b in CASES}
