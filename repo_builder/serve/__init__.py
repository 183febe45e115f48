"""Start Triton on a model repository: embedded (the tritonserver of nvidia-pytriton) or the official container.

    with serve.start(Path("model_repository"), runtime="embedded", http_port=0, grpc_port=0, metrics_port=0) as server:
        server.wait_ready(timeout_s=60)
        print(server.http_url, server.grpc_url)        # "127.0.0.1:40001", as tritonclient takes them

Leaving the block stops the server. The server also stops when this process dies, however it dies, unless it was started
with ``detach=True``; ``running``, ``restart`` and ``stop`` find such servers again.

Clients can neither load models nor administer shared memory unless they have the server's key: see ``core.servers``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repo_builder.core.servers import ServerNote
    from repo_builder.serve.run.detached import running, stop
    from repo_builder.serve.run.launch import Runtime, choose_runtime, restart, start
    from repo_builder.serve.run.server import Server

__all__ = ["Runtime", "Server", "ServerNote", "choose_runtime", "restart", "running", "start", "stop"]

# Imported when they are asked for: every process of a model imports this package for its backend, and launches nothing.
_PLACES = {
    "Runtime": "repo_builder.serve.run.launch",
    "Server": "repo_builder.serve.run.server",
    "ServerNote": "repo_builder.core.servers",
    "choose_runtime": "repo_builder.serve.run.launch",
    "restart": "repo_builder.serve.run.launch",
    "running": "repo_builder.serve.run.detached",
    "start": "repo_builder.serve.run.launch",
    "stop": "repo_builder.serve.run.detached",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever has that name
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PLACES[name]), name)
