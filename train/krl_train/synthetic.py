"""Images that a generator makes, for training: added to real ones, or in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

import krl_runtime
from krl_runtime.bundle import MANIFEST
from krl_runtime.conditions import Condition, attribute_values, encode
from krl_runtime.errors import UsageError
from krl_runtime.files import sha256_file
from krl_runtime.images.preprocessing import Preprocessing
from krl_runtime.progress import progress

from .conditioning.generator_data import open_generator
from .config import SyntheticConfig
from .data import PixelSet
from .data.splits import Training
from .models.sampling import generate_pixels, sample_latents

__all__ = ["ImageMaker", "add_synthetic", "class_conditions", "make_images", "open_maker"]

_CHUNK = 500  # generated images that are held at full size before they become a classifier's inputs

Images = npt.NDArray[np.uint8]


class _Make(Protocol):
    def __call__(self, count: int, *, seed: int, conditions: Sequence[Condition] | None) -> Images:
        """Return images ``[count, H, W, C]``."""
        ...


@dataclass(frozen=True)
class ImageMaker:
    """A generator, from a run or from a bundle.

    Attributes:
        path: Where it lies.
        sha256: Hash of the run's weights, or of the bundle's manifest, which vouches for the graph.
        settings: Settings of its condition; ``None`` where it takes none.
        make: Makes images; conditions are one for each image, ``None`` for a generator without.
    """

    path: Path
    sha256: str
    settings: Mapping[str, Any] | None
    make: _Make

    def describe(self, count: int) -> dict[str, Any]:
        """Return the record of images from this generator for ``run.json``."""
        return {"generator": str(self.path.resolve()), "sha256": self.sha256, "count": count}


def open_maker(path: Path) -> ImageMaker:
    """Open a generator.

    Args:
        path: A run, or a bundle, which runs on ONNX Runtime or TensorRT as on a device.

    Raises:
        KrlError: There is none, it is damaged, or it is not a generator's.
    """
    return _bundle_maker(path) if (path / MANIFEST).is_file() else _run_maker(path)


def _bundle_maker(path: Path) -> ImageMaker:
    from krl_runtime.pipelines.generator import Generator

    model = krl_runtime.load(path, Generator)

    def make(count: int, *, seed: int, conditions: Sequence[Condition] | None) -> Images:
        return np.stack([image.pixels for image in model.generate(count, seed=seed, condition=conditions)])

    return ImageMaker(path, sha256_file(path / MANIFEST), model.condition, make)


def _run_maker(path: Path) -> ImageMaker:
    run, generator = open_generator(path)
    settings = generator.condition

    def make(count: int, *, seed: int, conditions: Sequence[Condition] | None) -> Images:
        latents = sample_latents(count, generator.latent_size, seed)
        tokens = None
        if settings is not None and conditions is not None:
            tokens = torch.from_numpy(encode(conditions, settings))
        return generate_pixels(generator, latents, tokens).permute(0, 2, 3, 1).numpy()

    return ImageMaker(path, run.record.weights_sha256, settings, make)


def class_conditions(maker: ImageMaker, labels: Sequence[str]) -> list[Condition]:
    """Return for each class the condition that asks for it: its name, or the attribute that has it as a value.

    Raises:
        UsageError: The generator takes no condition, or does not know a class.
    """
    settings = maker.settings
    if settings is None:
        raise UsageError(f"generator {maker.path} takes no condition, so it cannot make images of a given class")
    if settings["kind"] != "attributes":
        encode(list(labels), settings)  # names what is not known
        return list(labels)
    values = attribute_values(settings)
    for name, known in values.items():
        if set(labels) <= set(known):
            return [{name: label} for label in labels]
    raise UsageError(
        f"no attribute of generator {maker.path} has all classes ({', '.join(labels)}) as values; it knows: "
        + "; ".join(f"{name}: {', '.join(known)}" for name, known in values.items())
    )


def make_images(
    maker: ImageMaker, labels: Sequence[str], count: int, preprocessing: Preprocessing, *, seed: int, margin: int = 0
) -> PixelSet:
    """Make images as a classifier takes them.

    Args:
        maker: The generator.
        labels: The classes; each gets the same number of images, but for one, where the generator takes conditions.
        count: Number of images.
        preprocessing: Of the classifier.
        seed: Of the latents.
        margin: Extra pixels on every side, for random crops.

    Returns:
        The images; their labels are the classes that were asked for, 0 for a generator without conditions.

    Raises:
        UsageError: The generator does not know a class.
    """
    conditions = None if maker.settings is None else class_conditions(maker, labels)
    classes = [0 if conditions is None else index % len(labels) for index in range(count)]
    parts = []
    for number, start in enumerate(progress(range(0, count, _CHUNK), "generating")):
        chosen = classes[start : start + _CHUNK]
        asked = None if conditions is None else [conditions[index] for index in chosen]
        # a generator of its own for each chunk, since a seed gives the same images each time
        images = maker.make(len(chosen), seed=seed * 1_000_003 + number, conditions=asked)
        parts.append(np.stack([preprocessing(image, margin=margin) for image in images]))
    return PixelSet(np.concatenate(parts), classes, margin)


def add_synthetic(
    training: Training, config: SyntheticConfig, preprocessing: Preprocessing, seed: int
) -> tuple[Training, dict[str, Any]]:
    """Add generated images to a classifier's training images.

    Args:
        training: The data; its validation images stay as they are.
        config: The generator and the number of images.
        preprocessing: Of the classifier.
        seed: Of the images.

    Returns:
        The data with them, and what ``run.json`` says of them.

    Raises:
        UsageError: The generator takes no conditions, or does not know a class.
        KrlError: It cannot be used.
    """
    assert config.augment_from is not None  # noqa: S101  for the type checker
    maker = open_maker(config.augment_from)
    class_conditions(maker, training.source.labels)
    made = make_images(
        maker,
        training.source.labels,
        config.augment_count,
        preprocessing,
        seed=seed,
        margin=training.train.margin,
    )
    return replace(training, train=training.train.joined(made)), maker.describe(config.augment_count)
