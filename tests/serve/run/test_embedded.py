"""The embedded server's parts: what is found, assembled and refused, without starting it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from repo_builder import serve
from repo_builder.core.errors import MissingDependency, ServeError
from repo_builder.serve.run import assembly, embedded, launch

has_wheel = pytest.mark.skipif(embedded.unavailable() is not None, reason=str(embedded.unavailable()))


@has_wheel
def test_the_backend_directory_is_private_whole_and_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    wheel = embedded.find_wheel()
    before = {path: path.stat().st_mtime_ns for path in wheel.python_backend.parents[1].rglob("*")}
    folder = assembly.assemble(wheel)
    assert folder.is_relative_to(tmp_path)
    assert assembly.assemble(wheel) == folder
    assert {item.name for item in folder.iterdir()} == {"python", "onnxruntime", "tensorrt"}
    assert not any(item.is_symlink() for item in folder.rglob("*"))  # Triton refuses those that lead out of it
    assert os.access(folder / "python" / "triton_python_backend_stub", os.X_OK)
    assert [item.name for item in (folder / "onnxruntime").iterdir()] == ["model.py"]
    assert {path: path.stat().st_mtime_ns for path in wheel.python_backend.parents[1].rglob("*")} == before


@has_wheel
def test_native_backends_are_taken_before_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wheel, natives = embedded.find_wheel(), tmp_path / "backends"
    for name, file in (
        ("onnxruntime", "libtriton_onnxruntime.so"),
        ("python", "libtriton_python.so"),
        ("other", "readme"),
    ):
        (natives / name).mkdir(parents=True)
        (natives / name / file).write_bytes(b"theirs")
    (natives / "onnxruntime" / "libonnxruntime.so.1").write_bytes(b"library")
    (natives / "onnxruntime" / "libonnxruntime.so").symlink_to("libonnxruntime.so.1")
    folder = assembly.assemble(wheel, natives)
    assert folder != assembly.assemble(wheel)
    assert {item.name for item in folder.iterdir()} == {"python", "onnxruntime", "tensorrt"}
    assert (folder / "onnxruntime" / "libonnxruntime.so").read_bytes() == b"library"
    assert not any(item.is_symlink() for item in folder.rglob("*"))
    assert (folder / "python" / "libtriton_python.so").stat().st_size > 1000
    assert (assembly.whose(folder / "onnxruntime"), assembly.whose(folder / "tensorrt")) == ("native", "embedded")
    (natives / "onnxruntime" / "libtriton_onnxruntime.so").write_bytes(b"newer")
    assert assembly.assemble(wheel, natives) != folder
    for wrong in (tmp_path / "absent", natives / "other"):
        with pytest.raises(ServeError, match=r"libtriton_onnxruntime\.so"):
            assembly.assemble(wheel, wrong)


def test_paths_that_are_not_ascii_have_a_name_that_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plain, other = tmp_path / "plain", tmp_path / "größe"
    other.mkdir()
    assert assembly.ascii_path(plain) == plain
    link = assembly.ascii_path(other)
    assert str(link).isascii()
    assert link.resolve() == other
    assert assembly.ascii_path(other) == link
    monkeypatch.setenv("XDG_CACHE_HOME", str(other / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    assert str(assembly.ascii_path(other)).isascii()
    (folder,) = (tmp_path / "tmp").iterdir()
    folder.chmod(0o777)
    with pytest.raises(ServeError, match="another user"):
        assembly.ascii_path(other)


@has_wheel
def test_a_server_that_lost_its_executable_bit_is_copied(tmp_path: Path) -> None:
    server = tmp_path / "tritonserver"
    server.write_text("#!/bin/sh\n")
    assert not os.access(server, os.X_OK)
    usable = embedded._executable(server, tmp_path / "backends")
    assert usable != server
    assert os.access(usable, os.X_OK)
    assert usable.read_text() == server.read_text()


@has_wheel
def test_the_stub_s_environment_leads_to_this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/mine")
    monkeypatch.setattr(sys, "path", ["", "/some/folder", *sys.path])
    values = embedded.stub_environment(embedded.find_wheel())
    assert values["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    folders = values["LD_LIBRARY_PATH"].split(os.pathsep)
    assert folders[-1] == "/mine"
    assert any((Path(item) / embedded_libpython()).exists() for item in folders)
    searched = values["REPO_BUILDER_SYS_PATH"].split(os.pathsep)
    assert "/some/folder" in searched
    assert "" not in searched
    assert str(Path(serve.__file__).parents[2]) in searched


def embedded_libpython() -> str:
    return f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"


@pytest.mark.parametrize(("platform", "machine"), [("darwin", "arm64"), ("linux", "aarch64"), ("win32", "AMD64")])
def test_other_machines_get_a_clear_word(monkeypatch: pytest.MonkeyPatch, platform: str, machine: str) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr("platform.machine", lambda: machine)
    with pytest.raises(MissingDependency, match=f"Linux x86-64 only, and this is {platform} {machine}.*container"):
        embedded.find_wheel()


@pytest.mark.parametrize(
    ("system", "platform", "detach", "message"),
    [("nt", "win32", False, "this is win32.*WSL"), ("posix", "darwin", True, "on Linux only, and this is darwin")],
)
def test_what_does_not_work_on_other_systems_is_said(
    monkeypatch: pytest.MonkeyPatch, small: Path, system: str, platform: str, detach: bool, message: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(launch.os, "name", system)
        patch.setattr(sys, "platform", platform)
        with pytest.raises(ServeError) as caught:
            serve.start(small, detach=detach)
    assert re.search(message, str(caught.value))


def test_a_missing_wheel_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        MissingDependency, match=r"nvidia-pytriton is not installed.*pip install 'repo-builder\[embedded\]'"
    ):
        embedded.find_wheel()


@has_wheel
def test_a_python_without_a_stub_is_told_which_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    Version = namedtuple("Version", "major minor")
    monkeypatch.setattr(sys, "version_info", Version(3, 99))
    with pytest.raises(MissingDependency, match=r"no stub for Python 3\.99.*3\.10, 3\.11, 3\.12"):
        embedded.find_wheel()


def test_a_python_without_its_shared_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda _: False)
    with pytest.raises(ServeError, match=r"needs libpython3\.\d+\.so\.1\.0.*container"):
        embedded._libpython_folder()


def test_shared_memory_without_room_is_refused_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    Usage = namedtuple("Usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(64 << 10))
    with pytest.raises(ServeError, match=r"has 64 KiB free.*--shm-size"):
        embedded._check_shared_memory()
    monkeypatch.setattr(embedded, "_SHARED_MEMORY", Path("/no/shm"))
    with pytest.raises(ServeError, match=r"there is no /dev/shm"):
        embedded._check_shared_memory()


@pytest.mark.parametrize(
    ("arrange", "arguments", "message"),
    [
        (lambda _: None, {}, "there is no model repository.*repo-builder build"),
        (lambda folder: folder.mkdir(), {}, "is empty.*repo-builder build"),
        (lambda folder: (folder / "vgg").mkdir(parents=True), {"models": ["vg"]}, "no model 'vg'.*there are: vgg"),
    ],
)
def test_a_repository_that_cannot_be_served_is_refused(
    tmp_path: Path, arrange: Any, arguments: dict[str, Any], message: str
) -> None:
    arrange(tmp_path / "r")
    with pytest.raises(ServeError, match=message):
        serve.start(tmp_path / "r", runtime="embedded", **arguments)


def test_the_preflight_may_refuse(small: Path) -> None:
    def refuse(repository: Path) -> None:
        raise ServeError("a plan for another GPU", where=str(repository))

    with pytest.raises(ServeError, match="another GPU"):
        serve.start(small, runtime="embedded", preflight=refuse)
