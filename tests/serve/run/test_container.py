"""The container: which release fits, and the command. No engine is needed; a stand-in records what it is asked."""

from __future__ import annotations

import csv
import json
import os
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from repo_builder.core import releases
from repo_builder.core.errors import MissingDependency, ServeError
from repo_builder.serve import choose_runtime, start
from repo_builder.serve.run import container, embedded
from repo_builder.serve.run.container import Asked, Demand
from repo_builder.serve.run.ports import Endpoints


def plan(repository: Path, model: str, tensorrt: str) -> None:
    version = repository / model / "1"
    version.mkdir(parents=True)
    (version / "model.plan").write_bytes(b"plan")
    (version / "manifest.json").write_text(json.dumps({"details": {"tensorrt_version": tensorrt}}))


def test_the_release_is_the_one_with_the_plans_tensorrt(tmp_path: Path) -> None:
    plan(tmp_path, "vgg", "8.5.3.1")
    release, why = container.choose(container.demand(tmp_path))
    assert (release.name, release.image) == ("23.03", "nvcr.io/nvidia/tritonserver:23.03-py3")
    assert "8.5.3" in why


def test_of_several_releases_with_that_tensorrt_the_newest_is_chosen() -> None:
    assert container.choose(Demand(gpu=True, tensorrt={"8.5.1.7": ["vgg"]}))[0].name == "22.12"


def test_without_a_plan_the_newest_release_is_chosen(small: Path) -> None:
    wanted = container.demand(small)
    assert (wanted.gpu, wanted.tensorrt) == (False, {})
    assert container.choose(wanted)[0] == releases.releases()[-1]


def test_an_onnx_file_asks_for_a_release_that_reads_it(tmp_path: Path) -> None:
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", tensors[:1], tensors[1:])
    (tmp_path / "m" / "1").mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    onnx.save(model, tmp_path / "m" / "1" / "model.onnx")
    wanted = container.demand(tmp_path)
    assert (wanted.opset, wanted.ir_version) == (22, 10)
    assert container.choose(wanted)[0] == releases.releases()[-1]
    plan(tmp_path, "old", "10.5.0.18")
    with pytest.raises(ServeError, match=r"no Triton release is known that has the TensorRT 10\.5\.0"):
        container.choose(container.demand(tmp_path))  # 24.10 has it, and reads opset 21 only
    with pytest.raises(ServeError, match="no Triton release is known that reads ONNX of opset 90"):
        container.choose(Demand(gpu=False, tensorrt={}, opset=90, ir_version=8))


def test_a_tensorrt_that_no_release_has_is_refused(tmp_path: Path) -> None:
    plan(tmp_path, "vgg", "7.0.0")
    with pytest.raises(ServeError, match=r"has the TensorRT 7\.0\.0.*--image"):
        container.choose(container.demand(tmp_path))


def test_plans_of_two_versions_are_refused_unless_one_is_chosen(tmp_path: Path) -> None:
    plan(tmp_path, "old", "8.5.3.1")
    plan(tmp_path, "new", "10.3.0.26")
    with pytest.raises(ServeError, match=r"10\.3\.0: new; 8\.5\.3: old"):
        container.choose(container.demand(tmp_path))
    assert container.choose(container.demand(tmp_path, ["new"]))[0].name == "24.08"


@pytest.mark.parametrize(
    ("text", "gpu"),
    [
        ("instance_group [ { kind: KIND_GPU } ]", True),
        ('backend: "tensorrt"', True),
        ("platform: 'tensorrt_plan'", True),
        ("instance_group [ { kind: KIND_CPU } ]", False),
        ("# once it was KIND_GPU", False),
        ('backend: "onnxruntime"', False),
    ],
)
def test_a_gpu_is_asked_for_where_a_model_wants_one(tmp_path: Path, text: str, gpu: bool) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.pbtxt").write_text(text)
    assert container.demand(tmp_path).gpu is gpu


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"details": 3}', '{"details": {"tensorrt_version": ""}}'])
def test_manifests_of_others_are_read_past(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "manifest.json").write_text(manifest)
    assert container.demand(tmp_path) == Demand(gpu=False, tensorrt={})


def test_the_command_in_full(tmp_path: Path) -> None:
    parts = container.command(
        "docker",
        "image:tag",
        Asked(
            repository=tmp_path,
            endpoints=Endpoints(http=9000, grpc=9001, metrics=9002),
            models=["a", "b"],
            options=["--log-verbose=1"],
        ),
        gpu=True,
        name="n",
    )
    assert [word for part in parts for word in part] == [
        *("docker", "run", "--rm", "--name", "n", "--gpus", "all", "--shm-size", "1g"),
        *("--publish", "127.0.0.1:9000:8000", "--publish", "127.0.0.1:9001:8001", "--publish", "127.0.0.1:9002:8002"),
        *("--mount", f"type=bind,source={tmp_path},target=/models,readonly"),
        *("image:tag", "tritonserver", "--model-repository=/models"),
        *("--model-control-mode=explicit", "--load-model=a", "--load-model=b", "--log-verbose=1"),
    ]


