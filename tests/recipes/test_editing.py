"""Values go into a recipe's text; everything else in it stays as it was written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_builder.core.errors import RecipeError
from repo_builder.core.recipe import Recipe, reading
from repo_builder.recipes import editing

TEXT = """name = "m" # the name
[repository] # how it is served
max_batch_size = 64 # as large as memory lets it
preferred_batch_sizes = [
  8, # a first
  16,
]
# the last word
[measure]
batch_sizes = [1, 8]
"""


def test_comments_order_and_other_tables_stay() -> None:
    made = editing.with_values(
        TEXT,
        {
            "repository": {"max_batch_size": 8, "preferred_batch_sizes": [], "instance_count": 2},
            "compile.onnxruntime": {"intra_op_thread_count": 2},
        },
        where="m.toml",
    )
    assert (
        made
        == """name = "m" # the name
[repository] # how it is served
max_batch_size = 8 # as large as memory lets it
preferred_batch_sizes = []
# the last word
instance_count = 2
[measure]
batch_sizes = [1, 8]

[compile.onnxruntime]
intra_op_thread_count = 2
"""
    )


@pytest.mark.parametrize("name", sorted(reading.built_in()))
@given(st.integers(1, 16), st.integers(1, 512), st.integers(0, 10_000), st.lists(st.integers(1, 8), max_size=3))
def test_every_built_in_recipe_takes_values_and_stays_one(
    name: str, instances: int, most: int, delay: int, preferred: list[int]
) -> None:
    path = reading.built_in()[name]
    before = path.read_text(encoding="utf-8")
    values = {"instance_count": instances, "max_batch_size": most, "max_queue_delay_us": delay}
    made = editing.with_values(before, {"repository": {**values, "preferred_batch_sizes": preferred}}, where=name)
    found, old = reading.parsed(made), reading.parsed(before)
    assert found.pop("repository") == {**old.pop("repository", {}), **values, "preferred_batch_sizes": preferred}
    assert found == old
    assert [line for line in made.splitlines() if line.startswith("#")] == [
        line for line in before.splitlines() if line.startswith("#")
    ]


@pytest.mark.parametrize(
    "text",
    ['repository = { max_batch_size = 4 }\nname = "m"\n', "repository.max_batch_size = 4\n"],
)
def test_a_table_in_another_form_is_left_alone_and_the_lines_are_named(text: str) -> None:
    with pytest.raises(RecipeError, match=r"repository\.max_batch_size = 8"):
        editing.with_values(text, {"repository": {"max_batch_size": 8}}, where="m.toml")


def test_what_is_written_is_the_recipe_that_is_meant() -> None:
    text = reading.built_in()["vgg"].read_text(encoding="utf-8")
    made = reading.parsed(editing.with_values(text, {"repository": {"max_batch_size": 64}}, where="vgg"))
    assert made == reading.parsed(text)
    assert Recipe.load("vgg").repository.max_batch_size == 64
