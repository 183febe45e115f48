"""Files from the network: into a cache folder, checked against a digest, whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from repo_builder.core import progress
from repo_builder.core.errors import DataError
from repo_builder.core.files import output_errors, replacing_file

_CHUNK = 1 << 18
_TIMEOUT_S = 30


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/repo-builder``, by default ``~/.cache/repo-builder``; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "repo-builder"


def fetch(url: str, path: Path, *, digest: str, advice: str) -> None:
    """Download a file, with a progress bar, and put it in place once its digest is right.

    Args:
        url: An https address.
        path: Where the file goes; nothing is there until it is whole.
        digest: ``sha256:HEX`` or ``md5:HEX``.
        advice: What a user without network can do.

    Raises:
        DataError: The network or the server fails, or the content has another digest.
        OutputError: The file cannot be written.
    """
    algorithm, _, expected = digest.partition(":")
    found = hashlib.new(algorithm, usedforsecurity=False)
    with output_errors(path), replacing_file(path) as stream:
        for chunk in _chunks(url, advice):
            found.update(chunk)
            stream.write(chunk)
        if found.hexdigest() != expected:
            raise DataError(
                f"the download has the {algorithm} {found.hexdigest()}, not {expected}",
                where=url,
                hint=f"try again; if it stays so, the file has changed there: {advice}",
            )


def text(url: str, advice: str) -> str:
    """Return a short UTF-8 document.

    Raises:
        DataError: The network or the server fails.
    """
    return b"".join(_chunks(url, advice)).decode("utf-8", errors="replace")


def _chunks(url: str, advice: str) -> Iterator[bytes]:
    """Yield a document's bytes in pieces; every failure of the network is one DataError."""
    if not url.startswith("https://"):
        raise DataError(f"{url} is not an https address", hint=advice)
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:  # noqa: S310 - the scheme is checked above
            size = response.headers.get("Content-Length")
            count = -(-int(size) // _CHUNK) if size else None
            pieces = iter(lambda: response.read(_CHUNK), b"")
            yield from progress.bar(pieces, f"downloading {url.rsplit('/', 1)[-1]}", total=count)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(f"cannot be downloaded ({reason})", where=url, hint=advice) from error
