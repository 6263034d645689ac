"""Losses between the logits (N, C) of a student and of a teacher: N samples, C classes.

Common to all: any floating dtype, computed in float32 at least; one scalar comes back, a mean over the samples, so
that duplicating the batch leaves it as it is, unless the function says otherwise; finite, with a finite gradient,
for logits up to ±1e4; no gradient flows into the teacher; shapes, labels or hyperparameters that are not accepted
raise :class:`krl_runtime.errors.UsageError`. The loss on the labels (cross-entropy) is never included. In the
formulas z are logits, p = softmax(z), KL(t ‖ s) = Σ_c t_c log(t_c / s_c), s is the student, t the teacher, y the
label, and T the temperature.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Concatenate, ParamSpec

import torch
import torch.nn.functional as F
from torch import Tensor

from krl_runtime.errors import UsageError

from ._common import binary_kl, check_logits, check_positive, full_precision, kl, soften

__all__ = [
    "batch_correlation",
    "class_correlation",
    "dist",
    "hard_label",
    "kd",
    "logistic",
    "logit_mse",
    "mlkd",
    "soft_bce",
    "standardize",
    "standardize_logits",
    "ttm",
    "wttm",
]

P = ParamSpec("P")


@full_precision
def kd(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Distil the teacher's softened class probabilities.

    T² · mean_n KL(softmax(z_t / T) ‖ softmax(z_s / T)).

    `Distilling the Knowledge in a Neural Network <https://arxiv.org/abs/1503.02531>`_. T² keeps the gradient of about
    the same size over T; for T → ∞ the loss goes to Σ_c (z_s − z_t)² / (2C) of logits with their row means taken off.
    The "soft" loss of DeiT's code divides by N·C instead of N: it is ``kd(...) / C``.

    Args:
        student_logits: (N, C).
        teacher_logits: (N, C).
        temperature: T; 4 is usual for CIFAR, 1 for ImageNet.

    Returns:
        Scalar, at least 0; 0 for equal probabilities.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> round(float(kd(student, teacher, temperature=1.0)), 4), float(kd(teacher, teacher))
        (0.4621, 0.0)
    """
    student, teacher = soften(student_logits, teacher_logits, temperature)
    return temperature**2 * kl(student, teacher).mean()


