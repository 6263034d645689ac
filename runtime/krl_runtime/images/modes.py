"""Color modes: which one an image has, conversion between them, and the color profile that goes with one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL import ImageFile

__all__ = ["ChannelOrder", "color_profile", "colors", "convert", "image_of", "match_transparency"]

ChannelOrder: TypeAlias = Literal["rgb", "bgr"]
"""Order of the colors in an array: red first, or blue first, as OpenCV has them. Alpha is always the last."""

_MAX_PROFILE: Final = 2**22  # bytes; profiles of printers have up to 3 MB
_SPACES: Final = {"L": b"GRAY", "LA": b"GRAY", "RGB": b"RGB ", "RGBA": b"RGB "}
_BGR: Final = {3: ("RGB", "BGR"), 4: ("RGBA", "BGRA")}  # by channels: Pillow's mode, and its name of the array's order
_LEVELS: Final = {"L;2": 85, "L;4": 17}  # from the levels of 2 and 4 bits to those of 8


def match_transparency(image: ImageFile.ImageFile) -> None:
    """Scale the transparent level of a PNG to 8 bits, as Pillow does its pixels but not this.

    Args:
        image: A PNG that is opened, but not decoded. With 16 bits a color, those that are alike in 8 bits become
            transparent together. (Gray of 16 bits is compared in 16.)
    """
    key, raw = image.info.get("transparency"), image.tile[0][3]
    if isinstance(key, int) and raw in _LEVELS:
        image.info["transparency"] = key * _LEVELS[raw]
    elif isinstance(key, tuple) and raw == "RGB;16B":
        image.info["transparency"] = tuple(level >> 8 for level in key)


def colors(pixels: npt.NDArray[np.uint8], order: ChannelOrder) -> npt.NDArray[np.uint8]:
    """Return a view of the colors of pixels ``[H, W, channels]``, red first, without alpha.

    Example:
        >>> colors(np.uint8([[[1, 2, 3, 4]]]), "bgr").tolist(), colors(np.uint8([[[7, 9]]]), "bgr").tolist()
        ([[[3, 2, 1]]], [[[7]]])
    """
    count = pixels.shape[2] - (pixels.shape[2] in (2, 4))
    return pixels[..., :count] if order == "rgb" else pixels[..., count - 1 :: -1]


def image_of(pixels: npt.NDArray[np.uint8], order: ChannelOrder) -> Image.Image:
    """Return a Pillow image of pixels ``[H, W]`` or ``[H, W, 1 to 4]``.

    Pillow copies the pixels in any case, and exchanges red and blue meanwhile.
    """
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if order == "bgr" and channels in _BGR:
        mode, raw = _BGR[channels]
        size = (pixels.shape[1], pixels.shape[0])
        return Image.frombuffer(mode, size, np.ascontiguousarray(pixels), "raw", raw, 0, 1)
    return Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and channels == 1 else pixels)


def convert(image: Image.Image, mode: str | None) -> Image.Image:
    """Return an image in a mode of 8 bits.

    Gray of 16 bits, and of 32 as whole numbers, is scaled from 0 to 65535 and clipped; gray of floats is taken as 0 to
    255 and clipped. 16 bits a color are those of the high byte, as Pillow reads them.

    Args:
        image: A decoded image.
        mode: ``"L"`` or ``"RGB"``, which drop transparency; ``None`` for the image's own one of ``"L"``, ``"LA"``,
            ``"RGB"`` and ``"RGBA"``.
    """
    mode = mode or _own_mode(image)
    if image.mode == mode:
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        image = _eight_bits(image, alpha=mode == "LA")  # Pillow clips these to 255 instead of scaling them
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow asks for this step
    return image.convert(mode)


def color_profile(image: Image.Image) -> bytes | None:
    """Return the ICC profile of an image, if it is one for the colors of the image's mode."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or len(profile) > _MAX_PROFILE or profile[36:40] != b"acsp":
        return None
    return profile if profile[16:20] == _SPACES.get(image.mode) else None


def _own_mode(image: Image.Image) -> str:
    """Return the mode of 8 bits that has what an image has: colors, and transparency."""
    gray = image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")
    transparent = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    return ("L" if gray else "RGB") + "A" * transparent


def _eight_bits(image: Image.Image, *, alpha: bool) -> Image.Image:
    """Return gray of more bits in 8, with the profile of the image, and its transparent level as alpha if asked for."""
    levels = np.asarray(image)
    gray = Image.fromarray((np.clip(levels, 0, 65535) >> 8).astype(np.uint8))
    key = image.info.get("transparency")
    if alpha and isinstance(key, int):
        opaque = (levels != key).astype(np.uint8)
        opaque *= 255
        gray.putalpha(Image.fromarray(opaque))
    gray.info = {name: value for name, value in image.info.items() if name != "transparency"}
    return gray
