"""Encoded images → uint8 (n, rows, columns, channels). Goes into a model's folder as it is; needs numpy and Pillow."""

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError


class Refused(Exception):
    """A request cannot be answered; says why."""


class Step:
    """Decodes images.

    Args:
        folder: Where this file lies.
        settings: ``mode`` (RGB or L), ``formats`` as Pillow names them, ``size`` ([rows, columns] or None),
            ``most_pixels``.
    """

    def __init__(self, folder, settings):
        self._mode, self._formats = settings["mode"], settings["formats"]
        self._size, self._most = settings["size"], settings["most_pixels"]
        # Pillow's own limit is for all of a process; the one here is looked at before anything is decoded.
        Image.MAX_IMAGE_PIXELS = None
        Image.preinit()

    def __call__(self, encoded):
        """Decode images (n, 1) of bytes.

        Raises:
            Refused: One is damaged, of another format, too large, or of another size than the first.
        """
        pixels = [self._decoded(bytes(item), place) for place, item in enumerate(encoded.reshape(-1))]
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

    def _decoded(self, data, place):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of doubtful but readable files
                with Image.open(io.BytesIO(data), formats=self._formats) as image:
                    width, height = image.size
                    if width * height > self._most:
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
