"""Networks of embeddings: images, and recall@1 in points: whether the nearest other image is of the same class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from krl_runtime.evaluation.gate import Verdict, judge_embeddings, least_agreement
from krl_runtime.evaluation.limits import EXACT
from krl_runtime.evaluation.retrieval import RetrievalScore, RetrievalTally
from krl_runtime.images.folders import ImageFolder

from .classification import LabeledImages
from .task import judged, largest_drop

__all__ = ["Embedding"]


class Embedding(LabeledImages):
    """Images, and how well their embeddings find each other; the classes are those of the images, whatever they are."""

    metric = "recall@1"

    def _labels_for(self, folder: ImageFolder) -> tuple[str, ...]:
        return folder.labels

    def why_refused(self, precision: str, score: RetrievalScore) -> str | None:
        """Return the agreement that is missing, or a drop that the images resolve; see ``Task.why_refused``."""
        least = least_agreement(precision, self.options.max_drop)
        if not (score.drop is not None and score.better_than_chance) and score.agreement < least - EXACT:
            return f"{score.agreement:.2%} of the embeddings are nearest to those of fp32, required: {least:.2%}"
        if score.drop is not None and score.drop - (score.drop_error or 0.0) > self.accepted + EXACT:
            return f"a drop of {score.drop:.2f} ± {score.drop_error:.2f} points, accepted: {self.accepted:g}"
        return None

    def tally(self) -> RetrievalTally:
        """Return an empty tally."""
        return RetrievalTally()

    def verdict(self, precision: str, count: int, scores: Mapping[str, RetrievalScore]) -> Verdict:
        """Return whether variants pass the gate; see ``Task.verdict``."""
        reference, *variants = scores.values()
        return judge_embeddings(
            precision,
            count=count if reference.drop is None else reference.counted,
            agreement=min(score.agreement for score in variants),
            drop=largest_drop(scores),
            snr_db=min(score.snr_db for score in variants),
            known=reference.drop is None or reference.better_than_chance,
            max_drop=self.options.max_drop,
            doubts=[*self.doubts, *([] if reference.better_than_chance else self._shift())],
            accept_unmeasured=self.options.accept_unmeasured,
        )

    def evidence(self, scores: Mapping[str, RetrievalScore], verdict: Verdict) -> dict[str, Any]:
        """Return the drop, the limits, and whether enough was judged."""
        return {"recall_drop_points": largest_drop(scores), **judged(verdict)}

    def remark(self, count: int, scores: Mapping[str, RetrievalScore]) -> str:
        """Return the resolution of the images; see ``Task.remark``."""
        reference, *_ = scores.values()
        if reference.recall_at_1_error is None:
            return f"{count} images without two of a class; one is worth {100 / count:.2g} points of agreement"
        return f"{count} images; one standard error of recall@1 is {100 * reference.recall_at_1_error:.2g} points"
