"""A server in a folder, of a model and on an address that are not the usual ones, with a cache and a broken model."""

from __future__ import annotations

import json
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tritonclient import grpc

from repo_builder import serve
from repo_builder.core import servers
from repo_builder.serve.run import control, health

pytestmark = pytest.mark.server
BROKEN = """
class TritonPythonModel:
    def initialize(self, args):
        raise RuntimeError("no weights")
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, make: SimpleNamespace, any_ports: dict[str, int]) -> Any:
    """A repository in größe, with modell-ä and one that does not load, served on ::1 where there is one."""
    repository = tmp_path_factory.mktemp("odd") / "größe"
    make.linear(repository / "modell-ä" / "1" / "model.onnx")
    make.config(repository / "modell-ä", make.LINEAR + "response_cache { enable: true }")
    make.config(repository / "broken", make.LINEAR)
    config = repository / "broken" / "config.pbtxt"
    config.write_text(config.read_text().replace("onnxruntime", "python"))
    (repository / "broken" / "1").mkdir()
    (repository / "broken" / "1" / "model.py").write_text(BROKEN)
    options = ["--exit-on-error=false", "--strict-readiness=false"]
    host = "::1" if six() else "localhost"
    log = repository.parent / "log"
    with serve.start(repository, runtime="embedded", host=host, options=options, log=log, **any_ports) as server:
        server.wait_ready(300)
        yield server


def six() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def test_the_model_answers_and_equal_requests_come_from_the_cache(told: serve.Server) -> None:
    assert told.job.cached.startswith("response cache: 64 MiB, for modell-ä")
    item = grpc.InferInput("x", [1, 4], "FP32")
    item.set_data_from_numpy(np.ones((1, 4), np.float32))
    with grpc.InferenceServerClient(told.grpc_url) as client:
        answers = [client.infer("modell-ä", [item], client_timeout=120).as_numpy("y") for _ in range(5)]
    assert all((answer == answers[0]).all() for answer in answers)
    assert health.ready(told.http_url, ["modell-ä"])
    _, content = health.ask(told.http_url, "GET", "/v2/models/modell-ä/stats", timeout_s=10)
    assert json.loads(content)["model_stats"][0]["inference_stats"]["cache_hit"]["count"] >= 3


def test_the_metrics_are_there_too(told: serve.Server) -> None:
    with urllib.request.urlopen(told.metrics_url) as answer:  # noqa: S310
        assert b"nv_inference_count" in answer.read()


def test_a_server_in_the_foreground_is_found_with_its_key(told: serve.Server) -> None:
    note = servers.find(told.grpc_url)
    assert note is not None
    assert (note.detached, note.restricted_key) == (False, told.note.restricted_key)
    assert serve.running(note.repository) == []
    control.reload(told.http_url, note.http_headers(), "modell-ä")
    assert health.ready(told.http_url, ["modell-ä"])


def test_the_model_that_did_not_load_is_named(told: serve.Server) -> None:
    from repo_builder.cli import serve_detached

    assert serve_detached.unavailable(told.note) == {"broken": "RuntimeError: no weights"}


def test_a_python_model_whose_name_is_not_ascii_is_refused_at_once(tmp_path: Path, cli: Callable[..., Any]) -> None:
    (tmp_path / "r" / "modell-ä" / "1").mkdir(parents=True)
    (tmp_path / "r" / "modell-ä" / "config.pbtxt").write_text('backend: "python"')
    code, errors = cli(
        tmp_path / "r", "--runtime", "embedded", "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"
    ).end()
    assert code == 10
    assert "whose name is not ASCII" in errors
