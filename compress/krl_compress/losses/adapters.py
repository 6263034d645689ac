"""The parts of distillation losses that are learnt or remembered; a student is exported without them.

Their parameters belong into the student's optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krl_runtime.errors import UsageError

from ._common import check_pair, check_positive, full_precision, unit
from .relations import crd_contrast

__all__ = ["CRD", "Review", "regressor"]


def regressor(student_shape: Sequence[int], teacher_shape: Sequence[int], *, relu: bool = True) -> nn.Module:
    """Make the adapter that brings a student's features to the shape of the teacher's.

    Maps: a convolution, batch normalization, ReLU. Height and width are kept by a 1 × 1 kernel, halved by 3 × 3 with
    stride 2, doubled by a transposed 4 × 4 with stride 2, and otherwise made smaller by an unpadded kernel of
    1 + H_s − H_t. Vectors: a linear layer.

    `FitNets <https://arxiv.org/abs/1412.6550>`_, in the form that published comparisons ran.

    Args:
        student_shape: Of one sample, (C, H, W) or (D,).
        teacher_shape: Likewise.
        relu: End in ReLU, for teacher features that are taken behind one; maps alone.

    Returns:
        A module from (N, *student_shape) to (N, *teacher_shape).

    Raises:
        UsageError: Shapes of other forms, or a map that would have to grow by anything but 2.
    """
    if len(student_shape) == len(teacher_shape) == 1:
        return nn.Linear(student_shape[0], teacher_shape[0])
    if not len(student_shape) == len(teacher_shape) == 3:
        raise UsageError(
            f"student features {tuple(student_shape)} and teacher features {tuple(teacher_shape)}: accepted are two "
            "shapes (C, H, W) or two shapes (D,), of one sample"
        )
    (channels, *student_size), (out_channels, *teacher_size) = student_shape, teacher_shape
    convolution: nn.Module
    if student_size == [2 * length for length in teacher_size]:
        convolution = nn.Conv2d(channels, out_channels, 3, stride=2, padding=1, bias=False)
    elif teacher_size == [2 * length for length in student_size]:
        convolution = nn.ConvTranspose2d(channels, out_channels, 4, stride=2, padding=1, bias=False)
    elif all(s >= t for s, t in zip(student_size, teacher_size, strict=True)):
        kernel = tuple(1 + s - t for s, t in zip(student_size, teacher_size, strict=True))
        convolution = nn.Conv2d(channels, out_channels, (kernel[0], kernel[1]), bias=False)
    else:
        raise UsageError(
            f"student features {tuple(student_shape)} for teacher features {tuple(teacher_shape)}: accepted are height "
            "and width equal to the teacher's, half of them, or larger; take the student's features at an earlier place"
        )
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU() if relu else nn.Identity())


class _Fusion(nn.Module):
    """Attention based fusion: one place of the student, seen together with what the deeper places gave."""

    def __init__(self, channels: int, middle: int, out_channels: int, *, deepest: bool) -> None:
        super().__init__()
        enter = nn.Conv2d(channels, middle, 1, bias=False)
        leave = nn.Conv2d(middle, out_channels, 3, padding=1, bias=False)
        self.enter = nn.Sequential(enter, nn.BatchNorm2d(middle))
        self.leave = nn.Sequential(leave, nn.BatchNorm2d(out_channels))
        self.attention = None if deepest else nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid())
        for convolution in (enter, leave):
            nn.init.kaiming_uniform_(convolution.weight, a=1)

    def forward(self, features: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the map for the teacher, (N, out_channels, *size), and the one for the next place."""
        mixed = self.enter(features)
        if self.attention is not None and deeper is not None:
            deeper = F.interpolate(deeper, mixed.shape[2:], mode="nearest")
            share = self.attention(torch.cat([mixed, deeper], dim=1))
            mixed = mixed * share[:, :1] + deeper * share[:, 1:]
        if mixed.shape[2:] != size:
            mixed = F.interpolate(mixed, size, mode="nearest")
        return self.leave(mixed), mixed


