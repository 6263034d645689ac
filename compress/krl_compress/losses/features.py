"""Losses between feature maps (N, C, H, W) of a student and of a teacher: N samples, C channels.

Common to all: one pair of maps (sum over the places yourself), any floating dtype, computed in float32 at least; one
scalar comes back, at least 0, that duplicating the batch leaves as it is unless the function says otherwise; no
gradient flows into the teacher; shapes that are not accepted raise :class:`krl_runtime.errors.UsageError`. Where the
channels have to agree and do not, put an adapter of :mod:`krl_compress.losses.adapters` on the student's map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from krl_runtime.errors import UsageError

from ._common import check_pair, check_positive, full_precision, unit

__all__ = ["at", "hcl", "hint", "nst", "spatial_affinity", "wkd_f"]


def _check_maps(student: Tensor, teacher: Tensor, same: str) -> tuple[Tensor, Tensor]:
    return check_pair(student, teacher, what="features", form="N C H W", same=same)


def _to_smaller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool two maps to the smaller height and the smaller width of both."""
    size = min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3])
    first, second = (m if m.shape[2:] == size else F.adaptive_avg_pool2d(m, size) for m in (first, second))
    return first, second


@full_precision
def hint(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Regress the teacher's features: the mean over all elements of (f_s − f_t)².

    `FitNets <https://arxiv.org/abs/1412.6550>`_; the student's features come through a regressor
    (:func:`krl_compress.losses.adapters.regressor`). The usual weight is 100.

    Args:
        student_features: (N, ...), behind the regressor.
        teacher_features: The same shape.

    Returns:
        Scalar; 0 for equal features.

    Raises:
        UsageError: The shapes differ.
    """
    student, teacher = check_pair(student_features, teacher_features, what="features", form="N ...", same="N")
    if student.shape != teacher.shape:
        raise UsageError(
            f"student features {tuple(student.shape)} and teacher features {tuple(teacher.shape)}: accepted are equal "
            "shapes; krl_compress.losses.adapters.regressor(student_shape, teacher_shape) makes the adapter"
        )
    return F.mse_loss(student, teacher)


@full_precision
def at(student_features: Tensor, teacher_features: Tensor, *, power: float = 2.0) -> Tensor:
    """Transfer attention: where in the image the activations are.

    Mean over samples and positions of (a_s − a_t)², with a = Σ_c |f_c|^p, flattened to H·W and brought to L2 norm 1.
    The larger map is average-pooled first. A map of zeros counts as a = 0.

    `Paying More Attention to Attention <https://arxiv.org/abs/1612.03928>`_, in the form of the authors' code (the
    paper's equation has the norm of the difference instead of the mean square). The usual weight is 1000.

    Args:
        student_features: (N, C_s, H_s, W_s).
        teacher_features: (N, C_t, H_t, W_t).
        power: p.

    Returns:
        Scalar, at most 2 / (H·W); 0 for equal features, and for features that differ by a factor per sample.
    """
    check_positive(power=power)
    student, teacher = _to_smaller(*_check_maps(student_features, teacher_features, "N"))
    student, teacher = (unit(m.abs().pow(power).mean(dim=1).flatten(1)) for m in (student, teacher))
    return F.mse_loss(student, teacher)


@full_precision
def nst(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Match the distributions of the channels' activation patterns (neuron selectivity transfer).

    mean_n MMD² between the sets of channels, each flattened to H·W and brought to L2 norm 1, with the kernel
    k(a, b) = (a·b)²: mean k(s, s') + mean k(t, t') − 2 mean k(s, t). The larger map is average-pooled first.

    `Like What You Like <https://arxiv.org/abs/1707.01219>`_. The usual weight is 50.

    Args:
        student_features: (N, C_s, H_s, W_s).
        teacher_features: (N, C_t, H_t, W_t).

    Returns:
        Scalar in [0, 2]; 0 for equal features.
    """
    student, teacher = _to_smaller(*_check_maps(student_features, teacher_features, "N"))
    student, teacher = unit(student.flatten(2)), unit(teacher.flatten(2))
    pairs = ((student, student, 1), (teacher, teacher, 1), (student, teacher, -2))
    return torch.stack([sign * (a @ b.mT).square().mean() for a, b, sign in pairs]).sum()


@full_precision
def hcl(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Compare features at several resolutions (hierarchical context loss).

    [MSE(f_s, f_t) + Σ_k 2^-k MSE(pool_k f_s, pool_k f_t)] / (1 + Σ_k 2^-k), where pool_1, pool_2, … average-pool to
    those of 4 × 4, 2 × 2 and 1 × 1 that are smaller than the height of the map.

    `Distilling Knowledge via Knowledge Review <https://arxiv.org/abs/2104.09044>`_; the student's features come
    from :class:`krl_compress.losses.adapters.Review`, and the losses of all places are added up.

    Args:
        student_features: (N, C, H, W).
        teacher_features: The same shape.

    Returns:
        Scalar; 0 for equal features.
    """
    student, teacher = _check_maps(student_features, teacher_features, "N C H W")
    sizes = [size for size in (4, 2, 1) if size < student.shape[2]]
    terms = [F.mse_loss(student, teacher)]
    terms += [F.mse_loss(F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)) for size in sizes]
    weights = [0.5**k for k in range(len(terms))]
    return torch.stack([weight * term for weight, term in zip(weights, terms, strict=True)]).sum() / sum(weights)


@full_precision
def wkd_f(student_features: Tensor, teacher_features: Tensor, *, mean_weight: float = 4.0) -> Tensor:
    """Match mean and deviation of each channel (Wasserstein distance between diagonal Gaussians).

    mean_n Σ_c [w (μ_s − μ_t)² + (σ_s − σ_t)²], μ and σ over the H·W positions of a channel, σ = sqrt(var + 1e-5)
    with H·W − 1. The sum over the channels grows with their number.

    WKD-F of `Wasserstein Distance Rivals Kullback-Leibler Divergence <https://arxiv.org/abs/2412.08139>`_, of the
    last feature map behind a 1 × 1 convolution; the authors' weight is 0.08.

    Args:
        student_features: (N, C, H, W), H·W at least 2.
        teacher_features: (N, C, H', W'), H'·W' at least 2.
        mean_weight: w, weight of the means.

    Returns:
        Scalar; 0 for channels of equal mean and deviation.
    """
    student, teacher = _check_maps(student_features, teacher_features, "N C")
    student, teacher = student.flatten(2), teacher.flatten(2)
    if min(student.shape[2], teacher.shape[2]) < 2:
        raise UsageError(
            f"student features {tuple(student_features.shape)} and teacher features {tuple(teacher_features.shape)}: "
            "a deviation needs at least 2 positions H·W; take the map before global pooling"
        )
    means = student.mean(dim=2) - teacher.mean(dim=2)
    deviations = (student.var(dim=2) + 1e-5).sqrt() - (teacher.var(dim=2) + 1e-5).sqrt()
    return (mean_weight * means.square() + deviations.square()).sum(dim=1).mean()


@full_precision
def spatial_affinity(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Match how alike the positions of a map are to each other.

    Mean of abs(A_s − A_t) over samples and pairs of positions, A = fᵀ f with the channels of each position brought to
    L2 norm 1, so that the number of channels may differ. The memory is N (H·W)² numbers: for small patches.

    `FAKD <https://doi.org/10.1109/ICIP40778.2020.9190683>`_ for super-resolution; the authors' weight is 10 beside
    images in levels of 255, which is 0.04 beside images of 0 to 1.

    Args:
        student_features: (N, C_s, H, W).
        teacher_features: (N, C_t, H, W).

    Returns:
        Scalar in [0, 2]; 0 for features that differ by a factor at each position.
    """
    student, teacher = _check_maps(student_features, teacher_features, "N H W")
    student, teacher = (unit(m.flatten(2).mT) for m in (student, teacher))
    return (student @ student.mT - teacher @ teacher.mT).abs().mean()
