"""``decode_image``: an encoded image → uint8 (rows, columns, channels), by Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from repo_builder.core.recipe.steps import DecodeImage
from repo_builder.core.tensors import DType
from repo_builder.pipeline.form import ONE_STRING, Form, Kind, Python, Unfit

_NAMES = {"jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP"}  # as Pillow has them


def _gives(spec: DecodeImage, taken: Sequence[Kind]) -> Sequence[Kind]:
    if taken[0] != ONE_STRING:
        raise Unfit("takes an encoded image, string[1]")
    return [(DType.UINT8, (spec.height or -1, spec.width or -1, 3 if spec.mode == "rgb" else 1))]


def _settings(spec: DecodeImage) -> dict[str, Any]:
    return {
        "mode": "RGB" if spec.mode == "rgb" else "L",
        "formats": [_NAMES[item] for item in spec.formats],
        "size": [spec.height, spec.width] if spec.height else None,
        "most_pixels": spec.most_pixels,
    }


def _sizes_vary(spec: DecodeImage) -> bool:
    return spec.height is None


FORM = Form(
    gives=_gives,
    python=Python(file="decode_image", settings=_settings, extra="images", libraries=("PIL",), alone=_sizes_vary),
    reads="image",
)
