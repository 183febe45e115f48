"""The settings in a config.pbtxt: what is written is read back, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_builder.core.errors import RepositoryError
from repo_builder.repository import protobuf, serving
from repo_builder.results.tuning import Settings

GOLDENS = sorted((Path(__file__).resolve().parents[1] / "goldens").glob("*.onnxruntime.config.pbtxt"))
ENSEMBLE = """name: "pair" platform: "ensemble" max_batch_size: 8
ensemble_scheduling { step [ { model_name: "a" model_version: -1 }, { model_name: "b" model_version: -1 } ] }
"""


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.name.partition(".")[0])
@given(
    st.integers(1, 16), st.sampled_from([1, 2, 8, 64]), st.integers(0, 5000), st.booleans(), st.sampled_from([0, 1, 4])
)
def test_settings_are_read_as_they_were_written(
    path: Path, instances: int, most: int, delay: int, preferred: bool, threads: int
) -> None:
    before = serving.of_text(path.read_text(encoding="utf-8"), path.name)
    untouched = before.SerializeToString(deterministic=True)
    asked = Settings(
        instances=instances,
        max_batch_size=most,
        max_queue_delay_us=delay if most > 1 else 0,
        preferred_batch_sizes=(most // 2, most) if preferred and most > 2 else (),
        threads=threads,
    )
    made = serving.changed(before, asked)
    assert serving.settings_of(made) == asked
    assert before.SerializeToString(deterministic=True) == untouched
    assert all(item.batch_size <= most for item in made.model_warmup)
    assert list(made.input) == list(before.input)
    assert made.parameters["repo_builder_engine_sha256"] == before.parameters["repo_builder_engine_sha256"]
    assert serving.of_json(serving.to_json(made), "json") == made


def test_the_text_keeps_the_comments_at_the_top_and_says_the_same() -> None:
    before = GOLDENS[0].read_text(encoding="utf-8")
    config = serving.changed(serving.of_text(before, "x"), Settings(instances=3, max_batch_size=4, threads=1))
    text = serving.rendered(config, before, "chosen by a search")
    assert text.splitlines()[0] == before.splitlines()[0]
    assert "# chosen by a search\n" in text
    assert protobuf.parse(text, "x") == config
    again = serving.rendered(config, text, "chosen by a search")
    assert again == text


def test_a_model_without_a_batcher_stays_without_one() -> None:
    config = protobuf.parse('name: "m" max_batch_size: 8 instance_group [ { count: 1 } ]', "x")
    present = serving.settings_of(config)
    assert not present.batching
    assert "no dynamic batching" in str(present)
    assert serving.changed(config, present) == config
    assert serving.changed(config, Settings(max_batch_size=8)).HasField("dynamic_batching")


def test_a_batcher_that_triton_completed_has_no_preferred_sizes() -> None:
    config = protobuf.parse('name: "m" max_batch_size: 8 dynamic_batching { preferred_batch_size: [ 8 ] }', "x")
    assert serving.settings_of(config).preferred_batch_sizes == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ENSEMBLE, "is an ensemble, and the settings are those of its steps: tune a, b"),
        ('name: "m" sequence_batching { }', "is a sequence model"),
        ('name: "m" instance_group [ { count: 1 }, { count: 2 } ]', "several instance groups"),
        ('name: "m" max_batch_size: 4', ""),
    ],
)
def test_what_cannot_be_searched_is_named(text: str, said: str) -> None:
    why = serving.why_not(protobuf.parse(text, "x"))
    assert said in why if said else not why


def test_a_server_that_says_nonsense_is_no_configuration() -> None:
    with pytest.raises(RepositoryError, match="is not a model configuration"):
        serving.of_json({"max_batch_size": "many"}, "m")


def test_a_model_on_a_gpu_has_no_threads() -> None:
    text = 'name: "m" backend: "onnxruntime" instance_group [ { count: 1 kind: KIND_GPU } ]'
    assert serving.settings_of(protobuf.parse(text, "x")).threads is None
    assert serving.on_gpu(protobuf.parse(text, "x"))
    assert not serving.on_gpu(protobuf.parse('name: "m"', "x"))
