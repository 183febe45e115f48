"""Triton's ``onnxruntime`` backend for the embedded server: runs in Triton's Python stub, one process an instance.

It reads the same config.pbtxt as the native backend and means the same by it. What it cannot do it refuses while the
model loads, never by doing something else: a model that asks for a GPU does not run on a CPU.

Inputs arrive as views of Triton's shared memory. A request that comes alone is run on that view; requests that the
dynamic batcher brings together are copied once, into a buffer that is kept.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import onnxruntime as ort
import triton_python_backend_utils as pb_utils

from repo_builder.core.errors import ServeError
from repo_builder.core.tensors import Array
from repo_builder.serve.backends.onnxruntime import settings, signature
from repo_builder.serve.backends.onnxruntime.feeds import Feed, Inputs, Staging, groups
from repo_builder.serve.backends.onnxruntime.states import States

Response = object  # pb_utils.InferenceResponse

ort.set_default_logger_severity(3)


class Request(Protocol):
    """What is used of ``pb_utils.InferenceRequest``."""

    def inputs(self) -> Sequence[Any]:
        """Return the input tensors."""

    def requested_output_names(self) -> Collection[str]:
        """Return the outputs that the client wants, in no order."""


class TritonPythonModel:
    """One instance of a model."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:  # noqa: ANN401 - a class of Triton's utils
        """Fill in what config.pbtxt leaves out where it names no inputs or no outputs."""
        config = auto_complete_model_config.as_dict()
        if not (config["input"] and config["output"]):
            path = model_file(Path(pb_utils.get_model_dir()), config)
            session = settings.open_session(path, config, [settings.CPU])
            inputs, outputs = session.get_inputs(), session.get_outputs()
            signature.complete(config, signature.declared(inputs), signature.declared(outputs))
        return auto_complete_model_config

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the model.

        Raises:
            ServeError: The file, the configuration and what is installed here do not fit together.
        """
        config = json.loads(args["model_config"])
        path = model_file(Path(args["model_repository"], args["model_version"]), config)
        wanted = settings.providers(config, kind=args["model_instance_kind"], device=args["model_instance_device_id"])
        session = settings.open_session(path, config, wanted)
        batched = config["max_batch_size"] > 0
        inputs, outputs = signature.declared(session.get_inputs()), signature.declared(session.get_outputs())
        optional = signature.declared(session.get_overridable_initializers())
        signature.check(signature.fed(config), inputs, optional=optional, batched=batched, side="input")
        signature.check(signature.given_back(config), outputs, batched=batched, side="output")
        self._session = session
        self._run_options = settings.run_options(config)
        self._inputs = Inputs(config, [*inputs, *optional])
        self._states = States(config, Path(args["model_repository"]))
        self._outputs = [item["name"] for item in config["output"]] + self._states.outputs
        known = {item.name: item for item in outputs}
        self._scalars = {
            item["name"] for item in config["output"] if not batched and signature.is_scalar(item, known[item["name"]])
        }
        self._batched = batched
        self._uniform = not any(item.get("optional") or -1 in signature.model_dims(item) for item in config["input"])
        self._staging = {item["name"]: Staging() for item in signature.fed(config)}

    def execute(self, requests: Sequence[Request]) -> list[Response]:
        """Answer requests, each with its outputs or with an error of its own."""
        responses: list[Response] = [None] * len(requests)
        feeds: dict[int, Feed] = {}
        for place, request in enumerate(requests):
            try:
                feeds[place] = self._feed(request)
            except Exception as error:  # noqa: PERF203 - each request has an error of its own, whatever it is
                responses[place] = failure(error)
        for places in self._batches(feeds):
            answers = self._answer([requests[place] for place in places], [feeds[place] for place in places])
            for place, answer in zip(places, answers, strict=True):
                responses[place] = answer
        return responses

    def finalize(self) -> None:
        """Free the session and the buffers."""
        del self._session
        self._staging.clear()

    def _feed(self, request: Request) -> Feed:
        feed = self._inputs.feed(request.inputs())
        return feed | self._states.before(request) if self._states else feed

    def _batches(self, feeds: Mapping[int, Feed]) -> list[list[int]]:
        """Return the keys of the feeds that are run together."""
        if not self._batched:
            return [[place] for place in feeds]
        return [list(feeds)] if self._uniform else groups(feeds)

    def _answer(self, requests: Sequence[Request], feeds: Sequence[Feed]) -> list[Response]:
        """Run requests of equal shapes as one batch; where that fails, run each alone to find the one that fails."""
        if len(requests) > 1:
            try:
                answers = self._together(requests, feeds)
            except Exception as error:  # ONNX Runtime's classes derive from Exception alone
                pb_utils.Logger.log_verbose(f"{len(requests)} requests failed together and are run one by one: {error}")
            else:
                if answers is not None:
                    return answers
        return [self._alone(request, feed) for request, feed in zip(requests, feeds, strict=True)]

    def _together(self, requests: Sequence[Request], feeds: Sequence[Feed]) -> list[Response] | None:
        """Run requests as one batch; return None where the model gives no row for each that it took."""
        sizes = [len(next(iter(feed.values()))) for feed in feeds]
        batch = {name: self._staging[name].gather([feed[name] for feed in feeds]) for name in feeds[0]}
        results = self._session.run(self._outputs, batch, self._run_options)
        if any(array.ndim == 0 or len(array) != sum(sizes) for array in results):
            return None
        answers, start = [], 0
        for request, size in zip(requests, sizes, strict=True):
            rows = [array[start : start + size] for array in results]
            answers.append(self._success(request, dict(zip(self._outputs, rows, strict=True))))
            start += size
        return answers

    def _alone(self, request: Request, feed: Feed) -> Response:
        try:
            names = list({*request.requested_output_names(), *self._states.outputs})
            results = self._session.run(names, feed, self._run_options)
            return self._success(request, dict(zip(names, results, strict=True)))
        except Exception as error:  # whatever it is, it concerns this request only
            return failure(error)

    def _success(self, request: Request, results: Mapping[str, Array]) -> Response:
        """Return the response that carries the outputs asked for, and keep the states of the request's sequence."""
        if self._states:
            self._states.after(request, results)
        names = list(request.requested_output_names())
        arrays = [results[name].reshape(1) if name in self._scalars else results[name] for name in names]
        return success(names, arrays)


def success(names: Sequence[str], arrays: Sequence[Array]) -> Response:
    """Return the response that carries these outputs."""
    return pb_utils.InferenceResponse(list(map(pb_utils.Tensor, names, arrays)))


def failure(error: Exception) -> Response:
    """Return the response that carries an error."""
    ours = isinstance(error, ValueError)  # what a request brings is looked at before ONNX Runtime sees it
    theirs = ours or type(error).__name__ == "InvalidArgument"
    code = pb_utils.TritonError.INVALID_ARG if theirs else pb_utils.TritonError.INTERNAL
    return pb_utils.InferenceResponse([], pb_utils.TritonError(str(error) if ours else f"ONNX Runtime: {error}", code))


def model_file(folder: Path, config: settings.Config) -> Path:
    """Return the ONNX file of a version folder.

    Raises:
        ServeError: There is none.
    """
    path = folder / (config.get("default_model_filename") or "model.onnx")
    path = path / "model.onnx" if path.is_dir() else path
    if not path.is_file():
        raise ServeError("there is no such file", where=str(path))
    return path
