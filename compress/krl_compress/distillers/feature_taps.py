"""Where features are taken in two networks: found by resolution, or named by the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from krl_compress.teachers.features import Features, FeatureSource
from krl_runtime.errors import UsageError
from krl_train.models.features import FeatureMap, by_resolution

__all__ = ["Taps", "match_taps"]


def match_taps(
    student: FeatureSource, teacher: FeatureSource, at: Sequence[str]
) -> list[tuple[FeatureMap, FeatureMap]]:
    """Pair taps of two networks, from shallow to deep.

    Without ``at``: the outputs of the stages of each resolution, as a share of the input's, that both networks have.

    Args:
        student: The student.
        teacher: The teacher.
        at: Pairs of names, ``"layer3=stages.2"``: of modules or, in an ONNX graph, of tensors; one name stands for
            both.

    Raises:
        UsageError: A name is not a tap, or no resolution is shared; the message lists the candidates.
    """
    if at:
        mine, theirs = student.list_maps(), teacher.list_maps()
        return [_named(pair, mine, theirs) for pair in at]
    last = [by_resolution(network.stages(), network.height) for network in (student, teacher)]
    shared = [(tap, last[1][resolution]) for resolution, tap in last[0].items() if resolution in last[1]]
    if not shared:
        raise UsageError(
            "student and teacher share no resolution; name taps with --feature-taps STUDENT=TEACHER. Student: "
            f"{_show(last[0].values())}. Teacher: {_show(last[1].values())}"
        )
    return shared


def _named(pair: str, mine: Sequence[FeatureMap], theirs: Sequence[FeatureMap]) -> tuple[FeatureMap, FeatureMap]:
    names = pair.partition("=")
    result = []
    for role, name, taps in (("student", names[0], mine), ("teacher", names[2] or names[0], theirs)):
        tap = next((tap for tap in taps if tap.name == name), None)
        if tap is None:
            raise UsageError(f"--feature-taps {pair}: the {role} has no feature map {name!r}; it has: {_show(taps)}")
        result.append(tap)
    return result[0], result[1]


def _show(taps: Any) -> str:
    return ", ".join(f"{tap.name} {'×'.join(map(str, tap.shape))}" for tap in taps) or "no feature maps"


class Taps:
    """Reads features of a network while it runs.

    Args:
        source: The network.
        taps: The maps that are wanted, in the order wanted.
        embedding: Whether the classifier's input is wanted, flattened.
    """

    def __init__(self, source: FeatureSource, taps: Sequence[FeatureMap], *, embedding: bool) -> None:
        self.source = source
        self.taps = list(taps)
        self.embedding = embedding

    def reading(self) -> AbstractContextManager[Features]:
        """Yield features that the forward passes inside the block fill; see ``FeatureSource.reading``."""
        return self.source.reading(self.taps, embedding=self.embedding)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the length of the embedding, found by one forward pass, as ``{"embedding": (D,)}``."""
        with self.reading() as features:
            self.source.run_once()
        return {} if features.embedding is None else {"embedding": tuple(features.embedding.shape[1:])}
