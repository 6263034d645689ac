"""Nothing of a call is kept when its result is gone."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable

import numpy as np
import pytest

from krl_runtime import Bundle, Classifier, load

IMAGES = np.random.default_rng(5).integers(0, 256, (20, 12, 10, 3), dtype=np.uint8)


class Array(np.ndarray):
    """An array that can be referred to weakly; views keep it alive. It is hashed by identity."""

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def __eq__(self, other: object) -> bool:  # type: ignore[override]
        return self is other


def batched(model: Classifier) -> None:
    with model.batched(max_delay=0) as batcher:
        for image in IMAGES:
            batcher(image)


USES: dict[str, Callable[[Classifier], object]] = {
    "one by one": lambda model: [model(image).label for image in IMAGES],
    "a list": lambda model: [model(list(IMAGES[:3])) for _ in range(20)] and None,
    "logits": lambda model: [model.logits(IMAGES[:1].transpose(0, 3, 1, 2)) for _ in range(20)] and None,
    "a batcher": batched,
    "a stream": lambda model: [item.source.shape for item in model.stream(IMAGES, workers=2)],
    "interpretation": lambda model: (
        [model.interpret(model.logits(np.zeros((1, 3, 12, 10), "u1"))) for _ in "12345"] and None
    ),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_outputs_are_not_kept(bundle: Bundle, monkeypatch, use):
    with load(bundle.path, require="cpu", threads=1) as model:
        run, alive, made = model.backend.backend.run, weakref.WeakSet(), []

        def follow(inputs: dict) -> dict:
            (logits,) = run(inputs).values()
            kept = logits.view(Array)
            alive.add(kept)
            made.append(len(kept))
            return {"logits": kept}

        monkeypatch.setattr(model.backend.backend, "run", follow)
        result = use(model)
        assert len(made) >= 5
        deadline = time.monotonic() + 20
        while len(alive) > 1:  # the result's, if it has one
            assert time.monotonic() < deadline, len(alive)
            gc.collect()
        del result
