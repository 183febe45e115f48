"""``tokenize``: a text → ids of its tokens, by the library tokenizers and a tokenizer.json."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repo_builder.core.errors import DataError
from repo_builder.core.recipe.steps import Tokenize
from repo_builder.core.tensors import DType
from repo_builder.pipeline.form import ONE_STRING, Form, Kind, Python, Unfit

_FILE = "tokenizer.json"


def _gives(spec: Tokenize, taken: Sequence[Kind]) -> Sequence[Kind]:
    if taken[0] != ONE_STRING:
        raise Unfit("takes a text, string[1]")
    return [(DType.of(spec.dtype), (spec.length or -1,))] * 3


def _settings(spec: Tokenize) -> dict[str, Any]:
    return {
        "file": _FILE,
        "length": spec.length,
        "most_tokens": spec.length or spec.most_tokens,
        "most_bytes": spec.most_bytes,
        "dtype": spec.dtype,
    }


def _ship(spec: Tokenize, folder: Path) -> None:
    try:
        shutil.copyfile(spec.file, folder / _FILE)
    except OSError as error:
        hint = "name a tokenizer.json; a relative path is taken from the recipe's folder"
        raise DataError(f"cannot be read ({error.strerror})", where=spec.file, hint=hint) from None


FORM = Form(
    names=("input_ids", "attention_mask", "token_type_ids"),
    gives=_gives,
    python=Python(file="tokenize_text", settings=_settings, ship=_ship, extra="text", libraries=("tokenizers",)),
    reads="text",
)
