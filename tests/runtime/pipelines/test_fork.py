"""What was made before a fork is refused in the new process, and never waits."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from krl_runtime import BackendError, Bundle, load
from krl_runtime.backends.select import SelectedBackend
from krl_runtime.backends.warm import WarmStart

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def in_a_fork(work: Callable[[], object]) -> str:
    """Return what a forked process says: ``"fine"``, or the exception; ``"hangs"`` if it says nothing."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks with threads: the case here
        child = os.fork()
    if not child:
        try:
            work()
            said = "fine"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode()[:4000])
        os._exit(0)
    os.close(writer)
    os.set_blocking(reader, False)
    deadline = time.monotonic() + 10
    while not os.waitpid(child, os.WNOHANG)[0]:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
        time.sleep(0.01)
    with open(reader, "rb") as file:
        return (file.read() or b"hangs").decode()


def refused(what: str) -> str:
    return f"BackendError: {what} of process {os.getpid()} is used in process "


@pytest.mark.parametrize("kind", ["cpu", "openvino"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_model(bundle: Bundle, images: list[Path], kind, threads):
    if kind == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed")
    with load(bundle.path, require=kind, threads=threads) as model:
        expected = model(images[0])
        said = in_a_fork(lambda: model(images[0]))
        assert said.startswith(refused("a model"))
        assert "Load the model in the new process, after the fork, or start processes with" in said
        for use in (lambda: model(images), lambda: list(model.stream(images)), lambda: model.batched()(images[0])):
            assert in_a_fork(use).startswith(refused("a model"))
        assert in_a_fork(model.close) == "fine"
        assert model(images[0]) == expected  # this process's model is as it was


def test_a_model_that_is_loaded_after_the_fork(bundle: Bundle, images: list[Path]):
    with load(bundle.path, require="cpu") as model:
        model(images[0])

        def load_again() -> None:
            with load(bundle.path, require="cpu") as other:
                other(images[0])

        assert in_a_fork(load_again) == "fine"


def test_a_batcher(bundle: Bundle, images: list[Path]):
    with load(bundle.path, require="cpu") as model, model.batched() as batcher:
        batcher(images[0])
        uses = (
            lambda: batcher(images[0]),
            lambda: batcher.submit(images[0], timeout=0),
            lambda: asyncio.run(batcher.ask(images[0])),
        )
        for use in uses:
            assert in_a_fork(use).startswith(refused("a batcher"))
        with batcher._came:  # a fork may happen while another thread holds the lock
            for use in (*uses, batcher.close, lambda: batcher.close(drain=False)):
                assert in_a_fork(use) == "fine" or in_a_fork(use).startswith(refused("a batcher"))
        assert batcher(images[0]).label in model.labels


def test_a_stream_and_a_watch(bundle: Bundle, images: list[Path]):
    with load(bundle.path, require="cpu") as model:
        stream = model.stream(images * 20, workers=2)
        next(stream)
        assert in_a_fork(lambda: next(stream)).startswith(refused("a stream"))
        assert in_a_fork(stream.close) == "fine"
        assert len(list(stream)) == 59
        with model.watch(iter(images)) as watch:
            next(watch)
            assert in_a_fork(lambda: next(watch)).startswith(refused("a watch"))
            with watch._condition:
                assert in_a_fork(watch.close) == "fine"


def test_a_warm_start(bundle: Bundle, images: list[Path]):
    with load(bundle.path, require="cpu") as model:
        assert isinstance(model.backend, SelectedBackend)
        command = ("sleep", "60")
        warm = WarmStart(bundle, model.backend, "fp32", {}, command)
        try:
            inputs = {"pixels": model.preprocessing(images[0])[None]}
            warm.run(inputs)
            with warm._lock:
                assert in_a_fork(lambda: warm.run(inputs)).startswith(refused("a model"))
                assert in_a_fork(warm.close) == "fine"
            assert warm.state == "building"
        finally:
            warm.close()
        with pytest.raises(BackendError):
            warm.run(inputs)
