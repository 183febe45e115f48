from __future__ import annotations

import dataclasses
import fcntl
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from repo_builder.core import artifacts, files
from repo_builder.core.artifacts import EngineArtifact
from repo_builder.core.errors import OutputError, RepositoryError
from repo_builder.repository import config, layout, validate
from repo_builder.repository.spec import versions

MakeEngine = Callable[..., EngineArtifact]


def _tree(folder: Path) -> dict[str, bytes]:
    found = sorted(item for item in folder.rglob("*") if item.is_file())
    return {item.relative_to(folder).as_posix(): item.read_bytes() for item in found}


def test_a_placed_engine_is_a_whole_model_folder(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine()
    (engine.path / "outputs.npz").write_bytes(b"recorded")
    engine = dataclasses.replace(engine, files=artifacts.hashes(engine.path))
    folder = layout.place(engine, tmp_path / "deep" / "repository")
    assert sorted(_tree(folder)) == ["1/manifest.json", "1/model.onnx", "config.pbtxt", "labels.txt"]
    assert (folder / "labels.txt").read_text() == "a\nb\nc\nd\n"
    assert (folder / "config.pbtxt").read_text() == config.render(config.from_engine(engine))
    there = artifacts.read(EngineArtifact, folder / "1")
    assert (there.recipe, there.files) == (engine.recipe, {"model.onnx": engine.files["model.onnx"]})
    assert validate.validate(folder.parent) == ()
    assert [item.name for item in (tmp_path / "deep").iterdir()] == ["repository"]  # nothing is left of staging


def test_replace_leaves_the_new_version_alone(make_engine: MakeEngine, tmp_path: Path) -> None:
    for content in ("one", "two"):
        layout.place(make_engine(content=content), tmp_path / "r", version="next", keep_versions=2)
    folder = layout.place(make_engine(content="three"), tmp_path / "r")
    assert versions(folder) == [1]
    assert artifacts.read(EngineArtifact, folder / "1").key == "three"


def test_next_leaves_older_versions_as_they_are(make_engine: MakeEngine, tmp_path: Path) -> None:
    folder = layout.place(make_engine(content="one"), tmp_path / "r")
    (folder / "1" / "model.onnx.data").write_bytes(b"by hand")
    (folder / "warmup").mkdir()
    (folder / "warmup" / "image").write_bytes(b"raw")
    before = _tree(folder / "1")
    layout.place(make_engine(content="two"), tmp_path / "r", version="next", keep_versions=2)
    assert versions(folder) == [1, 2]
    assert _tree(folder / "1") == before
    assert (folder / "warmup" / "image").read_bytes() == b"raw"
    message = config.parse_text((folder / "config.pbtxt").read_text(), "here")
    assert message.version_policy.latest.num_versions == 2
    layout.place(make_engine(content="three"), tmp_path / "r", version="next", keep_versions=2)
    assert versions(folder) == [2, 3]


def test_a_number_adds_or_replaces_that_version(make_engine: MakeEngine, tmp_path: Path) -> None:
    place = layout.place
    folder = place(make_engine(content="seven"), tmp_path / "r", version=7, keep_versions=2)
    place(make_engine(content="five"), tmp_path / "r", version=5, keep_versions=2)
    place(make_engine(content="other"), tmp_path / "r", version=7, keep_versions=2)
    assert {number: artifacts.read(EngineArtifact, folder / str(number)).key for number in versions(folder)} == {
        5: "five",
        7: "other",
    }
    with pytest.raises(RepositoryError, match=r"version 3 is older than the 2 that are kept \(5, 7\)"):
        place(make_engine(content="three"), tmp_path / "r", version=3, keep_versions=2)
    with pytest.raises(RepositoryError, match="not a number from 1 on"):
        place(make_engine(content="three"), tmp_path / "r", version=0)
    assert versions(folder) == [5, 7]


_steps = st.lists(st.tuples(st.sampled_from(["next", "replace", 1, 2, 3, 9]), st.integers(1, 4)), max_size=7)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_steps)
def test_any_sequence_of_versions_keeps_what_it_should(
    make_engine: MakeEngine, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str | int, int]]
) -> None:
    repository = tmp_path_factory.mktemp("r") / "repository"
    expected: dict[int, str] = {}
    for place, (version, keep) in enumerate(steps):
        engine = make_engine(content=f"c{place}")
        number = version if isinstance(version, int) else max(expected, default=0) + 1
        kept = sorted({*expected, number})[-keep:]
        if version == "replace":
            expected = {1: engine.key}
        elif number in kept:
            expected = {**{item: expected[item] for item in kept if item != number}, number: engine.key}
        else:
            with pytest.raises(RepositoryError, match="older than"):
                layout.place(engine, repository, version=version, keep_versions=keep)
            continue
        layout.place(engine, repository, version=version, keep_versions=keep)
        folder = repository / "toy"
        there = {item: artifacts.read(EngineArtifact, folder / str(item)).key for item in versions(folder)}
        assert there == expected
        assert validate.validate(repository) == ()
        for number in there:
            read = artifacts.read(EngineArtifact, folder / str(number))
            assert files.sha256_of(folder / str(number) / "model.onnx") == read.files["model.onnx"]


