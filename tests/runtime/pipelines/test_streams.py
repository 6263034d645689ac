from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from krl_runtime import BackendError, Bundle, Classifier, DataError, ImageError, UsageError, load

FRAMES = np.random.default_rng(5).integers(0, 256, (50, 12, 10, 3), dtype=np.uint8)


@pytest.fixture
def model(bundle: Bundle) -> Iterator[Classifier]:
    with load(bundle.path, threads=1) as loaded:
        yield loaded


# All images.


@pytest.mark.parametrize("workers", [None, 1, 3])
def test_all_images_in_order(model: Classifier, workers: int | None):
    frames = list(FRAMES)
    found = list(model.stream(iter(frames), workers=workers, top_k=2))
    assert [item.result for item in found] == [model(frame, top_k=2) for frame in FRAMES]
    assert all(item.source is frame for item, frame in zip(found, frames, strict=True))
    assert {item.error for item in found} == {None}


def test_a_folder(model: Classifier, images: list[Path]):
    (images[0].parent / "notes.txt").touch()
    images[1].write_bytes(b"damaged")
    for folder in (images[0].parent, str(images[0].parent)):
        found = list(model.stream(folder))
        assert [item.source for item in found] == images
        assert [item.result for item in found[::2]] == [model(image) for image in images[::2]]
        assert found[1].result is None
        assert isinstance(found[1].error, ImageError)
        assert "b.png" in str(found[1].error)


def test_an_endless_stream_is_read_only_a_little_ahead(model: Classifier):
    taken = itertools.count()
    frames = (FRAMES[next(taken) % 50] for _ in itertools.count())
    results = model.stream(frames, workers=2)
    for index in range(10):
        assert next(results).result == model(FRAMES[index])
    results.close()
    assert next(taken) <= 10 + 2 * 2 + 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("krl-stream")]


def test_errors_of_the_device_and_of_the_source_come_out(model: Classifier):
    def broken() -> Iterator[np.ndarray]:
        yield FRAMES[0]
        raise OSError("unplugged")

    with pytest.raises(OSError, match="unplugged"):
        list(model.stream(broken()))
    model.close()
    with pytest.raises(BackendError, match="is closed"):
        list(model.stream(FRAMES[:1]))


def test_arguments_are_checked_at_once(model: Classifier, tmp_path: Path):
    for arguments in ({"workers": 0}, {"top_k": 0}):
        with pytest.raises(UsageError, match="accepted: 1 or more"):
            model.stream(FRAMES, **arguments)
    with pytest.raises(DataError, match="none does not exist"):
        model.stream(tmp_path / "none")
    with pytest.raises(UsageError, match="top_k is 0"):
        model.watch(FRAMES, top_k=0)


# The latest frame.


class Camera:
    """Gives a frame each time it is told to; ``None`` ends it."""

    def __init__(self) -> None:
        self._ready, self._taken = threading.Semaphore(0), threading.Semaphore(0)
        self._frames: list[np.ndarray | Exception | None] = []

    def show(self, *frames: np.ndarray | Exception | None) -> None:
        """Give frames, and wait until each of them has been taken in."""
        for frame in frames:
            self._frames.append(frame)
            self._ready.release()
            assert self._taken.acquire(timeout=20)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        if self._frames:
            self._taken.release()  # it asks for the next one: the last one is in
        assert self._ready.acquire(timeout=20)
        frame = self._frames[-1]
        if frame is None:
            self._taken.release()
            raise StopIteration
        if isinstance(frame, Exception):
            self._taken.release()
            raise frame
        return frame


def test_the_latest_frame_wins_and_the_others_are_counted(model: Classifier):
    camera = Camera()
    with model.watch(camera, top_k=2) as results:
        camera.show(FRAMES[0])
        first = next(results)
        assert np.array_equal(first.source, FRAMES[0])
        assert first.result == model(FRAMES[0], top_k=2)
        assert results.dropped == 0
        camera.show(*FRAMES[1:6])
        assert next(results).result == model(FRAMES[5], top_k=2)
        assert results.dropped == 4
        camera.show(FRAMES[6], None)
        assert [item.result for item in results] == [model(FRAMES[6], top_k=2)]
        assert results.dropped == 4
        with pytest.raises(StopIteration):
            next(results)


def test_a_bad_frame_does_not_end_it(model: Classifier):
    camera = Camera()
    results = model.watch(camera)
    camera.show(np.zeros((3, 3)))
    assert isinstance(next(results).error, ImageError)
    camera.show(FRAMES[0])
    assert next(results).result == model(FRAMES[0])
    results.close()


def test_a_camera_that_fails_is_heard_once_its_last_frame_is_returned(model: Classifier):
    camera = Camera()
    results = model.watch(camera)
    camera.show(FRAMES[0], OSError("unplugged"))
    assert next(results).result == model(FRAMES[0])
    with pytest.raises(OSError, match="unplugged"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_closing_ends_the_iteration_of_another_thread(model: Classifier):
    camera = Camera()
    results = model.watch(camera)
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.extend(results))
    thread.start()
    results.close()
    thread.join(20)
    assert not thread.is_alive()
    assert found == []


# In one line, and without arrays.


def test_items_print_in_one_line(model: Classifier, images: list[Path]):
    sources = [images[0], str(images[0]), images[0].read_bytes(), FRAMES[0], Image.fromarray(FRAMES[0]), b"no\nimage"]
    items = list(model.stream(sources, top_k=2))
    names = [str(images[0])] * 2 + [f"{len(sources[2])} bytes", "array 12x10x3", "image 10x12", "8 bytes"]
    for item, name in zip(items, names, strict=True):
        assert str(item) == f"{name}: {item.error or item.result}"
        assert "\n" not in str(item) + repr(item)
        assert repr(item).startswith(f"StreamItem({name!r}, ")
        assert len(repr(item)) < 400
    assert isinstance(items[-1].error, ImageError)
    with images[0].open("rb") as file:
        (item,) = model.stream([file])
    assert str(item).startswith(f"{images[0]}: ")


def test_a_watch_prints_what_it_dropped(model: Classifier):
    with model.watch(iter(FRAMES[:1])) as results:
        item = next(results)
        assert str(item) == f"array 12x10x3: {item.result}"
        assert repr(results) == "Watch('tiny', 0 dropped)"


def test_frames_of_opencv(bundle: Bundle, model: Classifier):
    """The colors of arrays alone are exchanged, in every way to give one."""
    with load(bundle.path, threads=1, channel_order="bgr") as other:
        frames = [np.ascontiguousarray(frame[..., ::-1]) for frame in FRAMES[:4]]
        wanted = [model(frame) for frame in FRAMES[:4]]
        assert [item.result for item in other.stream(frames)] == wanted
        assert [item.result for item in other.watch(iter(frames[:1]))] == wanted[:1]
        with other.batched() as batcher:
            assert batcher(frames[1]) == wanted[1]
