import hashlib
import socket

import pytest

from repo_builder.core.errors import DataError, OutputError
from repo_builder.datasets import download

URL = "https://data.invalid/set.bin"
DATA = bytes(range(256)) * 4000


def fetch(path, digest=None, url=URL):
    digest = digest or f"sha256:{hashlib.sha256(DATA).hexdigest()}"
    download.fetch(url, path, digest=digest, advice="use --data-dir")


def test_the_cache_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert download.cache_folder() == tmp_path / "repo-builder"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert download.cache_folder() == tmp_path / ".cache" / "repo-builder"


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_file_is_there_when_its_digest_is_right(tmp_path, serve_url, algorithm):
    serve_url({URL: DATA})
    digest = hashlib.new(algorithm, DATA, usedforsecurity=False).hexdigest()
    fetch(tmp_path / "new" / "set.bin", f"{algorithm}:{digest}")
    assert (tmp_path / "new" / "set.bin").read_bytes() == DATA


def test_a_file_that_was_changed_is_refused(tmp_path, serve_url):
    serve_url({URL: DATA[:-1]})
    with pytest.raises(DataError, match="the download has the sha256"):
        fetch(tmp_path / "set.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_broken_connection_leaves_nothing(tmp_path, serve_url):
    serve_url({URL: DATA}, cut=True)
    with pytest.raises(DataError, match=r"cannot be downloaded.*use --data-dir"):
        fetch(tmp_path / "set.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_document(tmp_path, serve_url):
    serve_url({})
    with pytest.raises(DataError, match=r"cannot be downloaded .*Not Found"):
        fetch(tmp_path / "set.bin")


def test_an_unreachable_network_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        port = unused.getsockname()[1]
        with pytest.raises(DataError, match=r"cannot be downloaded .*refused.*use --data-dir"):
            fetch(tmp_path / "set.bin", url=f"https://127.0.0.1:{port}/set.bin")


@pytest.mark.parametrize("url", ["http://data.invalid/set.bin", "file:///etc/passwd"])
def test_only_https_is_followed(tmp_path, url):
    with pytest.raises(DataError, match="is not an https address"):
        fetch(tmp_path / "set.bin", url=url)


def test_a_cache_that_cannot_be_written(tmp_path, serve_url):
    serve_url({URL: DATA})
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"cannot be written"):
        fetch(tmp_path / "file" / "set.bin")
