from __future__ import annotations

import sys
from pathlib import Path

import pytest

from repo_builder.core import loading
from repo_builder.core.errors import MissingDependency, RecipeError


def test_a_leaf_is_loaded_by_name() -> None:
    assert loading.load("json:dumps")([1]) == "[1]"


def test_a_missing_library_says_how_to_install_it() -> None:
    with pytest.raises(MissingDependency, match=r"'no_such_library'.*pip install 'repo-builder\[tensorrt\]'"):
        loading.load("no_such_library.part:Thing", extra="tensorrt")
    with pytest.raises(MissingDependency, match=r"^Thing needs the library"):
        loading.load("no_such_library.part:Thing")
    with pytest.raises(MissingDependency, match=r"^reading it needs the library"):
        loading.load("no_such_library.part:Thing", what="reading it")


def test_a_broken_library_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_leaf.py").write_text("raise ImportError('libcuda.so.1: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        MissingDependency, match=r"^Thing needs a library that cannot be loaded: libcuda.so.1: .* → install"
    ):
        loading.load("broken_leaf:Thing")


def test_a_users_function_is_found_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "users_own_net.py").write_text("def make():\n    return 42\n")
    before = list(sys.path)
    assert loading.load_user(f"{tmp_path}/users_own_net.py:make", where="model.source")() == 42
    assert sys.path == before
    with pytest.raises(RecipeError, match="has no 'other'"):
        loading.load_user(f"{tmp_path}/users_own_net.py:other", where="model.source")


def test_a_missing_module_names_the_places_looked_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=f"no Python module 'nowhere_net'.*{tmp_path}"):
        loading.load_user("nowhere_net:make", where="model.source")


def test_a_users_module_that_lacks_a_library_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "needs_more.py").write_text("import no_such_library\n")
    with pytest.raises(MissingDependency, match="no_such_library"):
        loading.load_user(f"{tmp_path}/needs_more.py:make", where="model.source")
