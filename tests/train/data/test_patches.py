"""Patches of images in memory and on disk: the same patches, few images at once, batches made ahead."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from _helpers.resuming import stopped_at_checkpoint
from krl_compress.config import DistillConfig
from krl_compress.distillation.distill import distill
from krl_runtime.errors import DataError, ImageError, RunError
from krl_runtime.images.folders import ImageFile
from krl_train.config import DataConfig, EvaluateConfig, FitConfig, InputConfig, LoopConfig, RestorationConfig
from krl_train.data import Truths
from krl_train.data import patches as patches_module
from krl_train.data.ahead import READ_AHEAD, pooled_order, prefetched, read_ahead
from krl_train.data.pairs import read_pairs
from krl_train.data.patches import LEAST_HELD, PatchBatch, PatchStream, read_truths
from krl_train.evaluation.evaluate import evaluate
from krl_train.training.fit import fit
from krl_train.worker import Worker

CPU = Worker(torch.device("cpu"))
NOISE = {"kind": "noise", "sigma": 20.0}
DEGRADATIONS = [(2, {"kind": "bicubic"}), (1, NOISE), (1, {"kind": "jpeg", "quality": 30})]
LOOP = LoopConfig(batch_size=6, seed=3)
EVERYTHING = 2**40  # bytes: more than any test's images


def random_image(number: int, side: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (side, side + 5, 3), np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[ImageFile]:
    """20 images, of 9 to 25 patches of 8 pixels each."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(20):
        Image.fromarray(random_image(number, 24 + number % 20)).save(folder / f"{number:02}.png")
    return [ImageFile(path) for path in sorted(folder.iterdir())]


def both(files: list[ImageFile], color: str = "rgb", **options: Any) -> tuple[Truths, Truths]:
    kept, streamed = (
        read_truths(files, color, on_bad="refuse", memory_limit=limit, **options) for limit in (EVERYTHING, 0)
    )
    assert (kept.on_disk, streamed.on_disk) == (False, True)
    return kept, streamed


def fingerprints(batches: Iterator[PatchBatch]) -> list[bytes]:
    """Input and truth of each patch, as bytes."""
    return [
        pixels.numpy().tobytes() + truth.numpy().tobytes()
        for batch in batches
        for pixels, truth in zip(batch.pixels, batch.truth, strict=True)
    ]


