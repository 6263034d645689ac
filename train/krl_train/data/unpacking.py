"""Writing a named data set as a folder of images."""

from __future__ import annotations

from pathlib import Path

from krl_runtime.errors import UsageError
from krl_runtime.images.preprocessing import open_image

from .sources import Source

__all__ = ["unpack"]


def unpack(source: Source, out: Path) -> int:
    """Write a named data set as a folder, ``train/CLASS/*.png`` and ``val/CLASS/*.png``, without loss.

    Args:
        source: A named data set.
        out: An existing, empty folder.

    Returns:
        The number of images written.

    Raises:
        UsageError: The data set is a folder already.
    """
    if source.custom is not None:
        raise UsageError(f"{source.name} is your own data set; accepted here: a named data set, as digits")
    if not source.arrays:
        raise UsageError(f"{source.name} has its images on disk already; use it as it is")
    count = 0
    for split, (images, labels) in source.arrays.items():
        for label in source.labels:
            (out / split / _file_name(label)).mkdir(parents=True)
        for index, (image, label_index) in enumerate(zip(images, labels.tolist(), strict=True)):
            opened = open_image(image, mode="L" if source.channels == 1 else "RGB")
            opened.save(out / split / _file_name(source.labels[label_index]) / f"{index:05d}.png")
            count += 1
    return count


def _file_name(label: str) -> str:
    return label.replace("/", "-").replace("\\", "-")
