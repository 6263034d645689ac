"""How good generated images are, on the features of a classifier that the user names; nothing is downloaded.

Figures on different classifiers' features do not compare, so each report names the classifier and its hash. They are
not the FID of the literature, which takes Inception's features.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from krl_runtime.errors import RunError, UsageError
from krl_train.models.features import last_linear, reading
from krl_train.models.sampling import ImageGenerator
from krl_train.run import Run

__all__ = [
    "FeatureNet",
    "FeatureStatistics",
    "coverage_metrics",
    "frechet_distance",
    "kernel_distance",
    "same_latent",
    "score_features",
]

_log = logging.getLogger("krl")

_BATCH = 250  # images in a run of the feature network: bounded memory
_NEIGHBORS = 5  # k of density and coverage, as in their paper (Naeem et al. 2020)
_KID_SUBSETS, _KID_SIZE = 50, 500  # half of torchmetrics' 100 subsets of 1000, for sets of some thousand images
_SSIM_WINDOW = 11  # pixels a side of the Gaussian window (Wang et al. 2004)
_CHANCES = 2
"""Times the accuracy of chance below which a classifier's features are doubted."""


@dataclass(frozen=True)
class FeatureStatistics:
    """Features and predictions of a classifier for a set of images.

    Attributes:
        features: The input of its last linear layer, ``[N, D]`` of float64.
        predictions: Its most likely classes, ``[N]`` of int64.
    """

    features: Tensor
    predictions: Tensor


class FeatureNet:
    """A frozen classifier whose features images are compared by.

    Args:
        path: The classifier's run.
        device: Where to compute.

    Raises:
        RunError: The run is missing, or is not a classifier that ends in a linear layer.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        run = Run.open(path)
        self.path, self.record = path, run.record
        self.network = run.network().to(device).requires_grad_(False).eval()
        self.device = device
        last = last_linear(self.network.backbone)
        if last is None:
            raise RunError(f"run {path}: {run.record.model.name} has no linear layer to take features before")
        self._last = last
        top1, classes = run.record.metrics.get("top1"), len(run.record.labels)
        if isinstance(top1, int | float) and top1 < _CHANCES / max(1, classes):
            _log.warning(
                "%s tells %.1f %% of its images right, hardly more than chance: figures on its features mean little; "
                "train it longer",
                path,
                100 * top1,
            )

    def describe(self) -> dict[str, Any]:
        """Return the description of the classifier for a report."""
        return {
            "run": str(self.path),
            "model": self.record.model.name,
            "weights_sha256": self.record.weights_sha256,
            "top1": self.record.metrics.get("top1"),
        }

    def features(self, pixels: Tensor) -> Tensor:
        """Map images ``[N, C, H, W]`` in 0 to 255, of the classifier's own size, to features ``[N, D]``.

        Gradients flow through, for losses.
        """
        return self._run(pixels)[0]

    def _run(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        with reading({}, {"features": self._last}) as found:
            logits = self.network(pixels)
        return found["features"].flatten(1), logits

    @torch.no_grad()
    def statistics(self, pixels: Tensor) -> FeatureStatistics:
        """Look at images.

        Args:
            pixels: ``[N, C, H, W]`` of uint8, of any size; brought to the classifier's by its own preprocessing.
        """
        features, predictions = [], []
        for start in range(0, len(pixels), _BATCH):
            part = pixels[start : start + _BATCH]
            found, logits = self._run(self._fit(part).to(self.device))
            features.append(found.double().cpu())
            predictions.append(logits.argmax(1).cpu())
        return FeatureStatistics(torch.cat(features), torch.cat(predictions))

    def _fit(self, pixels: Tensor) -> Tensor:
        preprocessing = self.record.preprocessing
        if tuple(pixels.shape[1:]) == preprocessing.shape:
            return pixels
        images = pixels.permute(0, 2, 3, 1).cpu().numpy()
        return torch.from_numpy(np.stack([preprocessing(image) for image in images]))


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Return the Fréchet distance of two sets of features, taken for Gaussian (FID, https://arxiv.org/abs/1706.08500).

    |m_r - m_f|² + tr(C_r + C_f - 2 (C_r C_f)^½), with covariances of N - 1.

    Args:
        real: ``[N, D]``.
        fake: ``[M, D]``.
    """
    _check_features(real, fake, least=2)
    real, fake = real.double(), fake.double()
    difference = real.mean(0) - fake.mean(0)
    first, second = torch.cov(real.T).reshape(2 * (real.shape[1],)), torch.cov(fake.T).reshape(2 * (fake.shape[1],))
    # (C_r C_f) is similar to a positive semidefinite matrix: its eigenvalues are real and not negative but for rounding
    root = torch.linalg.eigvals(first @ second).real.clamp(min=0).sqrt().sum()
    distance = difference.square().sum() + first.trace() + second.trace() - 2 * root
    return max(0.0, float(distance))


