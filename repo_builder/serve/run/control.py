"""Triton's interface for whoever administers a server: what is closed to clients unless they have the server's key.

The key is the server's own, kept in its note (``core.servers``). Closed are loading and unloading models, shared
memory, tracing and logging: to load a model is to run code, and the others read memory and write files of the server's.

https://github.com/triton-inference-server/server/blob/main/docs/customization_guide/inference_protocols.md, "Limit
Endpoint Access", has the options.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from repo_builder.core.foreign import parsed
from repo_builder.core.servers import KEY_NAME
from repo_builder.serve.run import health

CLOSED = ("shared-memory", "model-repository", "trace", "logging")
_OPTIONS = ("--grpc-restricted-protocol", "--http-restricted-api")
_UNLOADED_S = 3.0  # requests that the dead process took with it keep the old model from being gone for ever


def new_key() -> str:
    """Return a new key."""
    return secrets.token_hex(16)


def closing(key: str, options: Sequence[str]) -> list[str]:
    """Return the options of tritonserver that close its administration; what the user restricts is left to the user.

    Args:
        key: The key that opens it.
        options: The user's own options of tritonserver.
    """
    words = joined(options)
    closed = []
    for option in _OPTIONS:
        theirs = {
            name
            for word in words
            if word.startswith(f"{option}=")
            for name in word.partition("=")[2].split(":")[0].split(",")
        }
        names = [name for name in CLOSED if name not in theirs]
        closed += [f"{option}={','.join(names)}:{KEY_NAME}={key}"] if names else []
    return closed


def joined(options: Sequence[str]) -> list[str]:
    """Return options of tritonserver as ``--name=value`` or ``--flag``, however they were written."""
    words: list[str] = []
    for option in options:
        if words and not option.startswith("-") and "=" not in words[-1]:
            words[-1] += f"={option}"
        else:
            words.append(option)
    return words


def value_of(options: Sequence[str], name: str) -> str | None:
    """Return the last value of an option of tritonserver, None where it is not there."""
    found = [word.partition("=")[2] for word in joined(options) if word.partition("=")[0] == name]
    return found[-1] if found else None


class Refused(Exception):  # noqa: N818 - what the server says, not a fault of ours
    """The server answered with an error."""


def index(url: str, headers: Mapping[str, str], *, timeout_s: float = 5.0) -> list[dict[str, Any]]:
    """Return what a server knows of the models in its repository: ``name``, ``version``, ``state`` and ``reason`` each.

    Raises:
        OSError: It does not answer.
        Refused: It answers with an error.
    """
    found: list[dict[str, Any]] = parsed(json.loads, _post(url, "/v2/repository/index", headers, timeout_s))
    return found


def reload(url: str, headers: Mapping[str, str], model: str, *, timeout_s: float = 120.0) -> None:
    """Unload a model and load it again, and with it what is built upon it.

    Raises:
        OSError: The server does not answer.
        Refused: It refuses, or cannot load the model.
    """
    before = _ready(url, headers)
    _post(url, f"/v2/repository/models/{model}/unload", headers, timeout_s)
    deadline = time.monotonic() + _UNLOADED_S
    while model in _busy(url, headers) and time.monotonic() < deadline:
        time.sleep(0.05)
    for name in (model, *sorted(before - {model})):
        if name == model or name not in _ready(url, headers):
            _post(url, f"/v2/repository/models/{name}/load", headers, timeout_s)


def unavailable(url: str, headers: Mapping[str, str]) -> dict[str, str]:
    """Return the models of a server's repository that were to be loaded and are not: name → reason."""
    found: dict[str, str] = {}
    for item in index(url, headers):
        if item.get("state") != "READY" and item.get("reason") not in (None, "", "unloaded"):
            found.setdefault(item["name"], str(item["reason"]))
    return {name: health.one_line(reason) for name, reason in found.items() if name not in _ready(url, headers)}


def _ready(url: str, headers: Mapping[str, str]) -> set[str]:
    return {item["name"] for item in index(url, headers) if item.get("state") == "READY"}


def _busy(url: str, headers: Mapping[str, str]) -> set[str]:
    return {item["name"] for item in index(url, headers) if item.get("state") in ("READY", "LOADING", "UNLOADING")}


def _post(url: str, path: str, headers: Mapping[str, str], timeout_s: float) -> bytes:
    status, content = health.ask(url, "POST", path, headers, timeout_s=timeout_s)
    if status != 200:
        raise Refused(content.decode(errors="replace")[:500])
    return content
