"""Start Triton on a model repository: embedded (the tritonserver of nvidia-pytriton) or the official container.

    with serve.start(Path("model_repository"), runtime="embedded", http_port=0, grpc_port=0, metrics_port=0) as server:
        server.wait_ready(timeout_s=60)
        print(server.http_url, server.grpc_url)        # "127.0.0.1:40001", as tritonclient takes them

Leaving the block stops the server. The server also stops when this process dies, however it dies, unless it was started
with ``detach=True``; ``running`` and ``stop`` find such servers again.
"""

from __future__ import annotations

from repo_builder.serve.run.detached import Detached, running, stop
from repo_builder.serve.run.launch import Runtime, choose_runtime, start
from repo_builder.serve.run.server import Server

__all__ = ["Detached", "Runtime", "Server", "choose_runtime", "running", "start", "stop"]
