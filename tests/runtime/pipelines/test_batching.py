from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from _helpers.bundles import write_bundle
from krl_runtime import BackendError, Bundle, Classifier, ImageError, ModelError, UsageError, load
from krl_runtime.pipelines.batching import Batcher, OverloadedError

IMAGES = np.random.default_rng(5).integers(0, 256, (50, 12, 10, 3), dtype=np.uint8)


@pytest.fixture
def model(bundle: Bundle) -> Iterator[Classifier]:
    with load(bundle.path, threads=1) as loaded:
        yield loaded


class Gate:
    """Holds the model's runs back until it is opened, and notes their batch sizes."""

    def __init__(self, model: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.opened, self.entered = threading.Event(), threading.Event()
        run = model.run

        def gated(pixels: np.ndarray) -> Mapping[str, np.ndarray]:
            self.entered.set()
            assert self.opened.wait(20)
            self.sizes.append(len(pixels))
            return run(pixels)

        monkeypatch.setattr(model, "run", gated)


@pytest.fixture
def gate(model: Classifier, monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(model, monkeypatch)


def first_is_running(batcher: Batcher, gate: Gate) -> None:
    """Occupy the batcher with one request, which is being run but held back."""
    batcher.submit(IMAGES[0])
    assert gate.entered.wait(20)


def test_answers_are_those_of_the_model(model: Classifier):
    with model.batched() as batcher:
        futures = [batcher.submit(image, top_k=index % 4 + 1) for index, image in enumerate(IMAGES)]
        for index, (image, future) in enumerate(zip(IMAGES, futures, strict=True)):
            answer, alone = future.result(), model(image, top_k=index % 4 + 1)
            assert [label for label, _ in answer.top] == [label for label, _ in alone.top]
            assert np.abs(answer.logits - alone.logits).max() < 1e-5
        assert batcher.processed == len(IMAGES)
        assert batcher(IMAGES[3]).label == model(IMAGES[3]).label


def test_requests_that_wait_are_run_together(model: Classifier, gate: Gate):
    with model.batched(max_batch=8, max_delay=0) as batcher:
        first_is_running(batcher, gate)
        futures = [batcher.submit(image) for image in IMAGES[:20]]
        gate.opened.set()
        for future in futures:
            future.result(20)
    assert gate.sizes == [1, 8, 8, 4]
    assert (batcher.batches, batcher.processed) == (4, 21)


def test_the_first_waits_for_others_but_not_for_ever(model: Classifier, gate: Gate):
    gate.opened.set()
    with model.batched(max_batch=3, max_delay=60) as batcher:
        futures = [batcher.submit(image) for image in IMAGES[:3]]
        for future in futures:
            future.result(20)  # a full batch does not wait for the minute
    with model.batched(max_batch=3, max_delay=0.05) as batcher:
        begin = time.monotonic()
        batcher.submit(IMAGES[0]).result(20)
        assert time.monotonic() - begin >= 0.05
    assert gate.sizes == [3, 1]


def test_workers_run_batches_at_once(model: Classifier, monkeypatch: pytest.MonkeyPatch):
    run, met = model.run, threading.Barrier(3)

    def together(pixels: np.ndarray) -> Mapping[str, np.ndarray]:
        met.wait(20)  # three calls have to be in here before any of them goes on
        return run(pixels)

    monkeypatch.setattr(model, "run", together)
    with model.batched(max_batch=2, max_delay=0.01, workers=3) as batcher:
        for future in [batcher.submit(image) for image in IMAGES[:6]]:
            assert future.result(20).label in model.labels
        assert batcher.batches == 3


def test_a_graph_for_one_image_is_never_given_more(tmp_path: Path):
    model = load(write_bundle(tmp_path / "a.krl", batch=1).path)
    with model.batched(max_delay=0.01) as batcher:
        for future in [batcher.submit(image) for image in IMAGES[:5]]:
            future.result(20)
    assert (batcher.batches, batcher.processed) == (5, 5)


def test_back_pressure(model: Classifier, gate: Gate):
    with model.batched(max_batch=4, max_delay=0, max_waiting=3) as batcher:
        first_is_running(batcher, gate)
        waiting = [batcher.submit(image) for image in IMAGES[:3]]
        for timeout in (0, 0.02):
            with pytest.raises(OverloadedError, match="3 requests wait already, and none was taken within"):
                batcher.submit(IMAGES[3], timeout=timeout)
        blocked = threading.Thread(target=lambda: waiting.append(batcher.submit(IMAGES[4])))
        blocked.start()
        blocked.join(0.05)
        assert blocked.is_alive()  # it waits for a place
        gate.opened.set()
        blocked.join(20)
        assert [future.result(20).label for future in waiting] == [model(IMAGES[index]).label for index in (0, 1, 2, 4)]


def test_cancelled_requests_are_not_run(model: Classifier, gate: Gate):
    with model.batched(max_batch=16, max_delay=0) as batcher:
        first_is_running(batcher, gate)
        futures = [batcher.submit(image) for image in IMAGES[:6]]
        assert all(future.cancel() for future in futures[::2])
        gate.opened.set()
        for future in futures[1::2]:
            future.result(20)
    assert gate.sizes == [1, 3]


def test_closing_answers_what_waits(model: Classifier, gate: Gate):
    batcher = model.batched(max_delay=60)
    futures = [batcher.submit(image) for image in IMAGES[:5]]
    gate.opened.set()
    batcher.close()
    assert all(future.done() and not future.cancelled() for future in futures)
    batcher.close()
    with pytest.raises(BackendError, match="the batcher is closed"):
        batcher.submit(IMAGES[0])
    model(IMAGES[0])  # the model is still open


def test_closing_without_draining(model: Classifier, gate: Gate):
    batcher = model.batched(max_delay=0, max_waiting=2)
    first_is_running(batcher, gate)
    waiting = [batcher.submit(image) for image in IMAGES[:2]]
    refused: list[str] = []

    def blocked() -> None:
        with pytest.raises(BackendError) as caught:
            batcher.submit(IMAGES[3])
        refused.append(str(caught.value))

    thread = threading.Thread(target=blocked)
    thread.start()
    threading.Timer(0.05, gate.opened.set).start()
    batcher.close(drain=False)
    thread.join(20)
    assert refused == ["the batcher is closed"]
    for future in waiting:
        with pytest.raises(CancelledError):
            future.result(0)


def test_an_error_in_the_block_cancels_what_waits(model: Classifier):
    futures = []

    def fail() -> None:
        with model.batched(max_delay=60) as batcher:
            futures.append(batcher.submit(IMAGES[0]))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert futures[0].cancelled()


def test_a_failing_device_fails_the_batch_and_the_batcher_goes_on(model: Classifier, monkeypatch: pytest.MonkeyPatch):
    run, broken = model.run, [True]

    def sometimes(pixels: np.ndarray) -> Mapping[str, np.ndarray]:
        if broken.pop() if broken else False:
            raise BackendError("lost")
        return run(pixels)

    monkeypatch.setattr(model, "run", sometimes)
    with model.batched(max_batch=2, max_delay=5) as batcher:
        for future in [batcher.submit(image) for image in IMAGES[:2]]:
            with pytest.raises(BackendError, match="lost"):
                future.result(20)
        for future in [batcher.submit(image) for image in IMAGES[:2]]:
            assert future.result(20).label in model.labels


def test_one_answer_that_is_not_finite_spares_the_others(model: Classifier, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(model, "run", lambda pixels: {"logits": np.float32([[1, 2, 3, 4], [np.nan] * 4])})
    with model.batched(max_batch=2, max_delay=5) as batcher:
        good, bad = batcher.submit(IMAGES[0]), batcher.submit(IMAGES[1])
        assert good.result(20).label == "ship"
        with pytest.raises(ModelError, match="not finite"):
            bad.result(20)


def test_bad_images_and_arguments_are_refused_at_once(model: Classifier):
    with model.batched() as batcher:
        with pytest.raises(ImageError):
            batcher.submit(b"no image")
        with pytest.raises(UsageError, match="top_k is 0"):
            batcher.submit(IMAGES[0], top_k=0)
    for arguments in (
        {"max_batch": 0},
        {"workers": 0},
        {"max_waiting": 0},
        {"max_delay": -1},
        {"max_delay": float("nan")},
    ):
        with pytest.raises(UsageError, match="accepted: 1 or more for the first three"):
            model.batched(**arguments)


@pytest.mark.parametrize("workers", [1, 3])
def test_ten_thousand_requests_with_random_cancellations(model: Classifier, workers: int):
    """Nothing is lost or mixed up: every request that was not canceled gets the answer of its own image."""
    alone = [model(image) for image in IMAGES]
    rng = random.Random(2)
    plan = [(rng.randrange(len(IMAGES)), rng.random() < 0.2) for _ in range(10_000)]

    with model.batched(max_batch=16, max_delay=0.001, max_waiting=32, workers=workers) as batcher:

        def ask(item: tuple[int, bool]) -> str:
            index, cancel = item
            future = batcher.submit(IMAGES[index], top_k=4)
            if cancel and future.cancel():
                return "canceled"
            answer = future.result(60)
            assert answer.label == alone[index].label
            assert np.abs(answer.logits - alone[index].logits).max() < 1e-4
            return "answered"

        with ThreadPoolExecutor(16) as pool:
            outcomes = list(pool.map(ask, plan))
    assert len(outcomes) == 10_000
    assert batcher.processed == outcomes.count("answered")
    assert outcomes.count("canceled") > 100


# Coroutines.


def test_coroutines(model: Classifier):
    async def ask_all() -> list[str]:
        with model.batched(max_batch=8, max_delay=0.01) as batcher:
            answers = await asyncio.gather(*(batcher.ask(image, top_k=2) for image in IMAGES))
            return [answer.label for answer in answers]

    assert asyncio.run(ask_all()) == [model(image).label for image in IMAGES]


def test_a_cancelled_coroutine_takes_its_request_back(model: Classifier, gate: Gate):
    async def cancel_one(batcher: Batcher) -> None:
        task = asyncio.create_task(batcher.ask(IMAGES[1]))
        while not batcher._waiting:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with model.batched(max_delay=0) as batcher:
        first_is_running(batcher, gate)
        asyncio.run(cancel_one(batcher))
        gate.opened.set()
    assert gate.sizes == [1]


def test_one_image_in_a_coroutine(model: Classifier):
    async def ask() -> tuple[str, bool]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        answer = await model.classify_async(IMAGES[0], top_k=2)
        ticking.cancel()
        return str(answer), ticks > 0

    assert asyncio.run(ask()) == (str(model(IMAGES[0], top_k=2)), True)


@pytest.mark.parametrize("max_delay", [0.0, 3000.0])
@pytest.mark.parametrize("waiters", [1, 3])
def test_closing_without_the_rest_wakes_all_who_wait(bundle, images, monkeypatch, max_delay, waiters):
    """Callers that wait for a result, and callers that wait for a slot, both hear of it."""
    go, begun = threading.Event(), threading.Event()
    with load(bundle.path, require="cpu", threads=1) as model:
        run = model.backend.backend.run

        def slow(inputs: dict) -> dict:
            begun.set()
            assert go.wait(20)
            return run(inputs)

        monkeypatch.setattr(model.backend.backend, "run", slow)
        batcher = model.batched(max_batch=1, max_delay=max_delay, max_waiting=1)
        running = batcher.submit(images[0])
        assert begun.wait(20)
        queued = batcher.submit(images[1])
        with ThreadPoolExecutor(waiters + 1) as pool:
            slots = [pool.submit(batcher.submit, images[2]) for _ in range(waiters)]
            closing = pool.submit(batcher.close, drain=False)
            for slot in slots:
                with pytest.raises(BackendError, match="the batcher is closed"):
                    slot.result(20)
            with pytest.raises(CancelledError):
                queued.result(20)
            assert not closing.done()  # one batch still runs
            go.set()
            assert closing.result(20) is True
        assert running.result(0).label in model.labels


@pytest.mark.parametrize("workers", [1, 3])
def test_closing_without_the_rest_wakes_a_batch_that_fills(bundle, images, workers):
    with load(bundle.path, require="cpu", threads=1) as model:
        batcher = model.batched(max_batch=16, max_delay=3000, workers=workers)
        queued = [batcher.submit(image) for image in images]
        assert batcher.close(drain=False, timeout=20) is True
        for future in queued:
            with pytest.raises(CancelledError):
                future.result(0)


def test_closing_within_a_time(bundle, images, monkeypatch):
    go = threading.Event()
    with load(bundle.path, require="cpu", threads=1) as model:
        run = model.backend.backend.run
        monkeypatch.setattr(model.backend.backend, "run", lambda inputs: go.wait(20) and run(inputs))
        batcher = model.batched(max_delay=0)
        future = batcher.submit(images[0])
        assert batcher.close(timeout=0.05) is False
        go.set()
        assert future.result(20).label in model.labels
        assert batcher.close(timeout=20) is True


def test_canceled_requests_hold_no_slot(bundle, images, monkeypatch):
    go, begun = threading.Event(), threading.Event()
    with load(bundle.path, require="cpu", threads=1) as model:
        run = model.backend.backend.run

        def slow(inputs: dict) -> dict:
            begun.set()
            assert go.wait(20)
            return run(inputs)

        monkeypatch.setattr(model.backend.backend, "run", slow)
        with model.batched(max_batch=1, max_delay=0, max_waiting=2) as batcher:
            batcher.submit(images[0])
            assert begun.wait(20)
            for future in [batcher.submit(images[1], timeout=0) for _ in range(2)]:
                assert future.cancel()
            batcher.submit(images[2], timeout=0)
            go.set()
        assert batcher.processed == 2
