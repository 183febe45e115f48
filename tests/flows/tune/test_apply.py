"""What was chosen is written where it takes effect, in one step, and what stood there is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from repo_builder.core.errors import RecipeError, RepositoryError
from repo_builder.core.recipe import Recipe, reading
from repo_builder.flows.tune import TuneOptions, apply
from repo_builder.repository import serving
from repo_builder.results.tuning import Settings

CHOSEN = Settings(instances=2, max_batch_size=8, max_queue_delay_us=500, threads=2)
CONFIG = """# about this model
name: "identity"
backend: "python"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ]
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model_repository" / "identity"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text("class TritonPythonModel: ...\n")
    (folder / "config.pbtxt").write_text(CONFIG)
    return tmp_path


def test_a_built_in_recipe_becomes_a_file_of_the_users_own(here: Path) -> None:
    options = TuneOptions(model="vgg", recipe="vgg")
    assert apply.to_recipe(options, CHOSEN) == ["vgg.toml"]
    made, before = Recipe.load(here / "vgg.toml"), Recipe.load("vgg")
    assert made.repository.instance_count == 2
    assert made.repository.preferred_batch_sizes == ()
    assert made.repository.warmup_batch_sizes is None
    assert made.compile.onnxruntime.intra_op_thread_count == 2
    assert made.quantize == before.quantize
    with pytest.raises(RecipeError, match="something is in the way"):
        apply.target_file(options)


def test_a_recipe_file_is_changed_in_place_and_kept(here: Path) -> None:
    path = here / "mine.toml"
    text = reading.built_in()["jsc"].read_text(encoding="utf-8").replace('"jsc"', '"mine"', 1)
    text = text.replace("[repository]\n", "[repository]\nwarmup_batch_sizes = [1, 8, 64]\n")
    path.write_text(text)
    options = TuneOptions(model="mine", recipe=str(path), recipe_file=path)
    written = apply.to_recipe(options, CHOSEN)
    assert written[0] == str(path)
    assert Path(written[1]).read_text() == text
    changed = Recipe.load(path).repository
    assert changed.max_queue_delay_us == 500
    assert changed.warmup_batch_sizes == (1, 8)  # 64 would be more than the largest batch


def test_a_model_without_a_recipe_says_so(here: Path) -> None:
    with pytest.raises(RecipeError, match="no recipe of the model 'identity' is known"):
        apply.target_file(TuneOptions(model="identity"))


def test_a_placed_configuration_is_exchanged_and_kept(here: Path) -> None:
    path = here / "model_repository" / "identity" / "config.pbtxt"
    chosen = Settings(instances=2, max_batch_size=4, max_queue_delay_us=100, preferred_batch_sizes=(2, 4))
    written = apply.to_config(TuneOptions(model="identity", work=here / "build"), chosen)
    assert Path(written[1]).read_text() == CONFIG
    text = path.read_text()
    assert serving.settings_of(serving.of_text(text, "x")) == chosen
    assert text.startswith("# about this model\n# Serving settings chosen")
    assert (path.parent / "1" / "model.py").is_file()


def test_a_configuration_that_triton_would_refuse_is_not_placed(here: Path) -> None:
    path = here / "model_repository" / "identity" / "config.pbtxt"
    with pytest.raises(RepositoryError):
        apply.to_config(
            TuneOptions(model="identity"), Settings(max_batch_size=4, preferred_batch_sizes=(8,), instances=1)
        )
    assert path.read_text() == CONFIG