def test_a_model_that_was_not_written_here_is_not_replaced(make_engine: MakeEngine, tmp_path: Path) -> None:
    (tmp_path / "r" / "toy" / "1").mkdir(parents=True)
    (tmp_path / "r" / "toy" / "config.pbtxt").write_text("# by hand")
    for version in ("replace", "next"):
        with pytest.raises(RepositoryError, match="not written by repo-builder"):
            layout.place(make_engine(), tmp_path / "r", version=version)
    assert (tmp_path / "r" / "toy" / "config.pbtxt").read_text() == "# by hand"
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "toy").symlink_to(tmp_path / "r" / "toy")
    with pytest.raises(RepositoryError, match="not a folder"):
        layout.place(make_engine(), tmp_path / "s")


_OTHER_INPUT = {
    "source": "jsc",
    "inputs": [{"name": "z", "dtype": "fp32", "shape": [4]}],
    "outputs": [{"name": "y", "dtype": "fp32", "shape": [4]}],
}


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("inputs", {"model": _OTHER_INPUT}),
        ("backend", {"target": "tensorrt"}),
        ("max_batch_size", {"details": {"max_batch_size": 2}}),
    ],
)
def test_a_version_that_one_config_cannot_serve_beside_the_old_is_refused(
    make_engine: MakeEngine, tmp_path: Path, what: str, change: dict[str, object]
) -> None:
    folder = layout.place(make_engine(content="one"), tmp_path / "r")
    before = _tree(folder)
    with pytest.raises(RepositoryError, match=f"has other {what}"):
        layout.place(make_engine(content="two", **change), tmp_path / "r", version="next", keep_versions=2)
    assert _tree(folder) == before
    layout.place(make_engine(content="two", **change), tmp_path / "r", version="next", keep_versions=1)
    assert versions(folder) == [2]


def test_a_missing_model_file_leaves_the_old_folder(make_engine: MakeEngine, tmp_path: Path) -> None:
    folder = layout.place(make_engine(content="one"), tmp_path / "r")
    before, broken = _tree(folder), make_engine(content="two")
    broken.model.unlink()
    with pytest.raises(RepositoryError, match="is missing"):
        layout.place(broken, tmp_path / "r")
    assert _tree(folder) == before
    assert sorted(item.name for item in tmp_path.iterdir()) == ["build", "r"]


