"""Where a repository is to be served, and what a finding is worth there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from repo_builder.core import releases
from repo_builder.core.errors import RepositoryError, ServeError
from repo_builder.core.releases import EMBEDDED, NEWER_FIELDS, Release, numbers
from repo_builder.repository.checks.findings import Finding, error, info, warning


@dataclass(frozen=True, kw_only=True)
class Target:
    """The server that a repository is checked for.

    Attributes:
        runtime: ``embedded``: the tritonserver of nvidia-pytriton with this project's backends. ``container``: NVIDIA's
            image with Triton's own. ``any``: the repository shall do for both; what only the embedded server refuses is
            a warning then.
        release: The container's release; None takes the newest that is known.
    """

    runtime: Literal["any", "embedded", "container"] = "any"
    release: Release | None = None

    @property
    def container(self) -> Release:
        """The container's release."""
        return self.release or releases.releases()[-1]

    def only_native(self, path: str, message: str, hint: str = "") -> Iterator[Finding]:
        """Report what Triton's own backend refuses and the embedded one takes."""
        if self.runtime != "embedded":
            yield error(path, message, hint)

    def only_embedded(self, path: str, message: str, hint: str = "") -> Iterator[Finding]:
        """Report what the embedded server refuses and Triton's own backend takes."""
        if self.runtime == "embedded":
            yield error(path, message, hint)
        elif self.runtime == "any":
            yield warning(path, f"{message}: the embedded server refuses it, Triton's own backend does not", hint)


def parse(text: str) -> Target:
    """Read ``any``, ``embedded``, ``container`` or ``container:RELEASE``.

    Raises:
        RepositoryError: It is none of them.
    """
    name, _, release = text.partition(":")
    if name == "container":
        try:
            return Target(runtime="container", release=releases.release(release) if release else None)
        except ServeError as reason:
            raise RepositoryError(reason.message, where="--runtime", hint=reason.hint) from None
    if text == "embedded":
        return Target(runtime="embedded")
    if text == "any":
        return Target()
    raise RepositoryError(f"'{text}' is no runtime", where="--runtime", hint="any, embedded or container:YY.MM")


def newer_fields(where: str, config: Any, target: Target) -> Iterator[Finding]:  # noqa: ANN401 - a ModelConfig
    """Report fields that the target, or any server in use, does not read: it refuses the whole file then."""
    for field, since in sorted(set(_newer(config))):
        told = f"has the field {field}, which Triton reads from {since} on"
        if target.runtime != "container" and numbers(since) > numbers(EMBEDDED):
            yield from target.only_embedded(where, f"{told}, and the embedded server is {EMBEDDED}", "leave it out")
        elif target.runtime == "container" and numbers(since) > numbers(target.container.name):
            yield error(where, f"{told}, and this is {target.container.name}", "leave it out")


def _newer(message: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - any protobuf message
    for field, value in message.ListFields():
        if since := NEWER_FIELDS.get((message.DESCRIPTOR.name, field.name)):
            yield field.name, since
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for item in [value] if hasattr(value, "ListFields") else value:
            yield from _newer(item)


def onnx_versions(where: str, opset: int, ir_version: int, target: Target) -> Iterator[Finding]:
    """Compare an ONNX file's versions with what the ONNX Runtime of a container reads."""
    if target.runtime == "embedded":
        return  # its ONNX Runtime has loaded the file
    what = f"is of opset {opset} and IR version {ir_version}"
    known = releases.reads(target.container)
    if known is not None and (opset > known.opset or ir_version > known.ir_version):
        report = error if target.runtime == "container" else warning
        yield report(
            where,
            f"{what}, and the ONNX Runtime {known.onnxruntime} of Triton {target.container.name} reads "
            f"{known.opset} and {known.ir_version}",
            "export it with an older opset, or use the embedded runtime",
        )
        return
    for item in releases.releases():
        found = releases.reads(item)
        if found is not None and opset <= found.opset and ir_version <= found.ir_version:
            if numbers(item.name) > numbers(EMBEDDED) and target.runtime == "any":
                yield info(where, f"{what}: containers from {item.name} on read it")
            return
