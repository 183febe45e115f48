"""Texts → tokens' ids, mask and types (n, tokens). Goes into a model's folder as it is; needs numpy and tokenizers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a request has few texts, and an instance is a process
from tokenizers import Tokenizer

Array = npt.NDArray[Any]
_PADS = ("[PAD]", "<pad>")  # what tokenizers call it that do not say


class Refused(Exception):  # noqa: N818 - an answer
    """A request cannot be answered; says why."""


class Step:
    """Tokenizes texts.

    Args:
        folder: Where this file lies.
        settings: ``file``, ``length`` (or None), ``most_tokens``, ``most_bytes``, ``dtype``.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._tokenizer = Tokenizer.from_str((folder / settings["file"]).read_bytes().decode("utf-8"))
        known = self._tokenizer.padding or {}
        ids = [item for item in map(self._tokenizer.token_to_id, _PADS) if item is not None]
        self._pad = known.get("pad_id", ids[0] if ids else 0)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(settings["most_tokens"])
        self._length, self._most = settings["length"], settings["most_bytes"]
        self._dtype = np.dtype(settings["dtype"])

    def __call__(self, texts: Array) -> tuple[Array, ...]:
        """Tokenize texts (n, 1) of bytes or str.

        Raises:
            Refused: One is no UTF-8, or too long.
        """
        found = self._tokenizer.encode_batch([self._text(item, place) for place, item in enumerate(texts.reshape(-1))])
        if not found:
            raise Refused("there is no text in the request")
        length = self._length or max(1, *(len(item.ids) for item in found))
        ids = np.full((len(found), length), self._pad, self._dtype)
        mask, types = np.zeros((2, len(found), length), self._dtype)
        for row, item in enumerate(found):
            ids[row, : len(item.ids)] = item.ids
            mask[row, : len(item.ids)] = 1
            types[row, : len(item.ids)] = item.type_ids
        return ids, mask, types

    def _text(self, item: Any, place: int) -> str:  # noqa: ANN401 - as Triton or a data set has it
        data = item.encode("utf-8", "surrogatepass") if isinstance(item, str) else bytes(item)
        if len(data) > self._most:
            raise Refused(f"text {place} has {len(data)} bytes, more than {self._most}")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Refused(f"text {place} is no UTF-8: {error.reason} at byte {error.start}") from None
