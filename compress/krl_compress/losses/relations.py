"""Losses between the relations that student and teacher see among the samples of a batch.

Embeddings are (N, D): N samples, D numbers each (pooled features, say); D may differ between the two networks. Common
to all: any floating dtype, computed in float32 at least; one scalar comes back, at least 0; no gradient flows into the
teacher; shapes that are not accepted raise :class:`krl_runtime.errors.UsageError`.

These losses depend on which samples come together. They see only the tensors that they are given: over several
processes gather these first. What duplicating the batch does to the value is said with each.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from krl_runtime.errors import UsageError
from krl_train.models.relations import relative_distances

from ._common import check_pair, check_positive, full_precision, unit

__all__ = ["cc", "cosine", "crd_contrast", "pkt", "rkd_angle", "rkd_distance", "sp"]

_CHUNK_NUMBERS = 2**22  # how many numbers make a chunk of rkd_angle: 16 MiB in float32


def _check_embeddings(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    return check_pair(student, teacher, what="embeddings", form="N D", same="N")


@full_precision
def sp(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Preserve similarities: ‖G_s − G_t‖² / N², G = f fᵀ with f (N, the rest flattened) and rows of L2 norm 1.

    `Similarity-Preserving Knowledge Distillation <https://arxiv.org/abs/1907.09682>`_, of the last feature map before
    pooling. The usual weight is 3000. Duplicating the batch halves the value.

    Args:
        student_features: (N, ...).
        teacher_features: (N, ...), of any other shape.

    Returns:
        Scalar, at most 4 / N; 0 for equal features, and for features that differ by a rotation and a factor.
    """
    student, teacher = check_pair(student_features, teacher_features, what="features", form="N ...", same="N")
    student, teacher = student.flatten(1), teacher.flatten(1)
    return F.mse_loss(unit(student @ student.T), unit(teacher @ teacher.T))


@full_precision
def rkd_distance(student_embeddings: Tensor, teacher_embeddings: Tensor) -> Tensor:
    """Match the distances between samples, relative to their mean.

    Mean over all N² pairs of smooth_l1(d_s − d_t), d_ij = ‖e_i − e_j‖ / (mean of those distances that are not 0),
    smooth_l1(x) = x² / 2 for |x| < 1, |x| − 1/2 beyond.

    `Relational Knowledge Distillation <https://arxiv.org/abs/1904.05068>`_. Usual weights: 25 with 50 for the angle
    (classification), 1 with 2 (metric learning). Duplicating the batch leaves the value.

    Args:
        student_embeddings: (N, D_s).
        teacher_embeddings: (N, D_t).

    Returns:
        Scalar; 0 for embeddings that differ by a motion and a factor. Embeddings that are all equal count as
        distances 0.
    """
    student, teacher = _check_embeddings(student_embeddings, teacher_embeddings)
    return F.smooth_l1_loss(relative_distances(student), relative_distances(teacher))