@full_precision
def logistic(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Distil each class as a yes/no question of its own; also for multi-label data.

    T² · mean_n Σ_c [q_t log(q_t / q_s) + (1 − q_t) log((1 − q_t) / (1 − q_s))], with q = sigmoid(z / T).

    The logit part of `Multi-Label Knowledge Distillation <https://arxiv.org/abs/2308.06453>`_; T and T² are as in
    ``kd``. At T = 1 it has the gradient of binary cross-entropy with the teacher's sigmoids as targets, summed over
    the classes (and so grows with their number), and it is smaller by the teacher's entropy.

    Args:
        student_logits: (N, C).
        teacher_logits: (N, C).
        temperature: T.

    Returns:
        Scalar, at least 0; 0 for equal logits.
    """
    student, teacher = soften(student_logits, teacher_logits, temperature)
    return temperature**2 * binary_kl(student, teacher).sum(dim=1).mean()


@full_precision
def soft_bce(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Binary cross-entropy with the teacher's softmax probabilities as targets.

    Mean over samples and classes of −[p_t log q_s + (1 − p_t) log(1 − q_s)], with q = sigmoid(z).

    `VanillaKD <https://arxiv.org/abs/2305.15781>`_, for students that are trained with binary cross-entropy.

    Args:
        student_logits: (N, C).
        teacher_logits: (N, C).

    Returns:
        Scalar; its minimum is the mean binary entropy of p_t, where sigmoid(z_s) = softmax(z_t), and not 0.
    """
    student, teacher = check_logits(student_logits, teacher_logits)
    return F.binary_cross_entropy_with_logits(student, teacher.softmax(dim=1))


@full_precision
def hard_label(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy with the class that the teacher picks.

    mean_n −log p_s[argmax z_t]. `DeiT <https://arxiv.org/abs/2012.12877>`_'s hard distillation.

    Args:
        student_logits: (N, C).
        teacher_logits: (N, C).

    Returns:
        Scalar, greater than 0 (its infimum) for C > 1.
    """
    student, teacher = check_logits(student_logits, teacher_logits)
    return F.cross_entropy(student, teacher.argmax(dim=1))


@full_precision
def logit_mse(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean over samples and classes of (z_s − z_t)².

    `Do Deep Nets Really Need to be Deep? <https://arxiv.org/abs/1312.6184>`_ (which writes the sum over classes and
    a half: C / 2 times this).

    Args:
        student_logits: (N, C).
        teacher_logits: (N, C).

    Returns:
        Scalar, at least 0; 0 for equal logits.

    Example:
        >>> import torch
        >>> float(logit_mse(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]])))
        2.5
    """
    return F.mse_loss(*check_logits(student_logits, teacher_logits))


@full_precision
def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """Match the correlations of the probabilities, within each sample and within each class.

    T² · [β (1 − mean_n ρ(p_s[n], p_t[n])) + γ (1 − mean_c ρ(p_s[:, c], p_t[:, c]))], p = softmax(z / T), ρ Pearson's
    correlation, with 1e-8 added to the product of the norms (so a class that is constant over the batch counts as 0).

    `Knowledge Distillation from A Stronger Teacher <https://arxiv.org/abs/2205.10536>`_; T = 1 on ImageNet, 4 on
    CIFAR. Positive affine changes of the rows of p_s leave the first part alone, and those of the columns the second.
    The second part couples the samples of a batch: over several processes gather the logits first. A batch of one
    has no second part (it is the constant T² γ).

    Args:
        student_logits: (N, C).
        teacher_logits: (N, C).
        beta: β, weight of the relation between classes.
        gamma: γ, weight of the relation within a class.
        temperature: T.

    Returns:
        Scalar in [0, 2 T² (β + γ)]; 0, up to the 1e-8, for equal probabilities.
    """
    student, teacher = soften(student_logits, teacher_logits, temperature)
    student, teacher = student.softmax(dim=1), teacher.softmax(dim=1)
    inter = 1 - _correlation(student, teacher).mean()
    intra = 1 - _correlation(student.T, teacher.T).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation of the rows of two matrices (A, B), (A,)."""
    first, second = (rows - rows.mean(dim=1, keepdim=True) for rows in (first, second))
    norms: Tensor = torch.linalg.vector_norm(first, dim=1) * torch.linalg.vector_norm(second, dim=1)
    return (first * second).sum(dim=1) / (norms + 1e-8)


@full_precision
def ttm(student_logits: Tensor, teacher_logits: Tensor, *, power: float = 0.1) -> Tensor:
    """Match the student, at temperature 1, with the teacher's probabilities raised to a power.

    mean_n KL(p_t^λ / Σ p_t^λ ‖ p_s): a temperature 1 / λ on the teacher alone, and no T².

    `Knowledge Distillation Based on Transformed Teacher Matching <https://arxiv.org/abs/2402.11148>`_.

    Args:
        student_logits: (N, C).
        teacher_logits: (N, C).
        power: λ, greater than 0; the authors use 0.1 to 0.2, with a weight of 45 or so.

    Returns:
        Scalar, at least 0; 0 where the student has the flattened probabilities (and not where it equals the teacher).
    """
    check_positive(power=power)
    student, teacher = check_logits(student_logits, teacher_logits)
    return kl(student, power * teacher).mean()


@full_precision
def wttm(student_logits: Tensor, teacher_logits: Tensor, *, power: float = 0.2) -> Tensor:
    """:func:`ttm` with each sample weighted by Σ_c p_t^λ, the flatness of the teacher's answer.

    mean_n U_n KL(p_t^λ / Σ p_t^λ ‖ p_s), U = Σ_c p_t^λ, between 1 (certain) and C^(1 − λ) (uniform) for λ < 1.

    `Knowledge Distillation Based on Transformed Teacher Matching <https://arxiv.org/abs/2402.11148>`_.

    Args:
        student_logits: (N, C).
        teacher_logits: (N, C).
        power: λ, greater than 0; a weight of 4 is usual.

    Returns:
        Scalar, at least 0; 0 where the student has the flattened probabilities.
    """
    check_positive(power=power)
    student, teacher = check_logits(student_logits, teacher_logits)
    flatness = (power * F.log_softmax(teacher, dim=1)).logsumexp(dim=1).exp()
    return (flatness * kl(student, power * teacher)).mean()


@full_precision
def batch_correlation(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Match how alike the samples of a batch are: ‖P_s P_sᵀ − P_t P_tᵀ‖² / N, with P = softmax(z / T), (N, C).

    The batch level of `Multi-Level Logit Distillation
    <https://openaccess.thecvf.com/content/CVPR2023/html/Jin_Multi-Level_Logit_Distillation_CVPR_2023_paper.html>`_.
    It couples the samples of a batch (over several processes gather the logits first) and grows with N: duplicating
    the batch doubles it. No T².

    Args:
        student_logits: (N, C).
        teacher_logits: (N, C).
        temperature: T.

    Returns:
        Scalar, at least 0; 0 for equal probabilities.
    """
    student, teacher = soften(student_logits, teacher_logits, temperature)
    student, teacher = student.softmax(dim=1), teacher.softmax(dim=1)
    return (student @ student.T - teacher @ teacher.T).square().sum() / len(student)


@full_precision
def class_correlation(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Match how the classes go together in a batch: ‖P_sᵀ P_s − P_tᵀ P_t‖² / C, with P = softmax(z / T), (N, C).

    The class level of multi-level logit distillation; see :func:`batch_correlation`. The products are sums over the
    batch: duplicating it makes the loss four times as large. No T².

    Args:
        student_logits: (N, C).
        teacher_logits: (N, C).
        temperature: T.

    Returns:
        Scalar, at least 0; 0 for equal probabilities.
    """
    student, teacher = soften(student_logits, teacher_logits, temperature)
    student, teacher = student.softmax(dim=1), teacher.softmax(dim=1)
    return (student.T @ student - teacher.T @ teacher).square().sum() / student.shape[1]


def mlkd(
    student_logits: Tensor, teacher_logits: Tensor, *, temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0)
) -> Tensor:
    """Distil on three levels, sample, batch and class, at several temperatures.

    Σ_T [kd + batch_correlation + class_correlation], each at temperature T.

    `Multi-Level Logit Distillation
    <https://openaccess.thecvf.com/content/CVPR2023/html/Jin_Multi-Level_Logit_Distillation_CVPR_2023_paper.html>`_.
    This is the sum as the paper describes it, and not what the authors' code computes: that code scales the terms
    with masks made from the median confidence of the teacher, feeds two views of each image (weakly and strongly
    augmented) and drops some of the terms of the strong view. Published results come from that code. The usual weight
    is 1.

    Args:
        student_logits: (N, C).
        teacher_logits: (N, C).
        temperatures: Every T, at least one.

    Returns:
        Scalar, at least 0; 0 for equal probabilities. Grows with the batch as its parts do.
    """
    if not temperatures:
        raise UsageError("temperatures is empty: accepted are one or more numbers greater than 0")
    levels = (kd, batch_correlation, class_correlation)
    terms = [level(student_logits, teacher_logits, temperature=t) for t in temperatures for level in levels]
    return torch.stack(terms).sum()


@full_precision
def standardize_logits(logits: Tensor) -> Tensor:
    """Bring the logits of each sample to mean 0 and standard deviation 1 over the classes.

    (z − mean) / (1e-7 + std), std with C − 1; a gradient flows through mean and std. A row of equal logits has no
    direction and gives zeros, and no gradient (where the formula's would be of the order of 1e7).

    `Logit Standardization in Knowledge Distillation <https://arxiv.org/abs/2403.01427>`_.

    Args:
        logits: (N, C), C at least 2.

    Returns:
        (N, C); the same for a · z + b as for z, with a > 0.

    Example:
        >>> import torch
        >>> standardize_logits(torch.tensor([[1.0, 2.0, 3.0]])).tolist()
        [[-0.9999998807907104, 0.0, 0.9999998807907104]]
    """
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise UsageError(f"logits {tuple(logits.shape)}: standardizing accepts (N, C), C at least 2")
    centered = logits - logits.mean(dim=1, keepdim=True)
    variance = centered.var(dim=1, keepdim=True)
    flat = variance <= 1e-14  # the square of 1e-7; the square root has no gradient at 0
    return (centered / (1e-7 + variance.masked_fill(flat, 1).sqrt())).masked_fill(flat, 0)


def standardize(
    loss: Callable[Concatenate[Tensor, Tensor, P], Tensor],
) -> Callable[Concatenate[Tensor, Tensor, P], Tensor]:
    """Wrap a loss between logits, so that it sees the standardized logits of both networks.

    ``standardize(kd)(student_logits, teacher_logits, temperature=2.0)``; see :func:`standardize_logits`. The paper
    uses T = 2 and a weight of 9. The loss no longer depends on the scale and the offset of a row of logits:
    cross-entropy has to set the student's scale, and with it its confidence.

    Args:
        loss: Takes student logits and teacher logits first, (N, C) both, C at least 2.

    Returns:
        The loss, with the further arguments that it had.
    """

    @functools.wraps(loss)
    def wrapper(student_logits: Tensor, teacher_logits: Tensor, /, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        return loss(standardize_logits(student_logits), standardize_logits(teacher_logits), *args, **kwargs)

    return wrapper
