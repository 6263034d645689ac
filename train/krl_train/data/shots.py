"""Few images of each class to train on, drawn by a seed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from krl_runtime.files import sha256_bytes

__all__ = ["Shots"]

_log = logging.getLogger("krl")


@dataclass(frozen=True)
class Shots:
    """A draw of training images.

    Attributes:
        count: Number of images of each class.
        seed: Other images are drawn for another one.
    """

    count: int
    seed: int

    def draw(self, labels: Sequence[int], hashes: Sequence[str]) -> list[int]:
        """Return the positions of ``count`` images of each class, in order; of a class with fewer, all of them.

        Which ones follows from the seed and each image's hash, not from names or order; of copies one is drawn.

        Args:
            labels: Class of each image.
            hashes: SHA-256 of each image, or of its file.
        """
        drawn: dict[int, dict[str, int]] = {}
        for position, (label, digest) in enumerate(zip(labels, hashes, strict=True)):
            drawn.setdefault(label, {}).setdefault(sha256_bytes(f"{self.seed}:{digest}".encode()), position)
        return sorted(images[key] for images in drawn.values() for key in sorted(images)[: self.count])

    def report(self, labels: Sequence[int], names: Sequence[str]) -> None:
        """Log a warning that names the classes with fewer images.

        Args:
            labels: Class of each image that is trained on.
            names: All classes.
        """
        counts = [labels.count(index) for index in range(len(names))]
        few = [f"{name} {count}" for name, count in zip(names, counts, strict=True) if count < self.count]
        if few:
            _log.warning("--shots %d: these classes have fewer different images: %s", self.count, ", ".join(few))
