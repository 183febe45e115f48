"""Make what the recipes beside this file need: PNG files of digits, a small tokenizer, a small network, some sentences.

Takes a second and downloads nothing. The tokenizer and the network are seeded and know nothing of language.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from repo_builder.core import assets

LEVELS = 16  # of a digit's pixels
WIDTH = 16
WORDS = {
    "who": ("a cat", "a dog", "the old server", "my engine", "one pipeline", "every client"),
    "does": ("sleeps", "runs", "waits", "answers", "measures", "batches"),
    "how": ("slowly", "at night", "in the rain", "without a word", "again", "in int8"),
}


def digits(folder: Path, count: int) -> None:
    """Write digits as PNG files, one sub-folder a class."""
    with np.load(assets.packaged("data", "digits.npz")) as stored:
        images, labels = stored["images"], stored["labels"]
    for place in range(count):
        path = folder / "digits" / str(labels[place]) / f"{place:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(images[place] * (255 / LEVELS)).astype(np.uint8)).save(path)


def tokenizer(folder: Path) -> int:
    """Write a tokenizer of whole words; return how many it knows."""
    words = sorted({word for side in WORDS.values() for phrase in side for word in phrase.split()})
    known = {word: place for place, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    made = Tokenizer(WordLevel(known, unk_token="[UNK]"))  # noqa: S106 - a word
    made.pre_tokenizer = Whitespace()
    ends = [(name, known[name]) for name in ("[CLS]", "[SEP]")]
    made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    made.save(str(folder / "tokenizer.json"))
    return len(known)


def network(folder: Path, words: int) -> None:
    """Write an embedding with one hidden layer: ``input_ids`` (batch, tokens) → ``vectors`` (batch, tokens, 16)."""
    random = np.random.default_rng(0)
    stored = {
        "table": random.normal(size=(words, WIDTH)),
        "inner": random.normal(size=(WIDTH, 4 * WIDTH)) / 4,
        "outer": random.normal(size=(4 * WIDTH, WIDTH)) / 8,
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"], name="embed"),
        helper.make_node("MatMul", ["words", "inner"], ["hidden"], name="inner"),
        helper.make_node("Relu", ["hidden"], ["active"], name="active"),
        helper.make_node("MatMul", ["active", "outer"], ["vectors"], name="outer"),
    ]
    graph = helper.make_graph(
        nodes,
        "sentences",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])],
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["batch", "tokens", WIDTH])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "sentences.onnx")


def sentences(folder: Path) -> None:
    """Write every sentence that the words make, one a line."""
    lines = [" ".join(words) for words in itertools.product(*WORDS.values())]
    (folder / "sentences.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def main() -> None:
    """Write everything into a folder, by default that of this file."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    digits(folder, 400)
    network(folder, tokenizer(folder))
    sentences(folder)


if __name__ == "__main__":
    main()
