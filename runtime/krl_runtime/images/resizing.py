"""Resizing with Pillow's filters, with the same pixels in every version of Pillow."""

from __future__ import annotations

from PIL import Image

__all__ = ["resized"]


def resized(
    image: Image.Image,
    size: tuple[int, int],
    method: Image.Resampling,
    box: tuple[float, float, float, float] | None = None,
) -> Image.Image:
    """Resize a part of an image: first its rows, then its columns, whatever the version of Pillow.

    Each pass rounds to 8 bits, so that their order counts. Pillow 13 begins with the columns where the height shrinks
    by more than twice as many pixels as the width; older versions never do.

    Args:
        image: An image of any mode with pixels of numbers.
        size: Width and height of the result.
        method: Pillow's filter.
        box: Left, upper, right and lower side of the part, in pixels; left out: all of it.

    Example:
        >>> resized(Image.new("L", (3, 9), 7), (2, 2), Image.Resampling.BILINEAR).getpixel((0, 0))
        7
    """
    width, height = size
    left, upper, right, lower = box or (0, 0, *image.size)
    if height < image.height and image.height - height > 2 * (image.width - width):
        image = image.resize((width, image.height), method, (left, 0, right, image.height))
        left, right = 0, width
    return image.resize(size, method, (left, upper, right, lower))
