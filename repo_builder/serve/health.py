"""Whether a Triton is ready, and in one sentence why it is not."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Sequence

from repo_builder.errors import ServeError

# What Triton logs when it cannot load: (pattern, what it names). Lines escape newlines as \n.
_FAILURES = (
    re.compile(r"failed to load '(?P<model>[^']+)' version \d+: (?P<reason>.*?)\"?$"),
    re.compile(r"Poll failed for model directory '(?P<model>[^']+)': (?P<reason>.*?)\"?$"),
    re.compile(r"failed to poll model '(?P<model>[^']+)': (?P<reason>.*?)\"?$"),
)
_FATAL = re.compile(r"^error: (?P<reason>.+)$|failed to start \w+ service: (?P<service>.+?)\"?$")


def ready(url: str, models: Sequence[str] = (), *, timeout_s: float = 2.0) -> bool:
    """Whether the server at ``host:port`` is ready, and each of the models named."""
    paths = ["/v2/health/ready", *(f"/v2/models/{name}/ready" for name in models)]
    try:
        return all(_get(url, path, timeout_s)[0] == 200 for path in paths)
    except (OSError, http.client.HTTPException):
        return False


def failure(exit_code: int | None, log: Sequence[str]) -> ServeError:
    """Return the error that says why a server ended while it started."""
    problems = failed_models(log)
    if problems:
        model, reason = next(iter(problems.items()))
        others = f" (and {len(problems) - 1} more: {', '.join(list(problems)[1:])})" if len(problems) > 1 else ""
        return ServeError(f"the model '{model}' failed to load{others}: {reason}", hint=_advice(reason))
    fatal = [match["reason"] or match["service"] for line in log if (match := _FATAL.search(line))]
    reason = fatal[-1] if fatal else (log[-1].strip() if log else "it printed nothing")
    return ServeError(f"Triton ended with exit code {exit_code} before it was ready: {reason}", hint=_advice(reason))


def overdue(timeout_s: float, url: str, models: Sequence[str], log: Sequence[str]) -> ServeError:
    """Return the error that says what was not ready in time."""
    waiting = [name for name in loading_models(log) if not models or name in models]
    what = f"still loading {', '.join(waiting)}" if waiting else f"{url} does not answer that it is ready"
    return ServeError(
        f"Triton was not ready after {timeout_s:g} s ({what})", hint="give it longer with --timeout, or read its log"
    )


def failed_models(log: Sequence[str]) -> dict[str, str]:
    """Return the models that a log says cannot be loaded: name → reason in one line."""
    problems: dict[str, str] = {}
    for line in log:
        for pattern in _FAILURES:
            if match := pattern.search(line):
                problems.setdefault(match["model"], _one_line(match["reason"]))
    return problems


def loading_models(log: Sequence[str]) -> list[str]:
    """Return the models that a log says are being loaded and not yet there."""
    begun = [match[1] for line in log if (match := re.search(r"loading: ([^:\"]+):\d+", line))]
    done = {match[1] for line in log if (match := re.search(r"successfully loaded '([^']+)'", line))}
    return [name for name in dict.fromkeys(begun) if name not in done]


def _one_line(reason: str) -> str:
    """Keep what a Python-based backend raised, without the place in its source."""
    reason = reason.replace('\\"', '"').replace("\\'", "'")
    reason = re.split(r"\\n\\nAt:", reason)[0]
    return re.sub(r"(\\n|\s)+", " ", reason).strip()


def _advice(reason: str) -> str:
    lowered = reason.lower()
    if "shared memory" in lowered or "shm" in lowered:
        return "/dev/shm is too small: pass -- --backend-config=python,shm-default-byte-size=1048576, or enlarge it"
    if "address already in use" in lowered or "unavailable - socket" in lowered:
        return "choose other ports with --http-port, --grpc-port and --metrics-port, or 0 for free ones"
    if "not found in any model repository" in lowered:
        return "check the name given with --model"
    return "run repo-builder validate on the repository"


def _get(url: str, path: str, timeout_s: float) -> tuple[int, bytes]:
    host, _, port = url.rpartition(":")
    connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=timeout_s)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def metadata(url: str, *, timeout_s: float = 2.0) -> dict[str, str]:
    """Return the server's name and version as ``/v2`` tells them."""
    status, body = _get(url, "/v2", timeout_s)
    value: dict[str, str] = json.loads(body) if status == 200 else {}
    return value
