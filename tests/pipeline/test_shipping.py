"""Python steps: the folder that is served, run here; what is hostile is refused with one clear sentence."""

from __future__ import annotations

import ast
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from repo_builder.core import codec, encoded
from repo_builder.core.errors import DataError, RecipeError
from repo_builder.core.recipe.steps import Step
from repo_builder.pipeline import shipping
from repo_builder.pipeline.chain import Link
from repo_builder.pipeline.steps import TABLE

SHIPPED = sorted((Path(shipping.__file__).parent / "shipped").glob("*.py"))


def step(folder: Path, **table: Any) -> shipping.Run:
    spec = codec.convert(Step, table, "pipeline.before[0]")
    link = Link(place="pipeline.before[0]", kind=spec.step, spec=spec, form=TABLE[type(spec)], takes=(), gives=())
    shipping.ship(link, folder)
    return shipping.load(link, folder)


def picture(rows: int, columns: int, kind: str = "PNG", mode: str = "RGB") -> bytes:
    values = np.random.default_rng(rows).integers(0, 256, (rows, columns, 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(values).convert(mode).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_what_is_shipped_imports_nothing_of_this_package(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [name.name for item in ast.walk(tree) if isinstance(item, ast.Import) for name in item.names]
    names += [item.module or "" for item in ast.walk(tree) if isinstance(item, ast.ImportFrom)]
    assert not [name for name in names if name.startswith("repo_builder")]


@pytest.mark.parametrize("mode", ["rgb", "grey"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_decoding_is_pillows(tmp_path: Path, kind: str, mode: str) -> None:
    data = [picture(7, 9, kind), picture(7, 9, kind, "L")]
    pillow = "RGB" if mode == "rgb" else "L"
    (found,) = step(tmp_path, step="decode_image", mode=mode)(encoded.column(data))
    for row, item in zip(found, data, strict=True):
        wanted = np.asarray(Image.open(io.BytesIO(item)).convert(pillow)).reshape(7, 9, -1)
        np.testing.assert_array_equal(row, wanted)


def test_a_size_takes_images_of_any_size_together(tmp_path: Path) -> None:
    data = [picture(7, 9), picture(20, 5)]
    (found,) = step(tmp_path, step="decode_image", height=6, width=4)(encoded.column(data))
    for row, item in zip(found, data, strict=True):
        wanted = Image.open(io.BytesIO(item)).resize((4, 6), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(row, np.asarray(wanted))


def bomb(rows: int, columns: int) -> bytes:
    """A small PNG that says it is huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1 << 16))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([b""], "image 0 (0 bytes) is no JPEG or PNG image"),
        ([picture(4, 4), b"text"], "image 1 (4 bytes) is no JPEG or PNG image"),
        ([picture(30, 30, "JPEG")[:300]], "image 0 is damaged"),
        ([picture(4, 4, "BMP")], "is no JPEG or PNG image"),
        ([bomb(50_000, 50_000)], "50000 x 50000 pixels, more than 1000000"),
        ([bomb(900, 900)], "image 0 is damaged"),
        ([picture(4, 4), picture(4, 5)], "image 1 has 5 x 4 pixels and image 0 has 4 x 4"),
    ],
)
def test_hostile_images_are_refused_by_their_number(tmp_path: Path, data: list[bytes], said: str) -> None:
    run = step(tmp_path, step="decode_image", most_pixels=1_000_000)
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(DataError) as error:
        run(encoded.column(data))
    assert said in str(error.value)
    assert "pipeline.before[0]" in str(error.value)
    assert before == Image.MAX_IMAGE_PIXELS
    assert run(encoded.column([picture(4, 4)]))[0].shape == (1, 4, 4, 3)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    made = Tokenizer(WordLevel({"[PAD]": 3, "[UNK]": 1, "a": 0, "b": 2}, unk_token="[UNK]"))  # noqa: S106 - a word
    made.pre_tokenizer = Whitespace()
    path = tmp_path / "some.json"
    made.save(str(path))
    return path


def test_texts_become_tokens_of_one_length(tmp_path: Path, tokenizer: Path) -> None:
    run = step(tmp_path / "free", step="tokenize", file=str(tokenizer), most_tokens=3)
    ids, mask, types = run(encoded.column([b"a b", "b ü a a".encode()]))
    assert ids.tolist() == [[0, 2, 3], [2, 1, 0]]
    assert mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert not types.any()
    fixed = step(tmp_path / "fixed", step="tokenize", file=str(tokenizer), length=4, dtype="int32")
    ids, mask, _ = fixed(encoded.column([b"", b"a b a b a"]))
    assert ids.tolist() == [[3, 3, 3, 3], [0, 2, 0, 2]]
    assert ids.dtype == mask.dtype == np.int32


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"a \xff b", "text 0 is no UTF-8: invalid start byte at byte 2"),
        (b"a" * 101, "text 0 has 101 bytes, more than 100"),
    ],
)
def test_hostile_texts_are_refused(tmp_path: Path, tokenizer: Path, text: bytes, said: str) -> None:
    run = step(tmp_path / "step", step="tokenize", file=str(tokenizer), most_bytes=100)
    with pytest.raises(DataError) as error:
        run(encoded.column([text]))
    assert said in str(error.value)


def test_a_tokenizer_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"\(tokenize\) cannot be loaded"):
        step(tmp_path / "step", step="tokenize", file=str(tmp_path / "bad.json"))
    with pytest.raises(DataError, match="cannot be read"):
        step(tmp_path / "step", step="tokenize", file=str(tmp_path / "none.json"))


FUNCTION = """
import numpy as np
from helper import TWICE

def scale(x, by=1.0):
    return (x * by * TWICE).astype(np.float32)

def wrong(x):
    return x[:, :1]

def fails(x):
    raise ValueError("no such thing")
"""


def test_a_function_of_the_users_goes_with_what_it_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(FUNCTION)
    (tmp_path / "helper.py").write_text("TWICE = 2\n")
    gives = [{"name": "y", "dtype": "fp32", "shape": [3]}]
    table = {"step": "call", "gives": gives}
    named = {**table, "function": f"{tmp_path / 'mine.py'}:scale", "arguments": {"by": 3.0}}
    run = step(tmp_path / "step", **named)
    (tmp_path / "mine.py").unlink()  # what is run is what was shipped
    np.testing.assert_array_equal(run(np.ones((2, 3), np.float32))[0], np.full((2, 3), 6, np.float32))
    (tmp_path / "mine.py").write_text(FUNCTION)
    wanted = {
        "wrong": "returned float32[2, 1] for 'y', and the recipe says float32[2, 3]",
        "fails": "ValueError: no such thing",
    }
    for name, said in wanted.items():
        run = step(tmp_path / name, **{**table, "function": f"{tmp_path / 'mine.py'}:{name}"})
        with pytest.raises(DataError) as error:
            run(np.ones((2, 3), np.float32))
        assert said in str(error.value)
    with pytest.raises(RecipeError, match=r"pipeline.before\[0\].function: there is no Python module"):
        step(tmp_path / "none", **{**table, "function": "no_such_module:f"})