class Review(nn.Module):
    """Knowledge review: each place of the student learns from the teacher together with all deeper places.

    `Distilling Knowledge via Knowledge Review <https://arxiv.org/abs/2104.09044>`_. From the deepest place to the
    shallowest, a 1 × 1 convolution with batch normalization brings the student's map to ``middle`` channels, an
    attention map for each of the two weighs it against what came from the deeper places, and a 3 × 3 convolution with
    batch normalization gives the teacher's channels. The loss is the sum of
    :func:`krl_compress.losses.features.hcl` over the places.

    Args:
        student_channels: Channels at each place, from shallow to deep; the authors' last place is the pooled feature
            (N, C, 1, 1).
        teacher_channels: Likewise, as many places.
        middle: Channels inside; None takes the student's at its deepest place, at most 512.

    Raises:
        UsageError: The numbers of places differ, or are 0.
    """

    def __init__(
        self, student_channels: Sequence[int], teacher_channels: Sequence[int], *, middle: int | None = None
    ) -> None:
        super().__init__()
        if not student_channels or len(student_channels) != len(teacher_channels):
            raise UsageError(
                f"{len(student_channels)} places in the student and {len(teacher_channels)} in the teacher: "
                "accepted is the same number, at least one"
            )
        middle = min(512, student_channels[-1]) if middle is None else middle
        deepest = len(student_channels) - 1
        self.fusions = nn.ModuleList(
            _Fusion(student, middle, teacher, deepest=place == deepest)
            for place, (student, teacher) in enumerate(zip(student_channels, teacher_channels, strict=True))
        )

    def forward(self, student_features: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Review the student's features.

        Args:
            student_features: (N, C, H, W) at each place, from shallow to deep.
            sizes: Height and width of the teacher's features at each place.

        Returns:
            For each place, from shallow to deep, a map of the shape of the teacher's.

        Raises:
            UsageError: Features or sizes are not one for each place.
        """
        if not len(student_features) == len(sizes) == len(self.fusions):
            raise UsageError(
                f"{len(student_features)} student features and {len(sizes)} sizes: accepted are {len(self.fusions)}"
            )
        reviewed: list[Tensor] = []
        deeper = None
        for fusion, features, size in zip(
            reversed(self.fusions), reversed(student_features), reversed(sizes), strict=True
        ):
            out, deeper = fusion(features, deeper, size)
            reviewed.insert(0, out)
        return reviewed


class CRD(nn.Module):
    """Contrastive representation distillation: know an image again among K images of other classes.

    `Contrastive Representation Distillation <https://arxiv.org/abs/1910.10699>`_. Both networks are embedded (a
    learnt linear layer each, L2 norm 1); a bank remembers every sample's embedding from each network; the score of a
    pair is the inner product of a fresh embedding of one network and a remembered one of the other, divided by the
    temperature; the loss is :func:`krl_compress.losses.relations.crd_contrast` of both directions, added up. The
    normalizing constant is set from the first batch and kept. Negatives are drawn with replacement, independently
    for each sample, from the samples of other classes. The authors' weight is 0.8.

    Banks, constants and the number of the draw are buffers: a resumed training draws on as it would have. Over
    several processes give gathered tensors to equal copies: with one seed they stay equal.
    Memory: the banks, 2 · M · dimensions numbers, and about 2 · N · M for the scores of a batch of N.

    Args:
        student_channels: Length D_s of the student's feature.
        teacher_channels: Length D_t of the teacher's.
        labels: (M,), class of every sample of the data set, integers from 0, at least 2 classes.
        dimensions: Length of an embedding.
        negatives: K.
        temperature: Of the scores.
        momentum: How much of a remembered embedding stays when the sample comes again.
        seed: Of the banks' first values and of the draws.

    Raises:
        UsageError: Labels or hyperparameters are not these.
    """

    order: Tensor
    first: Tensor
    count: Tensor
    labels: Tensor
    student_bank: Tensor
    teacher_bank: Tensor
    log_constants: Tensor
    draws: Tensor

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        labels: Tensor,
        *,
        dimensions: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_positive(dimensions=dimensions, negatives=negatives, temperature=temperature)
        integers = labels.ndim == 1 and labels.dtype in (torch.int64, torch.int32)
        if not integers or bool((labels == labels[:1]).all()) or bool((labels < 0).any()):
            raise UsageError(
                f"labels {tuple(labels.shape)} of {labels.dtype}: accepted is one class, an integer from 0, for every "
                "sample of the data set, with at least 2 classes, because negatives come from other classes"
            )
        self.negatives, self.temperature, self.momentum, self.seed = negatives, temperature, momentum, seed
        self.student_embedding = nn.Linear(student_channels, dimensions)
        self.teacher_embedding = nn.Linear(teacher_channels, dimensions)
        # In the order of the classes, the samples of one class are the stretch first ... first + count.
        counts = labels.bincount()
        for name, values in {
            "labels": labels.long(),
            "order": labels.argsort(stable=True),
            "count": counts,
            "first": counts.cumsum(0) - counts,
        }.items():
            self.register_buffer(name, values, persistent=False)
        generator = torch.Generator().manual_seed(seed)
        bound = (3 / dimensions) ** 0.5  # uniform values of variance 1 / dimensions: norms of about 1
        for name in ("student_bank", "teacher_bank"):
            bank = (2 * torch.rand(len(labels), dimensions, generator=generator) - 1) * bound
            self.register_buffer(name, bank)
        self.register_buffer("log_constants", torch.zeros(2))
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def forward(self, student: Tensor, teacher: Tensor, index: Tensor, *, negatives: Tensor | None = None) -> Tensor:
        """Compute the loss, and in training mode remember the batch.

        Args:
            student: Pooled features, (N, D_s).
            teacher: Pooled features, (N, D_t); no gradient flows into them, but one into the embedding.
            index: (N,), int64, place of each sample in the data set, each at most once.
            negatives: (N, K), int64, places of the negatives; None draws them.

        Returns:
            Scalar, a mean over the samples.

        Raises:
            UsageError: The shapes are not these.
        """
        student, teacher = check_pair(student, teacher, what="embeddings", form="N D", same="N")
        if index.shape != student.shape[:1] or index.dtype != torch.int64:
            raise UsageError(
                f"index {tuple(index.shape)} of {index.dtype} for embeddings {tuple(student.shape)}: accepted is the "
                f"place of each sample in the data set, ({len(student)},), int64"
            )
        embeddings = (
            self.student_embedding(student.to(self.student_embedding.weight.dtype)),
            self.teacher_embedding(teacher.to(self.teacher_embedding.weight.dtype)),
        )
        return self._contrast(*embeddings, index, self._draw(index) if negatives is None else negatives)

    @full_precision
    def _contrast(self, student: Tensor, teacher: Tensor, index: Tensor, negatives: Tensor) -> Tensor:
        student, teacher = unit(student), unit(teacher)
        pairs = torch.cat([index[:, None], negatives], dim=1)
        # One product with the whole bank is much cheaper than gathering 1 + K embeddings for each sample.
        scores = [
            (fresh @ bank.T).gather(1, pairs) / self.temperature
            for fresh, bank in ((student, self.teacher_bank), (teacher, self.student_bank))
        ]
        samples = len(self.labels)
        with torch.no_grad():
            if self.draws == 0:
                means = [s.flatten().logsumexp(0) - math.log(s.numel() / samples) for s in scores]
                self.log_constants = torch.stack(means)
            if self.training:
                self.draws += 1
                self.student_bank = self._remember(self.student_bank, student, index)
                self.teacher_bank = self._remember(self.teacher_bank, teacher, index)
        both = [
            crd_contrast(score - constant, samples=samples)
            for score, constant in zip(scores, self.log_constants, strict=True)
        ]
        return both[0] + both[1]

    def _remember(self, bank: Tensor, fresh: Tensor, index: Tensor) -> Tensor:
        # A new tensor: the backward pass of this very step still needs the old one.
        return bank.index_copy(0, index, unit(self.momentum * bank[index] + (1 - self.momentum) * fresh))

    def _draw(self, index: Tensor) -> Tensor:
        """Draw (N, K) samples, uniformly from those of other classes than each sample's."""
        generator = torch.Generator(index.device).manual_seed(self.seed * 1_000_003 + int(self.draws))
        label = self.labels[index]
        first, count = self.first[label, None], self.count[label, None]
        chances = torch.rand(len(index), self.negatives, generator=generator, dtype=torch.float64, device=index.device)
        place = (chances * (len(self.labels) - count)).long()
        return self.order[place + count * (place >= first)]
