"""The figure of generated images on planted sets of known quality.

::

    python benchmarks/train/generator_figure.py --data digits
    python benchmarks/train/generator_figure.py --data mnist --data-root DATA
    python benchmarks/train/generator_figure.py --data FOLDER --size 64

Half of the images are the real ones; the others are left as they are, blurred, replaced by noise, or by one of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from krl_train.config import DataConfig, InputConfig
from krl_train.data import open_source
from krl_train.metrics.energy import ImageSet
from krl_train.metrics.scoring import real_pixels
from krl_train.training.gan import generator_preprocessing


def blur(images: Tensor) -> Tensor:
    """Return images filtered with [1 2 1] / 4 in both directions."""
    kernel = torch.tensor([1.0, 2, 1]) / 4
    channels = images.shape[1]
    weight = (kernel[:, None] * kernel[None]).expand(channels, 1, 3, 3)
    return F.conv2d(F.pad(images.float(), (1, 1, 1, 1), mode="reflect"), weight, groups=channels).round().byte()


def main() -> None:
    """Print the figure of each set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--size", type=int)
    parser.add_argument("--count", type=int, default=2000)
    arguments = parser.parse_args()
    source = open_source(DataConfig(data=arguments.data, data_root=arguments.data_root), classes=False)
    size = None if arguments.size is None else (arguments.size,)
    preprocessing = generator_preprocessing(InputConfig(size=size), source, "dcgan-16")
    pixels, _ = real_pixels(source.read("train", preprocessing, limit=arguments.count), arguments.count)
    torch.manual_seed(0)
    pixels = pixels[torch.randperm(len(pixels))]
    first, second = pixels[: len(pixels) // 2], pixels[len(pixels) // 2 :]
    real = ImageSet(first, torch.device("cpu"))
    print(
        f"{arguments.data}: {len(first)} and {len(second)} images of {list(pixels.shape[1:])}; floor {real.floor:.4f}"
    )
    sets = {"real": second, "blurred": blur(second), "noise": torch.randint_like(second, 256)}
    sets |= {f"one image, number {index}": second[index : index + 1].expand_as(second) for index in range(3)}
    for name, images in sets.items():
        print(f"{name:20} {real.energy(images):.4f}")


if __name__ == "__main__":
    main()
