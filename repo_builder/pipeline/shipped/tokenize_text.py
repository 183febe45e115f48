"""Texts → ids of tokens, mask and types (n, tokens). Goes into a model's folder as it is; needs numpy and tokenizers."""

import os

import numpy as np

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a request has few texts, and an instance is a process
from tokenizers import Tokenizer  # noqa: E402


class Refused(Exception):
    """A request cannot be answered; says why."""


class Step:
    """Tokenizes texts.

    Args:
        folder: Where this file lies.
        settings: ``file``, ``length`` (or None), ``most_tokens``, ``most_bytes``, ``dtype``.
    """

    def __init__(self, folder, settings):
        text = (folder / settings["file"]).read_bytes().decode("utf-8")
        self._tokenizer = Tokenizer.from_str(text)
        known = self._tokenizer.padding or {}
        names = ("[PAD]", "<pad>")
        ids = (item for item in map(self._tokenizer.token_to_id, names) if item is not None)
        self._pad = known.get("pad_id", next(ids, 0))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(settings["most_tokens"])
        self._length, self._most = settings["length"], settings["most_bytes"]
        self._dtype = np.dtype(settings["dtype"])

    def __call__(self, texts):
        """Tokenize texts (n, 1) of bytes or str.

        Raises:
            Refused: One is no UTF-8, or too long.
        """
        found = self._tokenizer.encode_batch([self._text(item, place) for place, item in enumerate(texts.reshape(-1))])
        if not found:
            raise Refused("there is no text in the request")
        length = self._length or max(1, *(len(item.ids) for item in found), 1)
        ids = np.full((len(found), length), self._pad, self._dtype)
        mask, types = np.zeros((2, len(found), length), self._dtype)
        for row, item in enumerate(found):
            ids[row, : len(item.ids)] = item.ids
            mask[row, : len(item.ids)] = 1
            types[row, : len(item.ids)] = item.type_ids
        return ids, mask, types

    def _text(self, item, place):
        data = item.encode("utf-8", "surrogatepass") if isinstance(item, str) else bytes(item)
        if len(data) > self._most:
            raise Refused(f"text {place} has {len(data)} bytes, more than {self._most}")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Refused(f"text {place} is no UTF-8: {error.reason} at byte {error.start}") from None
