from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from repo_builder.core import files, watching


def test_what_is_opened_and_imported_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("sizes.json").write_text('{"width": 3}')
    np.save("start.npy", np.zeros(3))
    Path("unread.txt").write_text("nothing")
    Path("watched_module.py").write_text(
        "import json\nwith open('sizes.json') as stream:\n    WIDTH = json.load(stream)['width']\n"
    )
    with watching.reading() as seen:
        module = importlib.import_module("watched_module")
        np.load("start.npy")
        Path("written.txt").write_text("new")
        json.loads("{}")
    assert module.WIDTH == 3
    assert list(seen) == ["sizes.json", "start.npy", "watched_module.py"]
    assert seen["sizes.json"] == files.sha256_of(Path("sizes.json"))
    Path("unread.txt").read_text()
    assert "unread.txt" not in seen
    del sys.modules["watched_module"]


def test_a_change_and_a_loss_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a")
    with watching.reading() as seen:
        path.read_text()
    assert watching.unchanged(seen)
    assert watching.unchanged({})
    path.write_text("b")
    assert not watching.unchanged(seen)
    path.unlink()
    assert not watching.unchanged(seen)


def test_nothing_of_python_and_its_packages_is_the_users() -> None:
    assert not watching.is_users(Path(np.__file__))
    assert not watching.is_users(Path(json.__file__))
    assert not watching.is_users(Path(files.__file__))
    assert not watching.is_users(Path("/proc/cpuinfo"))
    assert watching.is_users(Path("/home/someone/net.py"))
