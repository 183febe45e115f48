from __future__ import annotations

from pathlib import Path

import pytest

from repo_builder.flows.build.user_code import fingerprints

TREE = {
    "net.py": "import parts\nfrom torch import nn\n",
    "parts.py": "def f():\n    from kit import blocks\n",
    "kit/__init__.py": "",
    "kit/blocks.py": "from . import act\nfrom .deep.more import *\n",
    "kit/act.py": "from ..nothing import there\n",
    "kit/deep/more.py": "import importlib\nimportlib.import_module('late')\n",
    "late.py": "import net\n",
    "unused.py": "",
}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_everything_that_it_imports_is_found(tree: Path) -> None:
    names = {"net", "parts", "kit", "kit.blocks", "kit.act", "kit.deep.more", "late"}
    assert set(fingerprints("net:make")) == names
    assert set(fingerprints("net.py:make")) == names
    assert set(fingerprints("kit.blocks:Block")) == names


@pytest.mark.parametrize("changed", sorted(TREE))
def test_a_change_of_any_of_it_is_noticed_and_of_nothing_else(tree: Path, changed: str) -> None:
    before = fingerprints("net:make")
    with (tree / changed).open("a") as stream:
        stream.write("# changed\n")
    assert (fingerprints("net:make") != before) == (changed != "unused.py")


def test_a_file_elsewhere_finds_what_lies_beside_it(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    assert "kit.deep.more" in fingerprints(f"{tree / 'net.py'}:make")
    monkeypatch.syspath_prepend(tree)
    assert "kit.deep.more" in fingerprints("net:make")


def test_installed_packages_are_not_followed(tree: Path) -> None:
    (tree / "net.py").write_text("import numpy, json, torch.nn, repo_builder.core\n")
    assert set(fingerprints("net:make")) == {"net"}


@pytest.mark.parametrize("target", ["vgg", "samples.npz", "folder/", "no_such:make", "no_such.py:make", ":", "a b:c"])
def test_what_is_no_module_has_no_code(tree: Path, target: str) -> None:
    assert fingerprints(target) == {}


def test_code_that_cannot_be_read_is_hashed_all_the_same(tree: Path) -> None:
    (tree / "parts.py").write_text("def broken(:\n")
    assert set(fingerprints("net:make")) == {"net", "parts"}
