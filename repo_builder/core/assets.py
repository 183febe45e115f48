"""The only finder of what lies beside the code: templates/, deploy/, shipped weights and data.

In a checkout templates/ and deploy/ are at the root; in an installed wheel they are under ``repo_builder/_assets``.
"""

from __future__ import annotations

from pathlib import Path

from repo_builder.core.errors import RepoBuilderError

_PACKAGE = Path(__file__).resolve().parents[1]


def template_folder() -> Path:
    """Return the folder of the Jinja templates."""
    return _folder("templates")


def deploy_folder() -> Path:
    """Return the folder of deploy/."""
    return _folder("deploy")


def packaged(kind: str, name: str) -> Path:
    """Return a file that ships in the package.

    Args:
        kind: ``recipes``, ``weights`` or ``data``.
        name: The file's name.

    Raises:
        RepoBuilderError: There is no such file.
    """
    path = _PACKAGE / kind / name
    if not path.is_file():
        raise RepoBuilderError(f"the package holds no {kind} file '{name}'", hint="reinstall repo-builder")
    return path


def _folder(name: str) -> Path:
    for candidate in (_PACKAGE / "_assets" / name, _PACKAGE.parent / name):
        if candidate.is_dir():
            return candidate
    raise RepoBuilderError(f"the folder {name}/ is missing from this installation", hint="reinstall repo-builder")
