"""Losses between logits (N, C) that treat the class of the label, (N,) integers in [0, C), apart from the others.

What :mod:`krl_compress.losses.logits` says about all its losses holds here; C is at least 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import binary_kl, check_labels, check_logits, check_positive, full_precision, kl, soften

__all__ = ["dkd", "dkd_parts", "nkd", "rld", "wsld"]


def _set_apart(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Split p into one class per row and the rest, without ever leaving log space.

    Returns:
        margins: (N,), z_y − logsumexp of the other logits, so that p_y = sigmoid(margin).
        others: (N, C − 1), the logits of the other classes.
    """
    rest = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = logits.gather(1, rest + (rest >= classes[:, None]).long())
    return logits.gather(1, classes[:, None]).squeeze(1) - others.logsumexp(dim=1), others


@full_precision
def dkd_parts(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float = 4.0
) -> tuple[Tensor, Tensor]:
    """Split the distillation of each sample into target class and non-target classes.

    With b = (p_y, 1 − p_y) and p̂ the softmax over the classes other than y, all at temperature T:
    TCKD = KL(b_t ‖ b_s), NCKD = KL(p̂_t ‖ p̂_s), and KL(p_t ‖ p_s) = TCKD + (1 − p_t,y) · NCKD.
    Computed in log space (log p_y and log(1 − p_y) from the margin of z_y over the logsumexp of the rest).

    `Decoupled Knowledge Distillation <https://arxiv.org/abs/2203.08679>`_.

    Args:
        student_logits: (N, C).
        teacher_logits: (N, C).
        labels: (N,), integers in [0, C).
        temperature: T.

    Returns:
        TCKD and NCKD, each (N,), at least 0, without the factor T².
    """
    student, teacher = soften(student_logits, teacher_logits, temperature)
    labels = check_labels(labels, student)
    student_margin, student_others = _set_apart(student, labels)
    teacher_margin, teacher_others = _set_apart(teacher, labels)
    return binary_kl(student_margin, teacher_margin), kl(student_others, teacher_others)


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """Decoupled distillation: weigh target class and non-target classes independently.

    T² · mean_n (α · TCKD + β · NCKD); the parts are those of :func:`dkd_parts`.

    `Decoupled Knowledge Distillation <https://arxiv.org/abs/2203.08679>`_. The authors' CIFAR-100 runs use β = 8 for
    resnet32x4 → resnet8x4 and ResNet50 → MobileNetV2, 6 for the wide ResNets and VGG, 2 for resnet56 and resnet110;
    on ImageNet T = 1 and β = 0.5 or 2; and they warm the loss up over 20 epochs. α and β are its usual weights; there
    is no other factor.

    Args:
        student_logits: (N, C).
        teacher_logits: (N, C).
        labels: (N,), integers in [0, C).
        alpha: α, weight of the target class.
        beta: β, weight of the other classes.
        temperature: T.

    Returns:
        Scalar, at least 0; 0 for equal probabilities.
    """
    tckd, nckd = dkd_parts(student_logits, teacher_logits, labels, temperature=temperature)
    return temperature**2 * (alpha * tckd + beta * nckd).mean()


@full_precision
def nkd(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, gamma: float = 1.5, temperature: float = 1.0
) -> Tensor:
    """Normalized distillation: soft target on the label, and the other classes renormalized.

    mean_n [−p_t,y log p_s,y − γ T² Σ_{c≠y} p̂_t,c log p̂_s,c], p at temperature 1, p̂ the softmax over the classes
    other than y at temperature T.

    `From Knowledge Distillation to Self-Knowledge Distillation <https://arxiv.org/abs/2303.13005>`_.

    Args:
        student_logits: (N, C).
        teacher_logits: (N, C).
        labels: (N,), integers in [0, C).
        gamma: γ, weight of the other classes.
        temperature: T, of the other classes alone.

    Returns:
        Scalar, at least 0: cross-entropies, so teacher = student gives γ T² times the mean entropy of p̂_t plus
        the mean of −p_t,y log p_t,y, and not 0.
    """
    check_positive(temperature=temperature)
    student, teacher = check_logits(student_logits, teacher_logits)
    labels = check_labels(labels, student)
    student_margin, student_others = _set_apart(student, labels)
    teacher_margin, teacher_others = _set_apart(teacher, labels)
    target = -teacher_margin.sigmoid() * F.logsigmoid(student_margin)
    others = -(teacher_others / temperature).softmax(dim=1) * F.log_softmax(student_others / temperature, dim=1)
    return (target + gamma * temperature**2 * others.sum(dim=1)).mean()


@full_precision
def rld(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    confidence_temperature: float = 4.0,
) -> Tensor:
    """Refined distillation: learn the teacher's confidence, but not its order above the label.

    α T_c² · KL(b_t ‖ b_s) + β T² · KL(p̂_t ‖ p̂_s), means over samples. b_s = (p_s,y, 1 − p_s,y) of the student's
    label, b_t = (max p_t, 1 − max p_t) of the teacher's own pick, at T_c; p̂ the softmax, at T, over the classes that
    the teacher rates below the label.

    `Knowledge Distillation with Refined Logits <https://arxiv.org/abs/2408.07703>`_. α and β are its usual weights;
    there is no other factor.

    Args:
        student_logits: (N, C).
        teacher_logits: (N, C).
        labels: (N,), integers in [0, C).
        alpha: α, weight of the confidence.
        beta: β, weight of the classes below the label.
        temperature: T.
        confidence_temperature: T_c.

    Returns:
        Scalar, at least 0; 0 for equal logits where the teacher picks the label.
    """
    check_positive(confidence_temperature=confidence_temperature)
    student, teacher = soften(student_logits, teacher_logits, temperature)
    labels = check_labels(labels, student)
    ratio = temperature / confidence_temperature
    confidence = binary_kl(
        _set_apart(student * ratio, labels)[0], _set_apart(teacher * ratio, teacher.argmax(dim=1))[0]
    )
    hidden = teacher >= teacher.gather(1, labels[:, None])
    lowest = torch.finfo(student.dtype).min  # finite: a row of which all is hidden gives 0, where -inf gives NaN
    below = kl(student.masked_fill(hidden, lowest), teacher.masked_fill(hidden, lowest))
    return (alpha * confidence_temperature**2 * confidence + beta * temperature**2 * below).mean()


@full_precision
def wsld(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Weigh the soft label of each sample by how much worse the student does on it than the teacher.

    T² · mean_n w_n Σ_c −p_t log p_s, p = softmax(z / T), w = 1 − exp(−CE_s / CE_t) with the cross-entropies of
    student and teacher with the label at T = 1 (1e-7 added to CE_t), through which no gradient flows.

    `Rethinking Soft Labels for Knowledge Distillation <https://arxiv.org/abs/2102.00650>`_. The authors'
    weight for it on CIFAR-100 is 2.25.

    Args:
        student_logits: (N, C).
        teacher_logits: (N, C).
        labels: (N,), integers in [0, C).
        temperature: T.

    Returns:
        Scalar, at least 0: a cross-entropy, so teacher = student does not give 0.
    """
    student, teacher = soften(student_logits, teacher_logits, temperature)
    labels = check_labels(labels, student)
    student_error, teacher_error = (
        F.cross_entropy(logits.detach() * temperature, labels, reduction="none") for logits in (student, teacher)
    )
    weight = 1 - torch.exp(-student_error / (teacher_error + 1e-7))
    soft = -(teacher.softmax(dim=1) * F.log_softmax(student, dim=1)).sum(dim=1)
    return temperature**2 * (weight * soft).mean()
