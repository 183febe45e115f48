"""A build says which servers still serve what lay there before."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from repo_builder.core import servers
from repo_builder.core.servers import Process, ServerNote
from repo_builder.flows.build import placing


@pytest.mark.parametrize(("after", "named"), [(-1e6, True), (1e6, False)])
def test_servers_of_an_older_model_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], after: float, named: bool
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "repository" / "vgg").mkdir(parents=True)
    note = ServerNote(
        server=Process.of(os.getpid()),
        keeper=Process.of(os.getpid()),
        detached=True,
        since=0,
        loaded=time.time() + after,
        runtime="embedded",
        repository=tmp_path / "repository",
    )
    servers.write(servers.folder_of(note.repository) / servers.DETACHED, note)
    placing.name_servers(tmp_path / "repository" / "vgg")
    told = " ".join(capsys.readouterr().err.split())
    assert ("the server on 127.0.0.1:8000 serves the 'vgg' that lay there before" in told) is named
    assert ("serve --restart" in told) is named
