from __future__ import annotations

from pathlib import Path

import pytest

from repo_builder.core.recipe import Recipe, parse
from repo_builder.flows.build import keys


def recipe(source: str) -> Recipe:
    tensor = [{"name": "x", "dtype": "fp32", "shape": [1]}]
    return parse(
        {"name": "n", "model": {"source": source, "inputs": tensor, "outputs": tensor}, "data": {"source": "d"}}
    )


def test_the_code_version_follows_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_PACKAGE", tmp_path)
    (tmp_path / "room").mkdir()
    source = tmp_path / "room" / "a.py"
    source.write_text("x = 1\n")
    keys.code_version.cache_clear()
    first = keys.code_version("room")
    keys.code_version.cache_clear()
    assert keys.code_version("room") == first
    source.write_text("x = 2\n")
    keys.code_version.cache_clear()
    assert keys.code_version("room") != first
    keys.code_version.cache_clear()


def test_a_users_module_is_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert keys.user_code(recipe("vgg")) == {}
    assert keys.user_code(recipe("no_such_module_anywhere:make")) == {}
    source = tmp_path / "my_net.py"
    source.write_text("def make(): ...\n")
    first = keys.user_code(recipe("my_net:make"))
    source.write_text("def make(): return 1\n")
    assert set(first) == {"my_net:make"}
    assert keys.user_code(recipe("my_net:make")) != first
    assert set(keys.user_code(recipe("json.decoder:JSONDecoder"))) == {"json.decoder:JSONDecoder"}


def test_versions_know_the_back_ends_names() -> None:
    found = keys.versions("numpy", "modelopt", "no-such-library")
    assert found["numpy"] is not None
    assert found["modelopt"] is not None
    assert found["no-such-library"] is None
