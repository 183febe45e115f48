"""Version folders, the files in them, and what else lies about in a model's folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from repo_builder.repository.checks import python_model
from repo_builder.repository.checks.findings import Finding, error, info, warning
from repo_builder.repository.checks.folder import MODEL_FILES, ModelFolder
from repo_builder.repository.checks.target import Target
from repo_builder.repository.spec import CONFIG

_OTHER_FOLDERS = ("warmup", "initial_state", "configs")  # Triton's own names beside version folders


def check(folder: ModelFolder, target: Target) -> Iterator[Finding]:
    """Check versions against the version policy, model files, and stray files."""
    yield from _strays(folder)
    if not folder.versions:
        yield error(
            folder.name,
            "has no version folder",
            f"put the model into {folder.name}/1/" if not folder.ensemble else f"make an empty folder {folder.name}/1",
        )
        return
    policy = folder.config.version_policy
    missing = [str(number) for number in policy.specific.versions if number not in folder.versions]
    if missing:
        report = warning if folder.served else error  # Triton serves those that are there
        yield report(
            folder.config_path,
            f"version_policy asks for version {', '.join(missing)}, and there is only {_listed(folder.versions)}",
        )
    elif not folder.served:
        yield error(folder.config_path, f"version_policy serves none of the versions {_listed(folder.versions)}")
    for version in folder.versions:
        if not folder.ensemble and folder.filename:
            yield from _model_file(folder, version, target)


def _model_file(folder: ModelFolder, version: int, target: Target) -> Iterator[Finding]:
    file, where = folder.file(version), f"{folder.name}/{version}/{folder.filename}"
    if not file.exists():
        report = error if version in folder.served else warning
        suffix = Path(folder.filename).suffix
        others = sorted(item.name for item in file.parent.iterdir() if item.suffix == suffix)
        hint = f'rename {others[0]}, or add default_model_filename: "{others[0]}"' if others else ""
        yield report(where, "is missing", hint)
    elif file.is_file() and not file.stat().st_size:
        yield error(where, "is empty", "copy or build it again")
    elif folder.config.backend == "python":
        yield from python_model.check(folder, version, target)


def _strays(folder: ModelFolder) -> Iterator[Finding]:
    labels = {item.label_filename for item in folder.config.output}
    for item in sorted(folder.path.iterdir()):
        where = f"{folder.name}/{item.name}"
        if item.is_symlink() and not item.exists():
            yield error(where, "is a link to nothing, which stops tritonserver", "remove it")
        elif not item.is_dir():
            if item.name == CONFIG or item.name in labels or item.name.startswith("."):
                continue
            if item.name in MODEL_FILES.values():
                yield warning(where, "is not in a version folder", f"move it to {folder.name}/1/{item.name}")
            elif item.suffix == ".pbtxt":
                yield warning(where, "is not read", f"Triton reads {CONFIG} only")
            else:
                yield info(where, "is not used by Triton")
        elif item.name.lstrip("-")[:1].isdigit() and not (item.name.isdigit() and item.name[0] != "0"):
            yield from _odd_version(where, item.name)
        elif item.name not in _OTHER_FOLDERS and not item.name.isdigit() and not item.name.startswith("."):
            yield info(where, "is no version folder: Triton does not look into it")


def _odd_version(where: str, name: str) -> Iterator[Finding]:
    """Judge a folder that starts like a number: some of them Triton takes for a version that is not there."""
    hint = "name versions 1, 2, 3, ..."
    if name[0] == "0":
        yield warning(where, "is ignored: a version has no leading zero", hint)
    else:
        yield error(where, f"is taken for version {int(_leading_number(name))}, which has another folder name", hint)


def _leading_number(name: str) -> str:
    digits = name.lstrip("-")
    count = next((place for place, c in enumerate(digits) if not c.isdigit()), len(digits))
    return name[: len(name) - len(digits)] + digits[:count]


def _listed(versions: tuple[int, ...]) -> str:
    return ", ".join(map(str, versions))
