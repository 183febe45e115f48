from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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


def test_an_import_inside_a_guard_says_what_is_missing() -> None:
    with (
        pytest.raises(
            MissingDependency, match=r"^exporting needs the library 'no_such_library'.*repo-builder\[build\]"
        ),
        loading.needs("build", what="exporting"),
    ):
        import no_such_library.part  # noqa: F401
    with (
        pytest.raises(MissingDependency, match=r"^reading needs a library that cannot be loaded: .*no_such_name"),
        loading.needs(what="reading"),
    ):
        from json import no_such_name  # noqa: F401
    with pytest.raises(ZeroDivisionError), loading.needs(what="reading"):
        print(1 / 0)


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


def shaped(*, size: int, names: Sequence[str] = (), scale: float | Sequence[float] = 1.0, other: object = None) -> Any:
    return size, names, scale, other


@pytest.mark.parametrize("function", [shaped, functools.partial(shaped)])
def test_arguments_are_of_the_types_that_a_function_is_annotated_with(function: Callable[..., Any]) -> None:
    given = {"size": 3, "names": ["a"], "scale": [1, 2.5], "other": {1}}
    assert loading.call(function, given, where="data.arguments") == (3, ("a",), (1.0, 2.5), {1})
    for wrong, message in (
        ({"size": "3"}, r"data\.arguments\.size: expected a whole number, found '3'"),
        ({"size": 3, "names": 3}, r"data\.arguments\.names: expected an array, found 3"),
        ({"size": 3, "names": [3]}, r"data\.arguments\.names\[0\]: expected a string, found 3"),
        ({"size": 3, "scale": "x"}, r"data\.arguments\.scale: expected a number, found 'x'"),
    ):
        with pytest.raises(RecipeError, match=message):
            loading.call(function, wrong, where="data.arguments")


def test_annotations_that_cannot_be_resolved_are_left_alone() -> None:
    def odd(size: NoSuchType) -> Any:  # type: ignore[name-defined]  # noqa: F821
        return size

    assert loading.call(odd, {"size": "x"}, where="") == "x"


def test_distrusted_code_is_not_imported_by_anyone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "distrusted_module.py").write_text("def read(): return 1\n")
    with (
        loading.distrusting(["distrusted_module:read"], origin=Path("manifest.json")),
        pytest.raises(loading.UntrustedCode, match=r"'distrusted_module:read' is code that manifest.json names"),
    ):
        loading.load_user("distrusted_module:read", where="data.source")
    assert "distrusted_module" not in sys.modules
    assert loading.load_user("distrusted_module:read", where="data.source")() == 1


@pytest.mark.parametrize("target", [":f", ".:f", "..a:f", "a..b:f", "1a:f", "a b:f", ".py:f", "f"])
def test_what_is_no_name_of_a_module_is_one_sentence(target: str) -> None:
    with pytest.raises(RecipeError, match=r"data\.source"):
        loading.load_user(target, where="data.source")


@pytest.mark.parametrize("body", ["raise ValueError('broken')", "def f(:", "import sys; sys.modules[__name__].nothing"])
def test_a_module_that_cannot_be_imported_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fails_when_imported.py").write_text(body + "\n")
    with pytest.raises(RecipeError, match=r"fails_when_imported"):
        loading.load_user("fails_when_imported:f", where="data.source")


def test_code_that_is_nowhere_is_refused_without_running_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "explosive.py").write_text("raise SystemExit('it ran')")
    for target in ("explosive:f", f"{tmp_path}/explosive.py:f", "numpy.linalg:norm", "json:loads"):
        loading.require_user(target, where="measure.metric")
    for target in ("nowhere_net:f", "nowhere_net.sub:f", "folder/nowhere_net.py:f"):
        with pytest.raises(RecipeError, match=r"measure\.metric: there is no Python module 'nowhere_net"):
            loading.require_user(target, where="measure.metric")