@full_precision
def rkd_angle(student_embeddings: Tensor, teacher_embeddings: Tensor, *, chunk: int | None = None) -> Tensor:
    """Match the angles of all triplets of samples.

    Mean over all N³ triplets of smooth_l1(cos_s − cos_t), cos_ijk = cosine of the angle at e_i between e_j and e_k
    (0 where e_i equals one of them), smooth_l1 as in :func:`rkd_distance`.

    `Relational Knowledge Distillation <https://arxiv.org/abs/1904.05068>`_. Every triplet counts, but only ``chunk``
    samples take their turn as e_i at a time, forwards and backwards: the memory is chunk · N · (N + D) numbers and
    not N³; the backward pass computes each chunk anew. Duplicating the batch leaves the value.

    Args:
        student_embeddings: (N, D_s).
        teacher_embeddings: (N, D_t).
        chunk: Samples at a time, 1 or more; None takes what fits into 2²² numbers (16 MiB in float32); with the
            backward pass a chunk needs about ten times that. It changes the value by rounding alone.

    Returns:
        Scalar in [0, 1.5]; 0 for embeddings that differ by a motion and a factor.
    """
    student, teacher = _check_embeddings(student_embeddings, teacher_embeddings)
    samples = len(student)
    if chunk is None:
        chunk = max(1, _CHUNK_NUMBERS // (samples * (samples + max(student.shape[1], teacher.shape[1]))))
    check_positive(chunk=chunk)
    if chunk >= samples:
        return _angle_sum(student, teacher, 0, samples) / samples**3
    sums = [
        checkpoint(_angle_sum, student, teacher, start, chunk, use_reentrant=False, preserve_rng_state=False)
        for start in range(0, samples, chunk)
    ]
    return torch.stack(sums).sum() / samples**3


def _angle_sum(student: Tensor, teacher: Tensor, start: int, chunk: int) -> Tensor:
    return F.smooth_l1_loss(_cosines_at(student, start, chunk), _cosines_at(teacher, start, chunk), reduction="sum")


def _cosines_at(embeddings: Tensor, start: int, chunk: int) -> Tensor:
    """Cosines of the angles at the samples start ... start + chunk between all others, (chunk, N, N)."""
    directions = unit(embeddings[None] - embeddings[start : start + chunk, None])
    return directions @ directions.mT


@full_precision
def pkt(student_embeddings: Tensor, teacher_embeddings: Tensor) -> Tensor:
    """Transfer the probabilities of being neighbors.

    Mean over all N² pairs of q_t log((q_t + 1e-7) / (q_s + 1e-7)), with q_ij = (1 + cos(e_i, e_j)) / 2 divided by the
    sum of its row.

    `Learning Deep Representations with Probabilistic Knowledge Transfer
    <https://openaccess.thecvf.com/content_ECCV_2018/html/Nikolaos_Passalis_Learning_Deep_Representations_ECCV_2018_paper.html>`_,
    in the form of the authors' code. The usual weight is 30000. Duplicating the batch halves the value.

    Args:
        student_embeddings: (N, D_s).
        teacher_embeddings: (N, D_t).

    Returns:
        Scalar, at least 0 up to the 1e-7; 0 for embeddings that differ by a rotation and a factor per sample.
    """
    student, teacher = _check_embeddings(student_embeddings, teacher_embeddings)
    student, teacher = _neighborhood(student), _neighborhood(teacher)
    return (teacher * ((teacher + 1e-7).log() - (student + 1e-7).log())).mean()


def _neighborhood(embeddings: Tensor) -> Tensor:
    directions = unit(embeddings)
    similarity = (directions @ directions.T + 1) / 2
    return similarity / similarity.sum(dim=1, keepdim=True)


@full_precision
def cc(student_embeddings: Tensor, teacher_embeddings: Tensor, *, gamma: float = 0.4, order: int = 2) -> Tensor:
    """Match the correlations between samples: ‖K_s − K_t‖² / N², K_ij a Gaussian kernel of e_i and e_j.

    K_ij = exp(−2γ) Σ_{p=0..P} (2γ)^p / p! · (e_i·e_j)^p, the Taylor series of exp(−γ ‖e_i − e_j‖²) for embeddings of
    norm 1, to which they are brought first.

    `Correlation Congruence for Knowledge Distillation <https://arxiv.org/abs/1904.01802>`_. Duplicating the batch
    leaves the value. RepDistiller's benchmark, whose row "CC" most papers repeat, ran another formula, the products of
    neighboring samples' errors, which depends on the order of the batch.

    Args:
        student_embeddings: (N, D_s).
        teacher_embeddings: (N, D_t).
        gamma: γ.
        order: P, the highest power.

    Returns:
        Scalar; 0 for embeddings that differ by a rotation and a factor per sample.
    """
    check_positive(gamma=gamma, order=order)
    student, teacher = _check_embeddings(student_embeddings, teacher_embeddings)
    return F.mse_loss(_gaussian_kernel(student, gamma, order), _gaussian_kernel(teacher, gamma, order))


def _gaussian_kernel(embeddings: Tensor, gamma: float, order: int) -> Tensor:
    directions = unit(embeddings)
    cosines = directions @ directions.T
    series = [(2 * gamma) ** p / math.factorial(p) * cosines**p for p in range(order + 1)]
    return math.exp(-2 * gamma) * torch.stack(series).sum(dim=0)


@full_precision
def cosine(student_embeddings: Tensor, teacher_embeddings: Tensor) -> Tensor:
    """Match the embeddings themselves: the mean of 1 − cos(e_s, e_t) over the samples.

    Half the squared distance of embeddings of length 1, as in `Learning Metrics from Teachers
    <https://arxiv.org/abs/1904.03624>`_ (there of an
    absolute teacher). A student that has it can search among the teacher's embeddings.
    Duplicating the batch leaves the value.

    Args:
        student_embeddings: (N, D).
        teacher_embeddings: (N, D).

    Returns:
        Scalar in [0, 2]; 0 for embeddings of the same directions.
    """
    student, teacher = check_pair(student_embeddings, teacher_embeddings, what="embeddings", form="N D", same="N D")
    return (1 - (unit(student) * unit(teacher)).sum(dim=1)).mean()


@full_precision
def crd_contrast(log_scores: Tensor, *, samples: int) -> Tensor:
    """Tell the pair from the same image from K pairs of different images, by noise-contrastive estimation.

    mean_n [−log h_n0 − Σ_{k=1..K} log(1 − h_nk)], h = g / (g + K / M), M the samples of the data set, g = exp of the
    scores. Computed as a logistic of log g − log(K / M).

    `Contrastive Representation Distillation <https://arxiv.org/abs/1910.10699>`_;
    :class:`krl_compress.losses.adapters.CRD` makes the scores and adds up both directions.

    Args:
        log_scores: (N, 1 + K), log g: the pair of the same image first, then K others, K at least 1.
        samples: M.

    Returns:
        Scalar. It has no simple minimum; with scores that say nothing (g = 1 / M everywhere) it is
        log(1 + K) + K log(1 + 1 / K).
    """
    check_positive(samples=samples)
    if log_scores.ndim != 2 or len(log_scores) == 0 or log_scores.shape[1] < 2:
        raise UsageError(f"scores {tuple(log_scores.shape)}: accepted is (N, 1 + K), N and K at least 1")
    logits = log_scores - math.log((log_scores.shape[1] - 1) / samples)
    return -(F.logsigmoid(logits[:, 0]) + F.logsigmoid(-logits[:, 1:]).sum(dim=1)).mean()