def test_an_ipv6_host_is_bracketed_and_podman_names_its_gpus_otherwise(tmp_path: Path) -> None:
    parts = container.command("podman", "i", Asked(repository=tmp_path, endpoints=Endpoints(host="::1")), gpu=True)
    words = [word for part in parts for word in part]
    assert "[::1]:8000:8000" in words
    assert words[words.index("--device") + 1] == "nvidia.com/gpu=all"
    assert "--gpus" not in words


@settings(max_examples=40, deadline=None)
@given(name=st.text(st.characters(blacklist_characters="/\0\r\n", codec="utf-8"), min_size=1, max_size=20))
def test_the_printed_command_is_the_command_whatever_the_folder_is_called(name: str) -> None:
    folder = Path("/") / f"x{name}"
    parts = container.command(
        "docker", "i", Asked(repository=folder, endpoints=Endpoints(), options=["--a b"]), gpu=False
    )
    words = [word for part in parts for word in part]
    script = f"set -- {container.shell_text(parts)}\nprintf '%s\\0' \"$@\""
    told = subprocess.run(["/bin/sh", "-c", script], capture_output=True, check=True).stdout
    assert os.fsdecode(told).split("\0")[:-1] == words
    mount = words[words.index("--mount") + 1]
    (fields,) = csv.reader([mount], strict=True)
    assert fields == ["type=bind", f"source={folder}", "target=/models", "readonly"]


def test_printing_needs_no_engine(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    words = shlex.split(
        container.printed(Asked(repository=small, endpoints=Endpoints(), image="mine:1")).replace("\\\n", "")
    )
    assert words[:3] == ["docker", "run", "--rm"]
    assert "mine:1" in words
    assert "--gpus" not in words


def test_without_an_engine_the_two_ways_are_named(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingDependency, match=r"neither docker nor podman is installed.*--runtime embedded"):
        start(small, runtime="container", http_port=0, grpc_port=0, metrics_port=0)
    assert choose_runtime("auto") == ("embedded", "neither docker nor podman is installed")
    monkeypatch.setattr(embedded, "unavailable", lambda: "this is a toaster")
    with pytest.raises(
        MissingDependency, match=r"container: neither.*; embedded: this is a toaster.*docker.*pip install"
    ):
        choose_runtime("auto")


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for docker: it notes its arguments, and ``run`` becomes a process that waits."""
    folder = tmp_path / "bin"
    folder.mkdir()
    noted = tmp_path / "noted"
    script = folder / "docker"
    script.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {noted}\n'
        'case "$1" in\n'
        "  version) [ -e $0.down ] && { echo 'ERROR: the daemon sleeps' >&2; exit 1; } ; exit 0 ;;\n"
        "  image) [ -e $0.pulled ] ;;\n"
        "  pull) [ ! -e $0.offline ] && touch $0.pulled ;;\n"
        "  run) echo serving; exec sleep 60 ;;\n"
        "esac\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return SimpleNamespace(script=script, noted=lambda: noted.read_text().splitlines())


def test_a_container_is_pulled_once_run_stopped_and_removed(
    small: Path, tmp_path: Path, engine: SimpleNamespace
) -> None:
    log = tmp_path / "log"
    with start(small, runtime="auto", image="mine:1", log=log, http_port=0, grpc_port=0, metrics_port=0) as server:
        assert server.runtime == "container"
        while "serving" not in server.tail():
            assert server.exit_code is None
    assert server.exit_code == -15
    calls = engine.noted()
    assert [call.split()[0] for call in calls] == ["version", "image", "pull", "run", "rm"]
    assert "mine:1 tritonserver --model-repository=/models" in calls[3]
    name = calls[3].split("--name ")[1].split()[0]
    assert calls[4] == f"rm --force {name}"
    start(small, runtime="container", image="mine:1", log=log, http_port=0, grpc_port=0, metrics_port=0).stop()
    assert sum(call.startswith("pull") for call in engine.noted()) == 1


def test_a_sleeping_daemon_and_a_failed_pull_are_told(small: Path, engine: SimpleNamespace) -> None:
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    Path(f"{engine.script}.offline").touch()
    with pytest.raises(ServeError, match=r"could not pull nvcr\.io/nvidia/tritonserver"):
        start(small, runtime="container", **ports)
    Path(f"{engine.script}.down").touch()
    with pytest.raises(ServeError, match=r"docker does not answer: the daemon sleeps.*--runtime embedded"):
        start(small, runtime="container", **ports)
    assert choose_runtime("auto")[0] == "embedded"
