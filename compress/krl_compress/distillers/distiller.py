"""The distiller: teacher, student and weighted losses as one objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from krl_compress import losses
from krl_compress.teachers.features import Features, ModuleFeatures
from krl_compress.teachers.teacher import Teacher
from krl_runtime.errors import UsageError
from krl_train.metrics import quality_of
from krl_train.models import Network
from krl_train.models.features import FeatureMap
from krl_train.tasks import Batch, Objective
from krl_train.tasks.gather import gather_batch

from .feature_taps import Taps, match_taps
from .labels import labels_or_answers
from .weighted_losses import WeightedLoss, teacher_weight

__all__ = ["Distiller"]


@dataclass(frozen=True)
class _Seen:
    """Outputs and features of both networks for one batch; the teacher's side carries no gradient."""

    student: Tensor
    teacher: Tensor | None
    student_features: Features
    teacher_features: Features
    batch: Batch


class Distiller(Objective):
    """Minimizes Σ weight · loss over its terms; both nets see the same views.

    With the terms ``ce:weight=α`` and ``kd:weight=1−α,temperature=T`` this is Hinton's distillation,
    α · CE + (1 − α) · T² · KL (https://arxiv.org/abs/1503.02531).

    Images without a label (-1) count in the terms that look at the teacher alone. To those that take labels as well
    the teacher's most likely class is given, and the cross-entropy is the mean over the others.

    Args:
        network: The student.
        teacher: Answers without a gradient; ``None`` where only labels count. Losses on features need one that has
            ``features``.
        terms: The losses.
        at: Pairs of taps for feature losses, ``"student=teacher"``; found by resolution where there are none.
        labels: Class index of every training image, ``[M]``, for losses that draw other classes (CRD).
        class_weights: Weight of each class in the cross-entropy, ``[K]``; ``None`` for equal ones.
        teacher_quality: Share of the teacher's answers to held-out images that are right (mAP of several labels), 0 to
            1, which ``adaptive`` terms go by; ``None`` leaves their weights as they are.

    Raises:
        UsageError: A loss needs features and the teacher is stored, or the networks share no tap.
    """

    adaptive_weight: Tensor

    def __init__(
        self,
        network: Network,
        teacher: Teacher | None,
        terms: Sequence[WeightedLoss],
        *,
        at: Sequence[str] = (),
        labels: Tensor | None = None,
        class_weights: Tensor | None = None,
        teacher_quality: float | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.register_buffer("adaptive_weight", torch.ones(()))  # part of the checkpoint
        self.teacher_quality = teacher_quality
        if not terms:
            raise UsageError("there is no loss to minimize; give --loss")
        names = [term.name for term in terms]
        if len(set(names)) < len(names):
            raise UsageError(f"a loss is given twice: {', '.join(names)}; each may be given once")
        self.network = network
        self.teacher = teacher
        self.terms = tuple(terms)
        self.adapters = nn.ModuleDict()
        self.student_taps: Taps | None = None
        self.teacher_taps: Taps | None = None
        self.taps: list[tuple[FeatureMap, FeatureMap]] = []
        on_features = [term.kind.sees not in ("labels", "logits", "logits+labels") for term in terms]
        self._features_alone = all(on_features)
        if any(on_features):
            self._prepare_features(at, labels)
        elif teacher is not None:
            teacher.fold()

    def _prepare_features(self, at: Sequence[str], labels: Tensor | None) -> None:
        source = self.teacher.features if self.teacher is not None else None
        if source is None:
            raise UsageError(
                "losses on features need one live teacher: leave out --cache-teacher, and give a single --teacher"
            )
        sees = {term.kind.sees for term in self.terms}
        if sees & {"map", "maps", "review"}:
            self.taps = match_taps(ModuleFeatures(self.network), source, at)
        embedding = bool(sees & {"embedding", "crd", "review"})
        self.student_taps = Taps(ModuleFeatures(self.network), [pair[0] for pair in self.taps], embedding=embedding)
        self.teacher_taps = Taps(source, [pair[1] for pair in self.taps], embedding=embedding)
        lengths = [taps.shapes().get("embedding", ()) for taps in (self.student_taps, self.teacher_taps)]
        for term in self.terms:
            adapter = self._adapter(term, [length[0] if length else 0 for length in lengths], labels)
            if adapter is not None:
                self.adapters[term.name] = adapter

    def _adapter(self, term: WeightedLoss, lengths: list[int], labels: Tensor | None) -> nn.Module | None:
        kind = term.kind
        options: dict[str, Any] = dict(term.options)
        if kind.sees == "crd":
            if labels is None:
                raise UsageError("crd needs the class of every training image")
            return losses.CRD(lengths[0], lengths[1], labels, **options)
        if kind.sees == "review":
            channels = [[pair[side].shape[0] for pair in self.taps] + [lengths[side]] for side in (0, 1)]
            return losses.Review(channels[0], channels[1], **options)
        if kind.adapter is None:
            return None
        student, teacher = self._one_tap(term)
        if kind.adapter == "projection":
            return nn.Conv2d(student.shape[0], teacher.shape[0], 1, bias=False)
        assert self.teacher_taps is not None  # noqa: S101  for the type checker: they are set up before adapters
        signed = self.teacher_taps.source.has_negative_values(teacher)
        return losses.regressor(student.shape, teacher.shape, relu=not signed)

    def _one_tap(self, term: WeightedLoss) -> tuple[FeatureMap, FeatureMap]:
        """Return the tap of a loss that takes one: the middle one for hints, as in the paper, else the last."""
        return self.taps[self._index(term)]

    def _index(self, term: WeightedLoss) -> int:
        return len(self.taps) // 2 if term.name == "fitnet" else len(self.taps) - 1

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``"loss"``, each term before weighting, and the ``"teacher_weight"`` of adaptive ones, all scalars."""
        with self.student_taps.reading() if self.student_taps else nullcontext(Features()) as student_features:
            student = self.network.answer(batch.pixels, batch.further).float()
        with self.teacher_taps.reading() if self.teacher_taps else nullcontext(Features()) as teacher_features:
            asked = self.teacher is not None and any(term.kind.sees != "labels" for term in self.terms)
            teacher = self.teacher(batch) if asked and self.teacher is not None else None
        seen = _Seen(student, teacher, student_features, teacher_features, batch)
        parts = {term.name: self._value(term, seen) for term in self.terms}
        weighted = [self._factor(term, batch.epoch) * parts[term.name] for term in self.terms]
        if self._features_alone:  # the classifier must take part, or distributed training waits for its gradient
            weighted.append(0 * student.sum())
        if any(term.adaptive for term in self.terms):
            parts["teacher_weight"] = self.adaptive_weight.clone()
        return {"loss": torch.stack(weighted).sum(), **parts}

    def evaluated(self, metrics: Mapping[str, Any]) -> None:
        """Let the adaptive terms follow how far the student has come."""
        if self.teacher_quality is not None:
            weight = teacher_weight(self.teacher_quality, quality_of(metrics), metrics["count"])
            self.adaptive_weight.fill_(weight)

    def _factor(self, term: WeightedLoss, epoch: int) -> float | Tensor:
        factor = term.factor(epoch)
        return factor * self.adaptive_weight if term.adaptive else factor

    def _value(self, term: WeightedLoss, seen: _Seen) -> Tensor:
        kind, options = term.kind, dict(term.options)
        if kind.sees == "labels":
            return self._on_labels(term, seen)
        if kind.sees in ("logits", "logits+labels"):
            return self._on_logits(term, seen)
        if kind.sees == "maps":
            pairs = zip(seen.student_features.maps, seen.teacher_features.maps, strict=True)
            return torch.stack([kind.function(mine, theirs, **options) for mine, theirs in pairs]).sum()
        if kind.sees == "map":
            index = self._index(term)
            mine, theirs = seen.student_features.maps[index], seen.teacher_features.maps[index]
            if term.name in self.adapters:
                mine = self.adapters[term.name](mine)
            return _call(term, (mine, theirs), options)
        if kind.sees == "review":
            return self._review(term, seen)
        mine, theirs = _embeddings(seen)
        if kind.sees == "crd":
            index_on_device = seen.batch.indices.to(mine.device)
            gathered = [gather_batch(item) for item in (mine, theirs, index_on_device)]
            value: Tensor = self.adapters[term.name](*gathered)
            return value
        return _call(term, (mine, theirs), options)

    def _on_labels(self, term: WeightedLoss, seen: _Seen) -> Tensor:
        batch, options = seen.batch, {**term.options, "class_weights": self.class_weights}
        whole = batch.whole or batch
        value: Tensor = term.kind.function(seen.student, batch.labels, whole=whole.labels, **options)
        if batch.share is None or batch.partners is None:
            return value
        other: Tensor = term.kind.function(seen.student, batch.partners, whole=whole.partners, **options)
        return batch.share * value + (1 - batch.share) * other

    def _on_logits(self, term: WeightedLoss, seen: _Seen) -> Tensor:
        if seen.teacher is None:
            raise UsageError(f"--loss {term.name} needs a teacher")
        arguments = [seen.student, seen.teacher]
        if term.kind.sees == "logits+labels":
            if seen.batch.share is not None:
                raise UsageError(
                    f"--loss {term.name} needs one label for each image, which --mixup and --cutmix take away"
                )
            one_class = seen.batch.labels.ndim == 1
            arguments.append(labels_or_answers(seen.batch.labels, seen.teacher) if one_class else seen.batch.labels)
        return _call(term, arguments, dict(term.options))

    def _review(self, term: WeightedLoss, seen: _Seen) -> Tensor:
        """Review all maps and, as the authors do, the pooled feature as the deepest of them."""
        embeddings = _embeddings(seen)
        mine = [*seen.student_features.maps, embeddings[0][:, :, None, None]]
        theirs = [*seen.teacher_features.maps, embeddings[1][:, :, None, None]]
        reviewed = self.adapters[term.name](mine, [tuple(item.shape[2:]) for item in theirs])
        return torch.stack([losses.hcl(a, b) for a, b in zip(reviewed, theirs, strict=True)]).sum()


def _call(term: WeightedLoss, arguments: Sequence[Tensor], options: Mapping[str, Any]) -> Tensor:
    function = losses.standardize(term.kind.function) if term.standardize else term.kind.function
    if term.kind.couples:
        arguments = [gather_batch(item) for item in arguments]
    value: Tensor = function(*arguments, **options)
    return value


def _embeddings(seen: _Seen) -> tuple[Tensor, Tensor]:
    mine, theirs = seen.student_features.embedding, seen.teacher_features.embedding
    assert mine is not None  # noqa: S101  for the type checker: the taps were set up for it
    assert theirs is not None  # noqa: S101
    return mine, theirs
