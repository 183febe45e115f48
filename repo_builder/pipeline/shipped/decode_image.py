"""Encoded images → uint8 (n, rows, columns, channels). Goes into a model's folder as it is; needs numpy and Pillow."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

Array = npt.NDArray[Any]


class Refused(Exception):  # noqa: N818 - an answer
    """A request cannot be answered; says why."""


class Step:
    """Decodes images.

    Args:
        folder: Where this file lies.
        settings: ``mode`` (RGB or L), ``formats`` as Pillow names them, ``size`` ([rows, columns] or None),
            ``most_pixels``.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._mode, self._formats = settings["mode"], settings["formats"]
        self._size, self._most = settings["size"], settings["most_pixels"]

    def __call__(self, encoded: Array) -> tuple[Array, ...]:
        """Decode images (n, 1) of bytes.

        Raises:
            Refused: One is damaged, of another format, too large, or of another size than the first.
        """
        pixels = [self._decoded(item, place) for place, item in enumerate(encoded.reshape(-1))]
        if not pixels:
            raise Refused("there is no image in the request")
        for place, item in enumerate(pixels):
            if item.shape != pixels[0].shape:
                rows, columns = item.shape[:2]
                first = f"{pixels[0].shape[1]} x {pixels[0].shape[0]}"
                raise Refused(
                    f"image {place} has {columns} x {rows} pixels and image 0 has {first}: send images of different "
                    "sizes one by one, or give decode_image a height and a width"
                )
        return (np.stack(pixels),)

    def _decoded(self, data: Any, place: int) -> Array:  # noqa: ANN401 - bytes, as Triton or a data set has them
        if not isinstance(data, bytes):
            raise Refused(f"image {place} is text, not the bytes of a file")
        try:
            with _limits_of_our_own(), Image.open(io.BytesIO(data), formats=self._formats) as image:
                width, height = image.size
                if width * height > self._most:  # known before anything is decoded
                    raise Refused(f"image {place} has {width} x {height} pixels, more than {self._most}")
                whole = image.convert(self._mode)
        except Refused:
            raise
        except UnidentifiedImageError:
            known = " or ".join(self._formats)
            raise Refused(f"image {place} ({len(data)} bytes) is no {known} image") from None
        except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
            raise Refused(f"image {place} is damaged: {error or type(error).__name__}") from None
        if self._size:
            whole = whole.resize((self._size[1], self._size[0]), Image.Resampling.BILINEAR)
        return np.asarray(whole, np.uint8).reshape(whole.height, whole.width, len(self._mode))


@contextlib.contextmanager
def _limits_of_our_own() -> Iterator[None]:
    """Put Pillow's limit of pixels, which is a process's, out of the way of the step's; and its doubts of odd files."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
