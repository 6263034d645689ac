"""A faster decoder for large JPEG files with the same pixels, if the extra ``jpeg`` (simplejpeg) is installed.

Both it and Pillow decode with libjpeg-turbo, but Pillow copies the decoded pixels once more. Their copies of
libjpeg-turbo may differ. So a test before the first use checks that the two agree to the last bit.
"""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["LEAST_PIXELS", "decoder", "load"]

LEAST_PIXELS = 4_000_000
"""Below this Pillow is as fast."""
_COLORS = {"RGB": "RGBX", "L": "GRAY"}


def load(image: Image.Image) -> Image.Image:
    """Decode an opened image in full: here if it is a large JPEG and can be, else by Pillow.

    Args:
        image: As ``Image.open`` returns it, not drafted.

    Returns:
        The decoded image; an image of mode ``"RGB"`` may come as ``"RGBX"``, whose fourth band means nothing.

    Raises:
        Exception: Pillow's errors for a damaged file. Files in doubt are left to Pillow.
    """
    file = getattr(image, "fp", None)
    large = image.width * image.height >= LEAST_PIXELS
    module = decoder() if large and file is not None and image.format == "JPEG" and image.mode in _COLORS else None
    decoded = None if module is None else _decode(module, file, image)
    if decoded is None:
        image.load()
        return image
    return decoded


def _decode(module: Any, file: Any, image: Image.Image) -> Image.Image | None:
    position = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(position)
    try:
        array = module.decode_jpeg(data, _COLORS[image.mode], strict=True)
    except (ValueError, RuntimeError):  # damaged, or of a kind that it does not read: Pillow says which
        return None
    if array.shape[:2] != (image.height, image.width):
        return None
    mode = "RGBX" if image.mode == "RGB" else "L"
    decoded = Image.frombuffer(mode, image.size, array, "raw", mode, 0, 1)
    decoded.info = dict(image.info)
    return decoded


@cache
def decoder() -> Any:
    """Return the module simplejpeg if it is installed and decodes as Pillow does here, else ``None``."""
    try:
        import simplejpeg
    except ImportError:
        return None
    pixels = np.random.default_rng(0).integers(0, 256, (45, 71, 3), np.uint8)
    for options in ({"subsampling": 0}, {"subsampling": 2}, {"subsampling": 2, "progressive": True}):
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, "JPEG", quality=90, **options)
        theirs = simplejpeg.decode_jpeg(encoded.getvalue(), "RGB", strict=True)
        if not np.array_equal(theirs, np.asarray(Image.open(encoded))):
            import logging

            logging.getLogger("krl").warning(
                "simplejpeg %s does not decode as Pillow does on this machine, so it is not used",
                getattr(simplejpeg, "__version__", "?"),
            )
            return None
    return simplejpeg
