"""Quantization-aware distillation: the student is trained as its INT8 graph will compute, the teacher is not.

The student starts from trained float weights, its batch normalization folded, and its scales from real images. What
is rounded where is ``krl_train.models.quantized``'s to say; the graph that ``krl-deploy`` makes of the run has the
trained weights and the trained scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from krl_compress.config import DistillConfig
from krl_compress.distillers import WeightedLoss
from krl_runtime.errors import UsageError
from krl_train.config import OptimConfig
from krl_train.data.splits import Training
from krl_train.evaluation.evaluate import evaluate_run
from krl_train.loop import resolve_device
from krl_train.metrics import quality_name, quality_of
from krl_train.models import FakeQuantized, Network
from krl_train.models.quantizers import Mode
from krl_train.run import Run, RunRecord
from krl_train.tasks.optim import default_learning_rate

__all__ = ["check_quantized", "gentle", "measure_start", "quantized_student"]

_IMAGES = 512  # images on which scales are first observed; training then learns them
_BATCH = 64  # images in a run while observing: bounds memory; scales come from maxima, so it changes nothing else
_SHARE_OF_LEARNING_RATE = 0.1  # of the usual rate, as the figures of docs/results.md were measured with; a judgment
_ON_ANSWERS = ("labels", "logits", "logits+labels")


def check_quantized(config: DistillConfig, start: Run | None, terms: Sequence[WeightedLoss]) -> None:
    """Refuse what cannot be trained fake-quantized, or a quantized student that is not to be.

    Raises:
        UsageError: See there.
    """
    asked = config.quantization
    if asked.quantize is None:
        if start is not None and start.record.model.arguments.get("quantize"):
            raise UsageError(f"run {start.path} is of a quantized student; go on with it with --quantize int8")
        return
    if start is None and not asked.float_epochs:
        raise UsageError(
            "--quantize needs trained weights to start from: give a run as --student, or --float-epochs to train "
            f"{config.student} in floating point first"
        )
    if start is not None and asked.float_epochs:
        raise UsageError(f"run {start.path} is trained already; leave --float-epochs out")
    on_features = [term.name for term in terms if term.kind.sees not in _ON_ANSWERS]
    if on_features:
        raise UsageError(
            f"--loss {on_features[0]} looks into the student, whose layers are fused where it is quantized; use losses "
            "on answers with --quantize (ce, kd, dkd, dist …), and this one for the float student before"
        )


def quantized_student(record: RunRecord, training: Training, start: Run, device: str) -> Network:
    """Make a fake-quantized student of a float one.

    Args:
        record: What the run will be; its preprocessing is that of ``start``.
        training: Images of it set the scales.
        start: The float student, or a quantized one, which keeps its scales.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.

    Returns:
        The student, on the CPU.

    Raises:
        UsageError: ``start`` has other labels, or two heads.
        ModelError: The network cannot be traced, or nothing of it can be in INT8.
    """
    if start.record.source_labels:
        raise UsageError(
            f"run {start.path} has two heads, and --quantize trains one; distill a float student from it first "
            f"(--student {start.path} without --quantize), and quantize that"
        )
    if start.record.labels != record.labels:
        raise UsageError(f"run {start.path} has other labels than the data; train it on them before --quantize")
    student = start.network()
    if isinstance(student.backbone, FakeQuantized):
        return student
    backbone = FakeQuantized(student.backbone, record.preprocessing.shape)
    network = Network(backbone, record.preprocessing).to(resolve_device(device))
    images, margin = training.train, training.train.margin
    chosen = np.linspace(0, len(images) - 1, min(_IMAGES, len(images))).astype(np.int64)
    _, height, width = record.preprocessing.shape
    with torch.no_grad(), backbone.observing():
        for first in range(0, len(chosen), _BATCH):
            pixels = images.pixels(chosen[first : first + _BATCH])
            pixels = pixels[:, :, margin : margin + height, margin : margin + width]
            network(pixels.to(network.scale.device))
    return network.cpu()


def measure_start(network: Network, training: Training, device: str) -> dict[str, Any]:
    """Return the student's top-1 (mAP of several labels) before training, of ``"float"`` and of ``"rounded"``."""
    backbone = network.backbone
    assert isinstance(backbone, FakeQuantized)  # noqa: S101  quantized_student made it
    found = {}
    modes: tuple[tuple[str, Mode], ...] = (("float", "float"), ("rounded", "int8"))
    for name, mode in modes:
        with backbone.computing(mode):
            measured = evaluate_run(network, training.source.labels, training.val, device)
            found[name] = {quality_name(measured): quality_of(measured)}
    network.cpu()
    return found


def gentle(config: OptimConfig, batch_size: int) -> OptimConfig:
    """Return the options of a fine-tuning where the user gave no learning rate: AdamW at a tenth of its usual one.

    Without batch normalization, which is folded, layers differ in how far a step may move them by orders of magnitude;
    SGD at any one rate is too fast for some and too slow for others.
    """
    if config.lr is not None:
        return config
    adamw = replace(config, optimizer="adamw")
    return replace(adamw, lr=_SHARE_OF_LEARNING_RATE * default_learning_rate(adamw, batch_size))
