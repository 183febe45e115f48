"""What the start of a server depends on in the config.pbtxt files of a repository.

Read without protobuf, whose import takes longer than the start of a small server. What cannot be read here says
nothing here: Triton, and ``validate``, say what is wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Message = dict[str, list[Any]]  # field → values: str, or Message
_TOKEN = re.compile(r"""\s+|\#[^\n]*|("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^\s:;,{}\[\]<>"'#]+|[:;,{}\[\]<>])""")
_OPENING = {"{": "}", "<": ">"}
_PLATFORMS = {"onnxruntime_onnx": "onnxruntime", "tensorrt_plan": "tensorrt"}
_OURS = (
    "onnxruntime",
    "tensorrt",
)  # their auto_complete_config adds to what names no inputs or no outputs, and to nothing else


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model of a repository.

    Attributes:
        folder: Its folder.
        fields: The fields of its config.pbtxt; empty where there is none, or none that can be read.
    """

    folder: Path
    fields: Message = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name."""
        return self.folder.name

    @property
    def backend(self) -> str:
        """The backend that it names, also by its platform; empty where Triton has to find out."""
        named = self.fields.get("backend")
        platform = str((self.fields.get("platform") or [""])[-1])
        return str(named[-1]) if named else _PLATFORMS.get(platform, platform)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to Triton or the backend to fill in."""
        if self.backend == "ensemble":
            return "ensemble_scheduling" in self.fields
        described = all(
            self.fields.get(side) and all(_described(item) for item in self.fields[side])
            for side in ("input", "output")
        )
        if not described:
            return False
        return self.backend in _OURS or (self.backend == "python" and not self._completes_itself())

    @property
    def cached(self) -> bool:
        """Whether its answers are to be kept in Triton's response cache."""
        return any(
            isinstance(item, dict) and str((item.get("enable") or ["false"])[-1]).lower() in ("true", "t", "1")
            for item in self.fields.get("response_cache", [])
        )

    def _completes_itself(self) -> bool:
        try:
            sources = [path.read_text(encoding="utf-8", errors="replace") for path in self.folder.glob("*/*.py")]
        except OSError:
            return True
        return not sources or any("auto_complete_config" in text for text in sources)


def models(repository: Path, chosen: Sequence[str] = ()) -> list[Model]:
    """Return the models of a repository in the order of their names; none where there is no repository.

    Args:
        repository: The model repository.
        chosen: The models to look at; empty means all.
    """
    if not repository.is_dir():
        return []
    folders = sorted(item for item in repository.iterdir() if item.is_dir() and not item.name.startswith("."))
    return [_model(item) for item in folders if not chosen or item.name in chosen]


def parse(text: str) -> Message:
    """Return the fields of a text-format protobuf message; scalars are text, without quotes.

    Raises:
        ValueError: It is none.
    """
    tokens = iter([match[1] for match in _tokens(text)])
    return _message(tokens, end=None)


def _model(folder: Path) -> Model:
    try:
        return Model(folder=folder, fields=parse((folder / "config.pbtxt").read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return Model(folder=folder)


def _described(item: Any) -> bool:  # noqa: ANN401 - a value of a message
    return isinstance(item, dict) and all(item.get(key) for key in ("name", "data_type", "dims"))


def _tokens(text: str) -> Iterator[re.Match[str]]:
    place = 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise ValueError(f"no text-format protobuf at character {place}")
        place = match.end()
        if match[1]:
            yield match


def _message(tokens: Iterator[str], end: str | None) -> Message:
    found: Message = {}
    for word in tokens:
        if word == end:
            return found
        if word in ",;":
            continue
        following = next(tokens, "")
        value = _value(tokens, next(tokens, "") if following == ":" else following)
        found.setdefault(word, []).extend(value)
    if end is not None:
        raise ValueError(f"'{end}' is missing")
    return found


def _value(tokens: Iterator[str], word: str) -> list[Any]:
    """Return the value that begins with a word, or the values of a list."""
    if word in _OPENING:
        return [_message(tokens, _OPENING[word])]
    if word == "[":
        values: list[Any] = []
        for item in tokens:
            if item == "]":
                return values
            if item != ",":
                values += _value(tokens, item)
    if not word or word in ":;,}]>[":
        raise ValueError("a value is missing")
    return [word[1:-1] if word[0] in "\"'" else word]