def test_an_unwritable_repository_is_one_sentence(make_engine: MakeEngine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        layout.place(make_engine(), tmp_path / "file" / "r")


# --- staging, locks and kills ---------------------------------------------------------------------------------------


def test_trees_are_staged_where_triton_does_not_look(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    write = layout.write_version

    def spy(engine: EngineArtifact, folder: Path) -> None:
        seen.append(sorted(item.name for item in (tmp_path / "r").iterdir()))
        assert folder.stat().st_dev == tmp_path.stat().st_dev if folder.exists() else True
        write(engine, folder)

    monkeypatch.setattr(layout, "write_version", spy)
    for _ in range(2):
        layout.place(make_engine(), tmp_path / "r")
    assert seen == [[], ["toy"]]


def test_a_mount_point_stages_within_itself(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # the parent is read-only
    layout.place(make_engine(), tmp_path / "r")
    assert [item.name for item in (tmp_path / "r").iterdir()] == ["toy"]
    assert layout._staging(tmp_path / "r") == tmp_path / "r" / ".r.staging"


def test_what_a_killed_writer_left_is_removed(make_engine: MakeEngine, tmp_path: Path) -> None:
    stale = tmp_path / ".r.staging" / ".toy.abc.new"
    stale.mkdir(parents=True)
    layout.place(make_engine(), tmp_path / "r")
    assert not stale.parent.exists()


def test_what_a_killed_writer_left_is_swept_where_nothing_is_placed_unless_a_writer_lives(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    repository, stale = tmp_path / "r", tmp_path / ".r.staging" / ".toy.abc.new"
    layout.sweep(repository)  # there is no repository yet
    repository.mkdir()
    stale.mkdir(parents=True)
    handle = os.open(repository, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    layout.sweep(repository)
    assert stale.exists()
    os.close(handle)
    layout.sweep(repository)
    assert not stale.parent.exists()


def test_two_writers_wait_for_each_other(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "r"
    repository.mkdir()
    handle = os.open(repository, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    monkeypatch.setattr(layout, "PATIENCE_S", 0.1)
    with pytest.raises(OutputError, match="another repo-builder has been writing there"):
        layout.place(make_engine(), repository)
    monkeypatch.setattr(layout, "PATIENCE_S", 60.0)
    waiting = threading.Thread(target=layout.place, args=(make_engine(), repository))
    waiting.start()
    assert not (repository / "toy").exists()
    os.close(handle)
    waiting.join(timeout=300)
    assert (repository / "toy" / "config.pbtxt").exists()


_WRITER = """
    import sys
    from pathlib import Path
    from repo_builder.core.artifacts import EngineArtifact, read
    from repo_builder.repository import layout

    engines = [read(EngineArtifact, Path(item)) for item in sys.argv[2:]]
    layout.place(engines[0], Path(sys.argv[1]))  # the first one imports a lot
    print("ready", flush=True)
    while True:
        for engine in engines:
            layout.place(engine, Path(sys.argv[1]))
"""


def test_a_kill_at_any_moment_leaves_a_whole_repository(make_engine: MakeEngine, tmp_path: Path) -> None:
    engines = [make_engine(content="one"), make_engine(content="two")]
    repository = tmp_path / "r"
    layout.place(engines[0], repository)
    chance = random.Random(0)
    command = [sys.executable, "-c", textwrap.dedent(_WRITER), str(repository), *(str(item.path) for item in engines)]
    for _ in range(6):
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(chance.uniform(0.0, 0.05))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        assert [item.name for item in repository.iterdir()] == ["toy"]
        assert validate.validate(repository) == ()  # compares the model file with its manifest, labels, versions
    layout.place(engines[1], repository)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["build", "r"]


def test_what_triton_would_not_load_is_not_placed(make_engine: Callable[..., EngineArtifact], tmp_path: Path) -> None:
    sound = layout.place(make_engine(content="sound"), tmp_path / "r")
    before = (sound / "1" / "model.onnx").read_bytes()
    broken = make_engine(content="broken")
    model = onnx.load(broken.model)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, broken.model)
    broken = dataclasses.replace(broken, files=artifacts.hashes(broken.path))
    artifacts.write_manifest(broken)
    with pytest.raises(
        RepositoryError, match=r"is not placed, since Triton would not load it: ONNX Runtime .*NoSuchOp"
    ):
        layout.place(broken, tmp_path / "r")
    assert (sound / "1" / "model.onnx").read_bytes() == before
    assert not list(tmp_path.glob(".*staging*/*"))


@pytest.mark.parametrize("name", ["a\nb", "a\r"])
def test_a_class_with_a_line_break_is_refused(
    make_engine: Callable[..., EngineArtifact], tmp_path: Path, name: str
) -> None:
    engine = dataclasses.replace(make_engine(), classes=("x", name, "y", "z"))
    with pytest.raises(RepositoryError, match=r"the name of class 1 .* has a line break"):
        layout.place(engine, tmp_path / "r")
    assert not (tmp_path / "r" / "toy").exists()
