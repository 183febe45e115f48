"""What Triton's log says, in one sentence. The lines are tritonserver 2.51's and, without quotes, older releases'."""

from __future__ import annotations

from pathlib import Path

import pytest

from repo_builder.serve.run import health

LOADING = 'I1125 02:32:52.749970 10973 model_lifecycle.cc:472] "loading: tiny:1"'
LOADED = "I1125 02:32:54.110047 10973 model_lifecycle.cc:839] \"successfully loaded 'tiny'\""
PYTHON = (
    "E1125 02:29:18.299225 7931 model_lifecycle.cc:642] \"failed to load 'tiny' version 1: Internal: ServeError: "
    '/r/tiny/1/model.onnx: there is no such file\\n\\nAt:\\n  /tmp/d/be/onnxruntime/model.py(9): initialize\\n"'
)
POLL = (
    "E1125 02:29:19.789740 7990 model_repository_manager.cc:1460] \"Poll failed for model directory 'worse': failed to "
    'read text proto from /r/worse/config.pbtxt"'
)
UNKNOWN = (
    "E1125 02:29:25.983016 8099 model_repository_manager.cc:1415] \"failed to poll model 'nix': model not found in any "
    'model repository."'
)
OLD = "E0101 10:00:00.000000 1 model_lifecycle.cc:626] failed to load 'vgg' version 2: Invalid argument: no plan"
FATAL = "error: creating server: Internal - failed to load all models"
PORT = (
    'E1125 02:34:08.980338 11393 main.cc:245] "failed to start GRPC service: Unavailable - Socket '
    "'127.0.0.1:18001' already in use \""
)


@pytest.mark.parametrize(
    ("line", "model", "reason"),
    [
        (PYTHON, "tiny", "/r/tiny/1/model.onnx: there is no such file"),
        (POLL, "worse", "failed to read text proto from /r/worse/config.pbtxt"),
        (UNKNOWN, "nix", "model not found in any model repository."),
        (OLD, "vgg", "no plan"),
    ],
)
def test_a_model_that_failed_is_read_from_the_log(line: str, model: str, reason: str) -> None:
    assert health.failed_models([LOADING, line, FATAL]) == {model: reason}
    error = health.failure(1, [LOADING, line, FATAL])
    assert error.message == f"the model '{model}' did not load: {reason}"


def test_several_that_failed_are_all_named() -> None:
    error = health.failure(1, [PYTHON, POLL, FATAL], log=Path("/the/log"))
    assert "'tiny' did not load (nor did worse): /r/tiny" in error.message
    assert error.hint is not None
    assert "repo-builder validate" in error.hint
    assert "/the/log" in error.hint


@pytest.mark.parametrize(
    ("lines", "message", "hint"),
    [
        ([LOADED, PORT], "already in use", "--grpc-port"),
        ([LOADED, FATAL], "exit code 1 before it was ready: Internal - failed to load all models", "validate"),
        (["tritonserver: error while loading shared libraries: libb64.so", ""], "libb64.so", "validate"),
        ([], "it printed nothing", "validate"),
        (["unrecognized option", "mps: control.log: an error"], "unrecognized option", "validate"),
        (["mps: error: the daemon ended"], "CUDA MPS did not start: the daemon ended", "leave --mps out"),
        ([PYTHON.replace("there is no such file", "unable to initialize shared memory")], "shared memory", "shm-size"),
    ],
)
def test_other_ends_are_told_by_their_last_words(lines: list[str], message: str, hint: str) -> None:
    error = health.failure(1, lines)
    assert message in error.message
    assert error.hint is not None
    assert hint in error.hint


def test_a_signal_is_named() -> None:
    assert health.how_ended(-11) == "by SIGSEGV"
    assert health.how_ended(0) == "with exit code 0"
    assert health.how_ended(3) == "with exit code 3"


def test_what_is_overdue_is_what_is_still_loading() -> None:
    assert health.loading_models([LOADING, LOADED, LOADING.replace("tiny", "big")]) == ["big"]
    assert "(still loading tiny)" in health.overdue(3, "h:1", [LOADING]).message
    assert "after 3 s (h:1 does not answer that it is ready)" in health.overdue(3, "h:1", [LOADING, LOADED]).message
    assert "'worse' did not load" in health.overdue(3, "h:1", [LOADING, POLL]).message


def test_where_nobody_listens_nothing_is_ready() -> None:
    assert not health.ready("127.0.0.1:1")
