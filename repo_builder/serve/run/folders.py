"""Where servers keep what is not the user's: backend directories, logs and state of detached servers."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/repo-builder``, by default ``~/.cache/repo-builder``; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "repo-builder"
