from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import zlib
from pathlib import Path

import pytest

from repo_builder.core import files
from repo_builder.core.errors import OutputError


def test_a_file_is_replaced_and_its_folder_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    files.write_json(path, {"z": 1, "a": "ü"})
    files.write_json(path, {"z": 2, "a": "ü"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"z": 2, "a": "ü"}
    assert [item.name for item in path.parent.iterdir()] == ["b.json"]
    assert files.sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_folder_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, Path()):
        with pytest.raises(OutputError, match=r"cannot be written \(Is a directory\)"):
            files.write_text(folder, "text")


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with subprocess.Popen(["cat", str(path)], stdout=subprocess.PIPE) as reader:
        files.write_text(path, "text")
        assert reader.communicate(timeout=120)[0] == b"text"
    assert path.is_fifo()


def test_canonical_json_has_one_hash() -> None:
    assert files.sha256_of_json({"a": 1, "b": [1, 2]}) == files.sha256_of_json({"b": [1, 2], "a": 1})
    assert files.sha256_of_json({"a": 1}) != files.sha256_of_json({"a": 2})


def test_a_failed_block_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(RuntimeError), files.replacing_folder(target) as fresh:  # noqa: PT012 - the block is what fails
        (fresh / "new").write_text("half")
        raise RuntimeError
    assert [item.name for item in target.iterdir()] == ["old"]
    assert [item.name for item in tmp_path.iterdir()] == ["model"]


def test_a_folder_takes_the_old_ones_place(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for content in ("one", "two"):
        with files.replacing_folder(target) as fresh:
            (fresh / content).write_text(content)
    assert [item.name for item in target.iterdir()] == ["two"]
    assert [item.name for item in tmp_path.iterdir()] == ["model"]
    assert files.tree_size(target) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="needs renameat2, which only Linux has")
def test_kill_9_at_any_moment_leaves_a_whole_folder(tmp_path: Path) -> None:
    """A writer that is killed while it replaces a folder over and over leaves one whole generation of it."""
    target = tmp_path / "model"
    code = f"""
        from pathlib import Path
        from repo_builder.core import files
        generation = 0
        while True:
            with files.replacing_folder(Path({str(target)!r})) as fresh:
                for name in "abcdef":
                    (fresh / name).write_text(str(generation))
            generation += 1
    """
    for pause in (0.1, 0.15, 0.2):
        writer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
        deadline = time.monotonic() + 120
        while not target.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(pause)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        contents = {item.name: item.read_text() for item in target.iterdir()}
        assert sorted(contents) == list("abcdef")
        assert len(set(contents.values())) == 1


def test_a_path_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(OutputError, match=r"cannot be written \(File exists\) → something of that name is in the way"):
        files.write_text(in_the_way / "below", "text")
    with pytest.raises(OutputError, match="cannot be written"), files.replacing_folder(in_the_way / "below"):
        pass


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="free some space"):
        files.write_text(tmp_path / "x", "text")
    assert list(tmp_path.iterdir()) == []


def test_an_error_about_another_place_keeps_its_type(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), files.replacing_folder(tmp_path / "model"):
        Path("/nowhere/at/all").read_text()


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.require_writable(tmp_path / "new" / "deeper")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="a file is in its way"):
        files.require_writable(tmp_path / "file" / "below")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(OutputError, match="may not be written"):
        files.require_writable(tmp_path / "new")


def kill_inside(code: str, folder: Path) -> None:
    """Run code in a process of its own and kill it once it has printed a line."""
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=folder, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"inside\n"
        writer.kill()


FOLDER = """
    import pathlib, time
    from repo_builder.core import files
    with files.replacing_folder(pathlib.Path("model")) as fresh:
        (fresh / "half").write_text("half")
        print("inside", flush=True)
        time.sleep(60)
"""
FILE = """
    import pathlib, time
    from repo_builder.core import files
    with files.replacing_file(pathlib.Path("model")) as stream:
        stream.write(b"half")
        print("inside", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("code", [FOLDER, FILE])
def test_what_a_killed_writer_left_is_swept_by_the_next_one(tmp_path: Path, code: str) -> None:
    kill_inside(code, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    files.write_text(tmp_path / "model", "whole")
    assert [item.name for item in tmp_path.iterdir()] == ["model"]
    kill_inside(code, tmp_path)
    files.sweep(tmp_path / "model")
    assert [item.name for item in tmp_path.iterdir()] == ["model"]


def test_a_sweep_spares_living_writers_and_files_of_others(tmp_path: Path) -> None:
    others = {".model.bak", ".model.12345678.new.txt", ".models.abcd1234.new", "model.abcd1234.new", ".model.new"}
    for name in others:
        (tmp_path / name).write_text("mine")
    target = tmp_path / "model"
    with files.replacing_folder(target) as fresh:
        files.sweep(target)
        assert fresh.is_dir()
    with files.replacing_file(tmp_path / "other") as stream:
        files.sweep(tmp_path / "other")
        stream.write(b"whole")
    assert {item.name for item in tmp_path.iterdir()} == {*others, "model", "other"}


def test_a_sweep_never_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / ".model.abcd1234.new").symlink_to("precious")
    files.sweep(tmp_path / "model")
    assert (tmp_path / "precious").is_dir()


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (zlib.error("Error -3"), "is damaged (Error -3)"),
        (RecursionError(), "is damaged (it is nested too deeply)"),
        (MemoryError(), "is damaged (it would need more memory than there is)"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "is damaged (Permission denied)"),
        (KeyError("shape"), "is damaged ('shape')"),
        (AssertionError(), "is damaged (AssertionError)"),
    ],
)
def test_whatever_a_parser_raises_names_the_file(raised: Exception, said: str) -> None:
    with pytest.raises(OutputError) as caught, files.parsing(Path("a.bin"), OutputError, "is damaged"):
        raise raised
    assert caught.value.message == said
    assert caught.value.where == "a.bin"