def kernel_distance(
    real: Tensor, fake: Tensor, *, subsets: int = _KID_SUBSETS, size: int = _KID_SIZE, seed: int = 0
) -> float:
    """Return the kernel distance of two sets of features (KID, https://arxiv.org/abs/1801.01401).

    The unbiased estimate of the squared maximum mean discrepancy with the kernel (x·y / D + 1)³, averaged over random
    subsets; it may be a little below 0.

    Args:
        real: ``[N, D]``.
        fake: ``[M, D]``.
        subsets: Number of subsets.
        size: Features in each, at most; all of them where there are fewer.
        seed: Of the subsets.
    """
    _check_features(real, fake, least=2)
    size = min(size, len(real), len(fake))
    chooser = torch.Generator().manual_seed(seed)
    total = 0.0
    for _ in range(subsets):
        x = real[torch.randperm(len(real), generator=chooser)[:size]].double()
        y = fake[torch.randperm(len(fake), generator=chooser)[:size]].double()
        within = [(kernel.sum() - kernel.trace()) / (size * (size - 1)) for kernel in (_kernel(x, x), _kernel(y, y))]
        total += float(within[0] + within[1] - 2 * _kernel(x, y).mean())
    return total / subsets


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def coverage_metrics(real: Tensor, fake: Tensor, *, neighbors: int = _NEIGHBORS) -> dict[str, float]:
    """Return precision, recall, density and coverage of generated features.

    Around each real (generated) feature lies a ball that reaches to its k-th nearest of the same kind. Precision: share
    of generated features in any real ball; recall: share of real ones in any generated ball
    (https://arxiv.org/abs/1904.06991). Density: real balls around a generated feature, on average, over k; coverage:
    share of real balls with a generated feature inside (https://arxiv.org/abs/2002.09797).

    Args:
        real: ``[N, D]``, N above k.
        fake: ``[M, D]``, M above k.
        neighbors: k.
    """
    _check_features(real, fake, least=neighbors + 1)
    real, fake = real.double(), fake.double()
    # A feature is its own nearest, at distance 0.
    real_radius = torch.cdist(real, real).kthvalue(neighbors + 1, dim=1).values
    fake_radius = torch.cdist(fake, fake).kthvalue(neighbors + 1, dim=1).values
    distance = torch.cdist(real, fake)
    in_real, in_fake = distance <= real_radius[:, None], distance <= fake_radius[None]
    return {
        "precision": float(in_real.any(0).double().mean()),
        "recall": float(in_fake.any(1).double().mean()),
        "density": float(in_real.double().sum(0).mean() / neighbors),
        "coverage": float((distance.min(1).values <= real_radius).double().mean()),
    }


def _check_features(real: Tensor, fake: Tensor, least: int) -> None:
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1] or min(len(real), len(fake)) < least:
        raise UsageError(
            f"features {list(real.shape)} and {list(fake.shape)}: accepted are two tensors [N, D] of the same D and "
            f"{least} rows or more; generate more images, or give more real ones"
        )


def score_features(real: Tensor, fake: Tensor) -> dict[str, float]:
    """Return all figures of two sets of features: ``fid``, ``kid``, and those of ``coverage_metrics``."""
    values = {"fid": frechet_distance(real, fake), "kid": kernel_distance(real, fake), **coverage_metrics(real, fake)}
    return {name: round(value, 6) for name, value in values.items()}


@torch.no_grad()
def same_latent(
    student: ImageGenerator, teacher: ImageGenerator, latents: Tensor, tokens: Tensor | None = None
) -> dict[str, float | None]:
    """Compare what two generators make of the same latents and conditions.

    Args:
        student: In eval mode.
        teacher: In eval mode.
        latents: ``[N, Z]``.
        tokens: ``[N, L]``, for generators with a condition.

    Returns:
        ``psnr`` (dB, of the mean squared error over all images, pixels clipped to 0 to 255), ``psnr_mean`` (mean of
        each image's own; it is never lower), both ``None`` where two images are the same, and ``ssim`` (mean of
        the usual windows of 11 pixels; ``None`` for images smaller than these).

    Raises:
        UsageError: The two do not take the same latents or do not make images of the same shape.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if student.latent_size != teacher.latent_size or student.preprocessing.shape != teacher.preprocessing.shape:
        raise UsageError(
            f"the generators do not compare: latents of {student.latent_size} and {teacher.latent_size}, images of "
            f"{student.preprocessing.shape} and {teacher.preprocessing.shape}"
        )
    squares = []
    similar: float | None = None
    for start in range(0, len(latents), _BATCH):
        latent, condition = latents[start : start + _BATCH], None if tokens is None else tokens[start : start + _BATCH]
        mine, theirs = (
            net(latent.to(net.device), None if condition is None else condition.to(net.device))
            .to(student.device)
            .clamp(0, 255)
            for net in (student, teacher)
        )
        squares.append((mine - theirs).double().square().mean((1, 2, 3)))
        if min(mine.shape[2:]) >= _SSIM_WINDOW:
            ssim = structural_similarity_index_measure(
                mine.double(), theirs.double(), data_range=255.0, reduction="sum"
            )
            similar = (similar or 0.0) + float(ssim)  # type: ignore[arg-type]
    errors = torch.cat(squares)
    psnr, each = 10 * (255**2 / errors.mean()).log10(), 10 * (255**2 / errors).log10()
    return {
        "psnr": round(float(psnr), 4) if psnr.isfinite() else None,
        "psnr_mean": round(float(each.mean()), 4) if each.isfinite().all() else None,
        "ssim": None if similar is None else round(similar / len(latents), 6),
    }
