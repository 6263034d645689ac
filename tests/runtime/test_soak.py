"""Many threads on one model, and many inferences and loads: nothing is mixed up, and nothing stays behind."""

from __future__ import annotations

import gc
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from krl_runtime import Bundle, load

psutil = pytest.importorskip("psutil")

IMAGES = np.random.default_rng(9).integers(0, 256, (40, 60, 80, 3), dtype=np.uint8)


@pytest.fixture(params=["cpu", "openvino"])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "openvino":
        pytest.importorskip("openvino")
    return request.param


def test_sixteen_threads_get_what_one_gets(bundle: Bundle, kind: str):
    with load(bundle.path, require=kind, threads=1) as model:
        serial = [model(image, top_k=4) for image in IMAGES]
        begun = threading.Barrier(16)

        def work(seed: int) -> int:
            rng = random.Random(seed)
            begun.wait(20)
            for _ in range(60):
                index = rng.randrange(len(IMAGES))
                answer = model(IMAGES[index], top_k=4)
                assert answer == serial[index]
                assert np.array_equal(answer.logits, serial[index].logits)
            return 60

        with ThreadPoolExecutor(16) as pool:
            assert sum(pool.map(work, range(16))) == 960


def left_behind() -> tuple[float, int, int]:
    """Return this process's memory in MiB, and its file handles and threads."""
    gc.collect()
    process = psutil.Process()
    return process.memory_info().rss / 2**20, process.num_fds(), process.num_threads()


@pytest.mark.skipif(sys.platform == "win32", reason="counts file descriptors")
def test_inferences_leave_nothing_behind(bundle: Bundle, kind: str):
    with load(bundle.path, require=kind, threads=1) as model:
        for _ in range(300):
            model(IMAGES[0])
        before = left_behind()
        for index in range(3000):
            model(IMAGES[index % 40])
        after = left_behind()
    assert after[0] - before[0] < 8  # the images, if they were kept, are 41 MiB
    assert after[1:] == before[1:]


@pytest.mark.skipif(sys.platform == "win32", reason="counts file descriptors")
def test_loads_and_closes_leave_nothing_behind(bundle: Bundle, kind: str):
    def use() -> None:
        with load(bundle.path, require=kind, threads=1) as model:
            list(model.stream(IMAGES[:3], workers=2))
            with model.batched() as batcher, model.watch(IMAGES[:2]) as watch:
                batcher(IMAGES[0])
                list(watch)

    for _ in range(5):
        use()
    before = left_behind()
    for _ in range(40):
        use()
    after = left_behind()
    assert after[0] - before[0] < 40
    assert after[1:] == before[1:]