def patches_of_before(
    images: list[npt.NDArray[np.uint8]], scale: int, side: int, seed: int, epoch: int
) -> list[npt.NDArray[np.uint8]]:
    """The truth of each patch of an epoch by the rule as it was first published, for a stream in memory."""
    smalls = [(item.shape[0] // scale, item.shape[1] // scale) for item in images]
    owners = [number for number, (h, w) in enumerate(smalls) for _ in range((h // side) * (w // side))]
    found = []
    for index in np.random.default_rng((seed, epoch)).permutation(len(owners)).tolist():
        random, image = np.random.default_rng((seed, epoch, index)), images[owners[index]]
        height, width = smalls[owners[index]]
        top, left = random.integers((height - side + 1, width - side + 1)) * scale
        turns, mirrored = random.integers((4, 2))
        part = np.rot90(image[top : top + side * scale, left : left + side * scale], turns)
        found.append(part[:, ::-1] if mirrored else part)
    return found


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize(("scale", "degradation"), DEGRADATIONS)
def test_in_memory_patches_are_those_of_the_published_rule(
    files: list[ImageFile], scale: int, degradation: dict[str, Any], prefetch: int
) -> None:
    truths = both(files)[0]
    side = 8 // scale
    stream = PatchStream(truths, scale, degradation, (side, side), LOOP, prefetch=prefetch)
    made = torch.cat([batch.truth for batch in stream.epoch(1, 0, CPU)]).permute(0, 2, 3, 1).numpy()
    wanted = patches_of_before([np.asarray(Image.open(item.path)) for item in files], scale, side, LOOP.seed, 1)
    assert np.array_equal(made, np.stack(wanted))


@pytest.mark.parametrize(("scale", "degradation"), DEGRADATIONS)
@pytest.mark.parametrize("color", ["y", "rgb"])
def test_patches_from_disk_are_those_from_memory_in_another_order(
    files: list[ImageFile], color: str, scale: int, degradation: dict[str, Any]
) -> None:
    kept, streamed = (PatchStream(item, scale, degradation, (8 // scale,) * 2, LOOP) for item in both(files, color))
    assert (kept.count, kept.steps, kept.loop) == (streamed.count, streamed.steps, streamed.loop)
    for epoch in (0, 1):
        one, other = fingerprints(kept.epoch(epoch, 0, CPU)), fingerprints(streamed.epoch(epoch, 0, CPU))
        assert one != other
        assert sorted(one) == sorted(other)
    assert fingerprints(streamed.epoch(0, 0, CPU)) != fingerprints(streamed.epoch(1, 0, CPU))


def test_resumed_and_shared_epochs_from_disk_show_the_same_patches(files: list[ImageFile]) -> None:
    streams = [PatchStream(both(files)[1], 1, NOISE, (8, 8), LOOP, prefetch=prefetch) for prefetch in (0, 3)]
    whole = list(streams[0].epoch(2, 0, CPU))
    for stream in streams:
        for first in (0, 1, len(whole) // 2, len(whole) - 1, len(whole)):
            later = list(stream.epoch(2, first, CPU))
            assert len(later) == len(whole) - first
            assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(later, whole[first:], strict=True))
        halves = [list(stream.epoch(2, 0, Worker(CPU.device, rank, 2))) for rank in range(2)]
        for step, batch in enumerate(whole[:-1]):
            for rank in range(2):
                assert torch.equal(halves[rank][step].truth, batch.truth[rank::2])


def test_images_on_disk_have_the_identity_of_those_in_memory(files: list[ImageFile]) -> None:
    kept, streamed = both(files)
    assert (kept.identity, kept.hashes, kept.shapes) == (streamed.identity, streamed.hashes, streamed.shapes)
    assert kept.names == streamed.names
    assert read_truths(files[1:], "rgb", on_bad="refuse", memory_limit=0).identity != kept.identity
    assert both(files, limit=5)[1].names == kept.names[:5]


class Counted:
    """Reads images, and counts those that are in memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.most = self.read = 0
        self._lock = threading.Lock()
        self._original = patches_module.read_image
        monkeypatch.setattr(patches_module, "read_image", self)

    def __call__(self, path: Path, color: str) -> npt.NDArray[np.uint8]:
        image = self._original(path, color).copy()
        with self._lock:
            self.read, self.now = self.read + 1, self.now + 1
            self.most = max(self.most, self.now)
        weakref.finalize(image, self._freed)
        return image

    def _freed(self) -> None:
        self.now -= 1


@pytest.mark.parametrize("scale", [1, 2])
def test_few_images_are_held_at_once_and_each_is_decoded_once(
    files: list[ImageFile], monkeypatch: pytest.MonkeyPatch, scale: int
) -> None:
    counted = Counted(monkeypatch)
    truths = read_truths(files, "rgb", on_bad="refuse", memory_limit=0)
    # Those that are read ahead, the one that is looked at, and the one before it.
    assert counted.most <= READ_AHEAD + 2
    gc.collect()
    assert counted.now == 0
    stream = PatchStream(truths, scale, {"kind": "none"}, (8 // scale,) * 2, LOOP)
    counted.read = counted.most = 0
    batches = list(stream.epoch(0, 0, CPU))
    assert len(batches) == stream.steps > len(files)  # an image has more patches than there are in a batch
    assert counted.read == len(files)
    assert counted.most <= LEAST_HELD + 1  # the image of the patch before
    gc.collect()
    assert counted.now == 0


def test_the_memory_limit_bounds_the_pool(files: list[ImageFile]) -> None:
    streamed = both(files)[1]
    largest = 43 * 48 * 3
    for limit, held in ((0, LEAST_HELD), (12 * largest, 12), (12 * largest - 1, 11), (EVERYTHING, 64)):
        assert PatchStream(streamed, 1, NOISE, (8, 8), LOOP, memory_limit=limit).held == held
    paired = replace(streamed, inputs=streamed.images)
    assert PatchStream(paired, 1, NOISE, (8, 8), LOOP, memory_limit=24 * largest).held == 12


def test_a_pooled_order_is_complete_mixed_and_has_few_images_in_use() -> None:
    counts = np.array([7, 1, 300, 40, 40, 40, 1, 1, 90, 25, 60, 60])
    owners = np.repeat(np.arange(12), counts)
    order = pooled_order(counts, 4, np.random.default_rng(0))
    assert np.array_equal(np.sort(order), np.arange(counts.sum()))
    used = owners[order]
    first, last = ([int(np.flatnonzero(used == image)[end]) for image in range(12)] for end in (0, -1))
    at_once = [sum(a <= use <= b for a, b in zip(first, last, strict=True)) for use in range(len(used))]
    assert max(at_once) == 4
    several = [len(set(used[start : start + 16].tolist())) for start in range(0, 400, 16)]
    assert np.median(several) >= 3
    assert np.array_equal(order, pooled_order(counts, 4, np.random.default_rng(0)))
    assert not np.array_equal(order, pooled_order(counts, 4, np.random.default_rng(1)))
    assert np.array_equal(np.sort(pooled_order(counts, 99, np.random.default_rng(0))), np.arange(counts.sum()))


def test_batches_are_made_while_one_is_used() -> None:
    made, release = [], threading.Event()

    def items() -> Iterator[int]:
        for item in range(5):
            made.append(item)
            if item == 2:
                release.set()
            yield item

    ahead = prefetched(items(), 2)  # type: ignore[arg-type]  # an iterator is what a generator function returns
    assert next(ahead) == 0
    assert release.wait(60)  # the third was made without being asked for
    assert made == [0, 1, 2]
    assert list(ahead) == [1, 2, 3, 4]
    assert list(prefetched(items(), 0)) == [0, 1, 2, 3, 4]  # type: ignore[arg-type]


def test_errors_in_the_background_are_raised_and_threads_end(files: list[ImageFile]) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise DataError("broken")

    items = prefetched(broken(), 3)  # type: ignore[arg-type]
    assert next(items) == 1
    with pytest.raises(DataError, match="broken"):
        next(items)

    def read(number: int) -> int:
        if number == 3:
            raise ImageError("unreadable")
        return number

    with pytest.raises(ImageError, match="unreadable"):
        list(read_ahead(read, np.array([0, 1, 0, 3, 5])))
    assert list(read_ahead(str, np.array([4, 1, 4, 4, 2]))) == ["4", "1", "4", "4", "2"]
    stream = PatchStream(both(files)[1], 1, NOISE, (8, 8), LOOP)
    started = stream.epoch(0, 0, CPU)
    next(started)
    started.close()  # type: ignore[attr-defined]
    assert not [item.name for item in threading.enumerate() if item.name.startswith("krl-")]


# --- training from disk


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (("train", 10), ("val", 3)):
        (tmp_path / "images" / split).mkdir(parents=True)
        for number in range(count):
            image = Image.fromarray(random_image(number, 30 + number)).convert(("RGB", "L", "P", "RGBA")[number % 4])
            image.save(tmp_path / "images" / split / f"{number}.png")
    return tmp_path / "images"


def config(folder: Path, out: Path, memory_limit_mb: int = 0, **changes: Any) -> FitConfig:
    base = FitConfig(
        out=out,
        task="restoration",
        model="espcn-8",
        data=DataConfig(data=str(folder), memory_limit_mb=memory_limit_mb),
        input=InputConfig(size=(10,)),
        restoration=RestorationConfig(scale=2),
        loop=LoopConfig(epochs=2, batch_size=4, device="cpu", precision="fp32"),
    )
    return replace(base, **changes)


def test_training_evaluation_and_distillation_from_disk(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    kept, streamed = (fit(config(folder, tmp_path / str(limit), limit)).record for limit in (4096, 0))
    assert "10 images take" in caplog.text
    orders = ("all images at a time (--memory-limit-mb)", "4 images at a time (--memory-limit-mb)")
    assert (kept.data.pop("order"), streamed.data.pop("order")) == orders
    assert kept.data == streamed.data
    metrics = [
        {name: item.metrics[name] for name in ("count", "input_psnr", "input_ssim")} for item in (kept, streamed)
    ]
    assert metrics[0] == metrics[1]
    data = DataConfig(data=str(folder), memory_limit_mb=0)
    again = evaluate(EvaluateConfig(run=tmp_path / "0", data=data, device="cpu"))
    assert again["psnr"] == pytest.approx(streamed.metrics["psnr"], abs=1e-3)
    student = DistillConfig(
        out=tmp_path / "student",
        teacher=(str(tmp_path / "0"),),
        student="espcn-4",
        data=data,
        loop=LoopConfig(epochs=1, batch_size=4, device="cpu", precision="fp32"),
    )
    assert distill(student).record.metrics["count"] == 3


def test_resumed_in_mid_epoch_from_disk_is_as_if_never_stopped(folder: Path, tmp_path: Path) -> None:
    whole = fit(config(folder, tmp_path / "whole")).record
    loop = LoopConfig(epochs=2, batch_size=4, device="cpu", precision="fp32", checkpoint_minutes=0.0)
    stopped = config(folder, tmp_path / "stopped", loop=loop)
    with stopped_at_checkpoint(), pytest.raises(KeyboardInterrupt):
        fit(stopped)
    larger = replace(stopped, resume=True, data=replace(stopped.data, memory_limit_mb=4096))
    with pytest.raises(RunError, match=r"was '4 images at a time \(--memory-limit-mb\)', now 'all images at a time"):
        fit(larger)
    assert fit(replace(stopped, resume=True)).record.weights_sha256 == whole.weights_sha256


def test_bad_and_small_images_are_counted_alike_from_disk(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "train" / "broken.png").write_bytes((folder / "train" / "1.png").read_bytes()[:90])
    Image.new("RGB", (3, 2)).save(folder / "train" / "tiny.png")
    messages = []
    for limit in (4096, 0):
        with pytest.raises(DataError) as refused:
            fit(config(folder, tmp_path / "run", limit))
        caplog.clear()
        data = DataConfig(data=str(folder), memory_limit_mb=limit, on_bad_image="skip")
        record = fit(config(folder, tmp_path / f"run{limit}", data=data)).record
        skipped = [item.message for item in caplog.records if "skipped" in item.message]
        messages.append((str(refused.value), skipped, record.data["train"]))
    assert messages[0] == messages[1]
    assert "broken.png" in messages[0][0]
    assert [item.count("skipped 1 files") for item in messages[0][1]] == [1, 1]
    assert "tiny.png has 3x2 pixels, less than a patch of 20x20" in messages[0][1][1]


def test_an_image_that_changes_is_named(files: list[ImageFile], tmp_path: Path) -> None:
    copies = [tmp_path / item.path.name for item in files]
    for item, copy in zip(files, copies, strict=True):
        copy.write_bytes(item.path.read_bytes())
    truths = read_truths([ImageFile(copy) for copy in copies], "rgb", on_bad="refuse", memory_limit=0)
    stream = PatchStream(truths, 1, NOISE, (8, 8), LOOP)
    Image.fromarray(random_image(0, 24)[:-1]).save(copies[0])
    with pytest.raises(DataError, match=r"00.png had 29x24 pixels and now has 29x23; leave the images"):
        list(stream.epoch(0, 0, CPU))
    Image.fromarray(255 - np.asarray(Image.open(files[0].path))).save(copies[0])
    with pytest.raises(DataError, match=r"00.png has other pixels than when it was first read; leave the images"):
        list(stream.epoch(0, 0, CPU))
    copies[0].unlink()
    with pytest.raises(ImageError, match=r"00.png: no such file"):
        list(stream.epoch(0, 0, CPU))


def test_pairs_stay_together_on_disk(tmp_path: Path) -> None:
    for name in ("A", "B"):
        (tmp_path / "train" / name).mkdir(parents=True)
    for number in range(12):
        wanted = random_image(number, 20 + number)
        Image.fromarray(wanted).save(tmp_path / "train" / "B" / f"{number}.png")
        Image.fromarray(255 - wanted).save(tmp_path / "train" / "A" / f"{number}.png")
    kept, streamed = (read_pairs(tmp_path, "train", DataConfig(memory_limit_mb=limit), "rgb") for limit in (4096, 0))
    assert streamed.on_disk
    assert kept.identity == streamed.identity
    for batch in PatchStream(streamed, 1, {"kind": "none"}, (8, 8), LOOP).epoch(0, 0, CPU):
        assert torch.equal(batch.pixels, 255 - batch.truth)
    Image.fromarray(random_image(0, 9)).save(tmp_path / "train" / "A" / "0.png")
    with pytest.raises(DataError, match=r"pair 0.png: A has 14x9 pixels, B 25x20"):
        read_pairs(tmp_path, "train", DataConfig(memory_limit_mb=0), "rgb")
