"""Distillation without data: the student sees generated images alone, labeled by the teacher.

The images come from a generator, or are made here against the teacher, which then is all that is needed (DAFL,
https://arxiv.org/abs/1904.01186). Real images, where there are any, only measure the result.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from krl_compress.config import DistillConfig
from krl_compress.distillers import FrozenTeacher
from krl_compress.losses.inversion import activation, class_balance, one_hot
from krl_compress.teachers.loading import LoadedTeacher
from krl_runtime.errors import ModelError, TrainingError
from krl_runtime.images.preprocessing import Preprocessing
from krl_runtime.progress import progress
from krl_train.data import PixelSet, Source
from krl_train.loop import resolve_device
from krl_train.models import ModelSpec, Network
from krl_train.models.features import last_linear, reading
from krl_train.models.generators import build_generator
from krl_train.synthetic import make_images, open_maker

__all__ = ["FROM_TEACHER", "GeneratedSource", "generated_source", "invert"]

_log = logging.getLogger("krl")

FROM_TEACHER = "teacher"
# Images that the generator makes in a step, and those kept of them: neighboring steps make alike ones.
_BATCH, _KEPT = 128, 16
_LATENT = 64  # as krl-train fit's default
_LR = 1e-3  # as DAFL's for small images, with Adam
_WARMUP = 100  # steps before any image is kept: the first ones are noise
_VAL_SHARE = 5  # a fifth is held out, as krl-train does by default


@dataclass(frozen=True)
class GeneratedSource(Source):
    """Generated images to train on, and real ones to measure on.

    Attributes:
        real: The real data; ``None`` where there is none, and then some generated images with the teacher's answers
            measure how far the student agrees with it.
        made: What ``run.json`` says of the images.
    """

    real: Source | None = None
    made: Mapping[str, Any] = field(default_factory=dict)

    def read(self, split: str, preprocessing: Preprocessing, *, margin: int = 0, limit: int | None = None) -> PixelSet:
        """Read generated images to train on, or real ones to measure on; see ``Source``."""
        if split == "val" and self.real is not None:
            return self.real.read(split, preprocessing, margin=margin, limit=limit)
        return super().read(split, preprocessing, margin=margin, limit=limit)

    def describe(self, sets: Mapping[str, PixelSet]) -> dict[str, Any]:
        """Return the record of the data for ``run.json``."""
        return {**super().describe(sets), "generated": dict(self.made)}


def generated_source(config: DistillConfig, teacher: LoadedTeacher, real: Source | None) -> GeneratedSource:
    """Make the images that a student learns from.

    Args:
        config: ``data_free`` says where they come from and how many.
        teacher: Labels them.
        real: Measures the student; ``None`` where there is no real image.

    Raises:
        KrlError: The generator cannot be used, or no image can be made against the teacher.
    """
    options, seed, network = config.data_free, config.loop.seed, teacher.network
    device = resolve_device(config.loop.device)
    labels = real.labels if real is not None else teacher.labels or tuple(str(index) for index in range(1000))
    if options.data_free == FROM_TEACHER:
        made: dict[str, Any] = {"generator": FROM_TEACHER, "count": options.data_free_count}
        pixels = invert(network, options.data_free_count, seed=seed, device=device)
    else:
        maker = open_maker(Path(str(options.data_free)))
        made = maker.describe(options.data_free_count)
        chosen = make_images(maker, labels, options.data_free_count, network.preprocessing, seed=seed)
        pixels = chosen.pixels(np.arange(len(chosen)))
    answers = _answers(FrozenTeacher(network), pixels, device)
    _report(answers, labels)
    images = pixels.permute(0, 2, 3, 1).numpy()
    cut = len(images) if real is not None else len(images) - len(images) // _VAL_SHARE
    if real is None:
        _log.warning(
            "there is no real image to measure on: teacher and student are compared on %d generated ones, and top-1 "
            "is the student's agreement with the teacher there",
            len(images) - cut,
        )
    return GeneratedSource(
        name=real.name if real is not None else "generated",
        labels=labels,
        channels=network.preprocessing.channels,
        size=(network.preprocessing.height, network.preprocessing.width),
        flip=real.flip if real is not None else False,
        config=real.config if real is not None else config.data,
        arrays={"train": (images[:cut], answers[:cut]), "val": (images[cut:], answers[cut:])},
        real=real,
        made=made,
    )


def _answers(teacher: FrozenTeacher, pixels: Tensor, device: torch.device) -> npt.NDArray[np.int64]:
    starts = range(0, len(pixels), 256)
    parts = [teacher.logits(pixels[start : start + 256].to(device)).argmax(1).cpu() for start in starts]
    return torch.cat(parts).numpy()


def _report(answers: npt.NDArray[np.int64], labels: tuple[str, ...]) -> None:
    counts = np.bincount(answers, minlength=len(labels))
    missing = [label for label, count in zip(labels, counts, strict=True) if not count]
    if missing:
        _log.warning("the teacher sees no %s in the generated images; the student cannot learn it", ", ".join(missing))
    _log.info("%d generated images, %d to %d of each class", len(answers), counts.min(), counts.max())


def invert(network: Network, count: int, *, seed: int, device: torch.device) -> Tensor:
    """Make images that a classifier is sure of, by training a generator against it.

    The generator minimizes ``one_hot + 5 class_balance + 0.1 activation``, the paper's weights. Some images of each
    step are kept: those of one generator would be too much alike, those of its whole way are not.

    Args:
        network: The classifier; it is frozen.
        count: Number of images.
        seed: Of all that is random.
        device: Where to compute.

    Returns:
        ``[count, C, H, W]`` of uint8, on the CPU.

    Raises:
        TrainingError: The classifier gives numbers that are not finite.
        ModelError: It has no linear layer, whose input the loss looks at.
    """
    preprocessing = network.preprocessing
    channels = preprocessing.channels
    half = Preprocessing(
        preprocessing.height, preprocessing.width, channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels
    )
    torch.manual_seed(seed)
    generator = build_generator(ModelSpec("dcgan-16", 0, channels, {"latent": _LATENT}), half).to(device).train()
    optimizer = torch.optim.Adam(generator.parameters(), lr=_LR, betas=(0.5, 0.999))
    network = network.to(device).eval().requires_grad_(False)
    kept = []
    last = last_linear(network.backbone)
    if last is None:
        raise ModelError("the teacher has no linear layer; give a generator with --data-free GENERATOR")
    with reading({}, {"features": last}) as found:
        for step in progress(range(_WARMUP + -(-count // _KEPT)), "images against the teacher"):
            images = generator(torch.randn(_BATCH, _LATENT, device=device))
            logits = network(images)
            loss = one_hot(logits) + 5 * class_balance(logits) + 0.1 * activation(found["features"].flatten(1))
            if not torch.isfinite(loss):
                raise TrainingError("the teacher's answers to generated images are not finite numbers")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if step >= _WARMUP:
                kept.append(images[:_KEPT].detach().clamp(0, 255).round().to(torch.uint8).cpu())
    return torch.cat(kept)[:count]
