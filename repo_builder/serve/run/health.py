"""Whether a Triton is ready, and in one sentence why it is not."""

from __future__ import annotations

import http.client
import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from repo_builder.core.errors import ServeError

# What Triton logs when it cannot load: (pattern, what it names). Lines escape newlines as \n.
_FAILURES = (
    re.compile(r"failed to load '(?P<model>[^']+)' version \d+: (?P<reason>.*?)\"?$"),
    re.compile(r"Poll failed for model directory '(?P<model>[^']+)': (?P<reason>.*?)\"?$"),
    re.compile(r"failed to poll model '(?P<model>[^']+)': (?P<reason>.*?)\"?$"),
)
_FATAL = re.compile(r"^error: (?:creating server: )?(?P<reason>.+)$|(?P<port>failed to start \w+ service: .+?)\"?$")
_NO_MPS = re.compile(r"^mps: error: (?P<reason>.+)$")  # what serve/mps_leader.py says
# what says nothing in "Internal: ServeError: the model has no input 'x'"
_PREFIXES = re.compile(
    r"^(?:(?:Internal|Invalid argument|Not found|Unavailable|Unknown|Unsupported): )?(?:ServeError: )?"
)
_ADVICE = {
    r"shared memory|/dev/shm": "enlarge /dev/shm (docker run --shm-size=1g; mount -o remount,size=1g /dev/shm), or "
    "pass -- --backend-config=python,shm-default-byte-size=262144",
    r"already in use": "choose other ports with --http-port, --grpc-port and --metrics-port, or 0 for any free ones",
    r"no space left": "free some space on that file system",
}


def ready(url: str, models: Sequence[str] = (), *, timeout_s: float = 2.0) -> bool:
    """Whether the server at ``host:port`` is ready, and each of the models named."""
    paths = ["/v2/health/ready", *(f"/v2/models/{name}/ready" for name in models)]
    try:
        return all(ask(url, "GET", path, timeout_s=timeout_s)[0] == 200 for path in paths)
    except OSError:
        return False


class _Connection(http.client.HTTPConnection):
    """A connection for paths that are not ASCII: Triton takes names in UTF-8, and no percent signs for them."""

    def _encode_request(self, request: str) -> bytes:
        return request.encode()


def ask(
    url: str,
    method: str,
    path: str,
    headers: Mapping[str, str] | None = None,
    *,
    timeout_s: float,
) -> tuple[int, bytes]:
    """Send a request without content, or an empty object, to ``host:port``; return status and content of the answer.

    Raises:
        OSError: There is no answer.
    """
    host, _, port = url.rpartition(":")
    connection = _Connection(host.strip("[]"), int(port), timeout=timeout_s)
    try:
        connection.request(method, path, b"{}" if method == "POST" else None, dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.read()
    except http.client.HTTPException as error:
        raise ConnectionError(str(error) or type(error).__name__) from error
    finally:
        connection.close()


def failure(exit_code: int | None, lines: Sequence[str], *, log: Path | None = None) -> ServeError:
    """Return the error that says why a server ended while it started.

    Args:
        exit_code: Its exit code.
        lines: The last lines of its log.
        log: The file that holds all of it, if there is one.
    """
    problems = failed_models(lines)
    if problems:
        model, reason = next(iter(problems.items()))
        others = f" (nor did {', '.join(list(problems)[1:])})" if len(problems) > 1 else ""
        return ServeError(f"the model '{model}' did not load{others}: {reason}", hint=_advice(reason, log))
    mps = next((match["reason"] for line in lines if (match := _NO_MPS.search(line))), None)
    if mps:
        advice = "leave --mps out, or see whether nvidia-cuda-mps-control -f runs by itself"
        return ServeError(f"CUDA MPS did not start: {mps}", hint=_hint(advice, log))
    waiting = loading_models(lines)
    if waiting and (exit_code or 0) < 0:
        what = f"the model '{waiting[0]}'" if len(waiting) == 1 else f"one of the models {', '.join(waiting)}"
        return ServeError(f"Triton ended {how_ended(exit_code)} while it loaded {what}", hint=_advice("", log))
    fatal = [match["reason"] or match["port"] for line in lines if (match := _FATAL.search(line))]
    said = [line.strip() for line in lines if line.strip() and not line.startswith("mps: ")]
    reason = (fatal or said or ["it printed nothing"])[-1]
    return ServeError(f"Triton ended {how_ended(exit_code)} before it was ready: {reason}", hint=_advice(reason, log))


def overdue(timeout_s: float, url: str, lines: Sequence[str], *, log: Path | None = None) -> ServeError:
    """Return the error that says what was not ready in time; arguments as for ``failure``."""
    problems = failed_models(lines)
    waiting = loading_models(lines)
    if problems:
        what = "; ".join(f"'{model}' did not load: {reason}" for model, reason in problems.items())
    elif waiting:
        what = f"still loading {', '.join(waiting)}"
    else:
        what = f"{url} does not answer that it is ready"
    return ServeError(
        f"Triton was not ready after {timeout_s:g} s ({what})", hint=_hint("give it longer with --timeout", log)
    )


def failed_models(log: Sequence[str]) -> dict[str, str]:
    """Return the models that a log says cannot be loaded: name → reason in one line."""
    problems: dict[str, str] = {}
    for line in log:
        for pattern in _FAILURES:
            if match := pattern.search(line):
                problems.setdefault(match["model"], one_line(match["reason"]))
    return problems


def loading_models(log: Sequence[str]) -> list[str]:
    """Return the models that a log says are being loaded and not yet there."""
    begun = [match[1] for line in log if (match := re.search(r"loading: ([^:\"]+):\d+", line))]
    done = {match[1] for line in log if (match := re.search(r"successfully loaded '([^']+)'", line))}
    return [name for name in dict.fromkeys(begun) if name not in done]


def how_ended(exit_code: int | None) -> str:
    """Return ``with exit code 1`` or ``by SIGSEGV``."""
    if exit_code is None:
        return "with its keeper"
    try:
        return f"by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"with exit code {exit_code}"


def one_line(reason: str) -> str:
    """Keep what a Python-based backend raised, without the place in its source."""
    reason = reason.replace('\\"', '"').replace("\\'", "'")
    reason = re.split(r"(?:\\n|\n){2}At:", reason)[0]
    return _PREFIXES.sub("", re.sub(r"(\\n|\s)+", " ", reason)).strip()


def _advice(reason: str, log: Path | None) -> str:
    for words, advice in _ADVICE.items():
        if re.search(words, reason, re.IGNORECASE):
            return _hint(advice, log)
    return _hint("run repo-builder validate on the repository", log)


def _hint(advice: str, log: Path | None) -> str:
    return f"{advice}; its log is {log}" if log else advice
