"""The losses, by the names that ``--loss`` takes, and their options."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Annotated

from krl_runtime.cli.options import Advanced
from krl_runtime.cli.suggestions import suggest
from krl_runtime.errors import UsageError
from krl_train.custom import CustomName, each_named, is_custom

from .kinds import CLASSIFIER, Repeated, RepeatedCustom

__all__ = ["LOSSES", "LOSS_OPTIONS", "LossConfig", "check_loss", "split_loss"]

LOSSES: Mapping[str, tuple[str, ...]] = {
    "classification": (
        *("ce", "kd", "logistic", "soft_bce", "hard_label", "logit_mse", "dist", "ttm", "wttm", "mlkd", "dkd", "nkd"),
        *("rld", "wsld", "fitnet", "wkd_f", "at", "nst", "sp", "reviewkd", "rkd", "pkt", "cc", "crd", "bce"),
    ),
    "embedding": (
        *("proxy-anchor", "contrastive", "triplet", "multi-similarity", "supcon"),
        *("cosine", "rkd", "sp", "pkt", "cc"),
    ),
    "restoration": ("pixels", "teacher", "affinity", "fitnet", "at", "sp"),
    "generation": ("pixels", "squares", "features", "kernel", "perceptual", "adversarial"),
}
"""Names of the losses, by the teacher's task."""

LOSS_OPTIONS = ("weight", "warmup", "standardize", "adaptive")
"""Options of every ``--loss``."""


def split_loss(text: str, known: Container[str]) -> tuple[str, str]:
    """Split what was given to ``--loss`` into the name and the options after it.

    Args:
        text: ``NAME[:key=value,...]``; a user's own function has a colon in its name, ``package.module:name``.
        known: Names of krl's own losses.
    """
    if isinstance(text, CustomName):
        return text, ""
    name, _, rest = text.partition(":")
    path, colon, options = rest.partition(":")
    is_option = not colon and path in LOSS_OPTIONS
    if name in known or is_option or not is_custom(f"{name}:{path}"):
        return name, rest
    return f"{name}:{path}", options


def check_loss(text: str, task: str) -> None:
    """Check the name in ``NAME[:key=value,...]`` before torch is imported.

    Args:
        text: What was given to ``--loss``; ``package.module:name`` is left to those that load it.
        task: The teacher's task.

    Raises:
        UsageError: No loss of the task has that name.

    Example:
        >>> check_loss("kd:weight=0.9", "classification")
        >>> check_loss("kdd", "classification")
        Traceback (most recent call last):
        krl_runtime.errors.UsageError: --loss kdd: unknown loss 'kdd' (did you mean 'kd'?); accepted: ce, kd, ...
    """
    known = LOSSES.get(task, ())
    name = split_loss(text, known)[0]
    if known and name not in known and not is_custom(name):
        raise UsageError(f"--loss {text}: unknown loss {name!r}{suggest(name, known)}; accepted: {', '.join(known)}")


@dataclass(frozen=True)
class LossConfig:
    """Options of the losses."""

    alpha: Annotated[float | None, CLASSIFIER] = None
    """Loss = alpha * CE + (1 - alpha) * T^2 * KL. Left out: CE + w * DKD, whose w falls as the student overtakes the
    teacher (several labels: BCE + binary KL)."""
    temperature: Advanced[Annotated[float | None, CLASSIFIER]] = None
    """T of --alpha (4 unless given), by which both nets' logits are divided; without --alpha that is 0.1."""
    loss: RepeatedCustom = ()
    """A term of the loss, NAME[:weight=W,warmup=EPOCHS,...], as in --loss ce:weight=0.1 --loss kd:weight=0.9. Given
    once or several times, nothing else counts, labels neither. Of labels: ce, bce. Of
    logits: kd, logistic, soft_bce, hard_label, logit_mse, dist, ttm, wttm, mlkd, dkd, nkd, rld, wsld, or your own
    function as package.module:name. Of features: fitnet, wkd_f, at, nst, sp, reviewkd, rkd, pkt, cc, crd. Embeddings:
    those of krl-train fit --embedding-loss, cosine, rkd, sp, pkt, cc. Restorers: pixels, teacher, affinity, fitnet, at,
    sp. Generators: pixels, squares, features, kernel, perceptual, adversarial."""
    feature_taps: Advanced[Annotated[Repeated, CLASSIFIER]] = ()
    """Where losses on features look, STUDENT_MODULE=TEACHER_MODULE, or =TENSOR of a bundle or ONNX file; may be given
    several times. Left out: the outputs of the stages of each resolution that both networks have."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        object.__setattr__(self, "loss", each_named(self.loss, "--loss"))
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise UsageError(f"--alpha is {self.alpha}; accepted: 0 (teacher alone) to 1 (labels alone)")
        if self.temperature is not None and not self.temperature > 0:
            raise UsageError(f"--temperature is {self.temperature}; accepted: above 0")
        if self.loss and (self.alpha is not None or self.temperature is not None):
            raise UsageError(
                "--alpha and --temperature are of the objective without --loss (recipes have their own --loss); leave "
                "them out, or give --loss ce:weight=0.1 --loss kd:weight=0.9,temperature=4"
            )
