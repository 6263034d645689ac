"""Images to calibrate on, to plan on and to judge on: disjoint for every task; and how plans are accepted on them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from _helpers.bundles import write_bundle
from _helpers.image_nets import LABELS_CONDITION, smooth, write_generator, write_restorer
from _helpers.planted_nets import LABELS, SIDE, write_colors
from krl_deploy.cli import main
from krl_deploy.data.folders import choose_disjoint
from krl_deploy.evaluation import EvaluationOptions, task_of
from krl_runtime import DataError, UsageError
from krl_runtime.evaluation.limits import LEAST_AGREEMENT
from krl_runtime.images.labeled import open_data
from krl_runtime.images.preprocessing import Preprocessing


def options(data=None, *, limit=512, planning=512, **more):
    return EvaluationOptions(data, 100, 0.2, "refuse", limit, planning=planning, **more)


def contents(inputs):
    """The inputs, each as bytes."""
    arrays = [inputs] if isinstance(inputs, np.ndarray) else list(inputs.values())
    return [b"".join(array[index].tobytes() for array in arrays) for index in range(len(arrays[0]))]


def sets(task):
    calibration = contents(task.calibration_data.inputs)
    return calibration, *(
        [item for inputs, _ in part for item in contents(inputs)] for part in (task.planning_batches(), task.batches())
    )


def assert_disjoint(parts):
    assert all(parts)
    for index, one in enumerate(parts):
        for other in parts[index + 1 :]:
            assert not set(one) & set(other)


def classifier(path):
    return write_bundle(path, preprocessing=Preprocessing(SIDE, SIDE), labels=LABELS)


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    return write_colors(tmp_path_factory.mktemp("colors") / "data", train=20, val=10)


@pytest.mark.parametrize(("limit", "wanted"), [(512, (40, 40, 40)), (30, (30, 50, 40)), (64, (40, 40, 40))])
def test_classifiers(tmp_path, colors, limit, wanted):
    """Calibration gives up half of the train split at most."""
    parts = sets(task_of(classifier(tmp_path / "a.krl"), options(colors, limit=limit)))
    assert tuple(map(len, parts)) == wanted
    assert_disjoint(parts)


def test_a_folder_without_splits_and_classes(tmp_path, colors):
    flat = tmp_path / "flat"
    flat.mkdir()
    for index, file in enumerate(sorted(colors.glob("*/*/*.png"))):
        shutil.copy(file, flat / f"{index:03d}.png")
    parts = sets(task_of(classifier(tmp_path / "a.krl"), options(flat)))
    assert sum(map(len, parts)) == 120
    assert_disjoint(parts)


def test_copies_are_not_planned_on(tmp_path, colors):
    copied = tmp_path / "copied"
    shutil.copytree(colors, copied)
    for file in sorted(copied.glob("train/*/*.png")):
        shutil.copy(file, file.with_name(f"z{file.name}"))
    for file in sorted(copied.glob("val/*/*.png"))[:8]:
        shutil.copy(file, copied / "train" / file.parent.name / f"zz{file.name}")
    parts = sets(task_of(classifier(tmp_path / "a.krl"), options(copied, limit=40)))
    assert_disjoint(parts)


def test_without_planning_nothing_changes(tmp_path, colors):
    task = task_of(classifier(tmp_path / "a.krl"), options(colors, planning=0))
    assert len(task.calibration_data.inputs) == 80
    with pytest.raises(UsageError, match="--mixed-precision plans on images of its own; give --data FOLDER"):
        next(iter(task.planning_batches()))


def test_generators_take_other_latents(tmp_path):
    for condition in (None, LABELS_CONDITION):
        bundle = write_generator(tmp_path / f"{bool(condition)}.krl", condition=condition)
        parts = sets(task_of(bundle, options(limit=40, planning=50)))
        assert tuple(map(len, parts)) == (40, 50, 100)
        assert_disjoint(parts)


def test_images_of_a_generator(tmp_path, colors):
    """Without a folder the images to plan on have a seed of their own; with one they are its train split."""
    bundle, generator = classifier(tmp_path / "a.krl"), write_generator(tmp_path / "gan.krl", channels=3)
    parts = sets(task_of(bundle, options(limit=20, planning=30, from_generator=generator.path)))
    assert tuple(map(len, parts)) == (20, 30, 100)
    assert_disjoint(parts)
    parts = sets(task_of(bundle, options(colors, limit=20, from_generator=generator.path)))
    assert tuple(map(len, parts)) == (20, 80, 40)
    assert_disjoint(parts)


def test_restorers_take_other_images(tmp_path):
    root = tmp_path / "images"
    for split, count in (("train", 7), ("val", 2)):
        (root / split).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(smooth(60, 70, 3, seed=number + 100 * (split == "val"))).save(
                root / split / f"{number}.png"
            )
    task = task_of(write_restorer(tmp_path / "a.krl"), options(root, limit=64))
    assert [len({image.path for image in part}) for part in (task.train, task.planned, task.val)] == [4, 3, 2]
    assert len({image.path for part in (task.train, task.planned, task.val) for image in part}) == 9
    planned = list(task.planning_batches())
    assert [inputs.shape for inputs, _ in planned] == [(1, 1, 30, 35)] * 3
    assert [truth.shape for _, truth in planned] == [(1, 60, 70)] * 3


@pytest.mark.parametrize(("train", "val"), [(1, 1), (1, 0), (0, 1)])
def test_too_few_images_for_three_sets(tmp_path, capsys, train, val):
    """A split of its own: an empty one is never filled with the images of another."""
    root = tmp_path / "few"
    root.mkdir()
    spare = write_colors(tmp_path / "spare", train=4, val=1)
    for split, count in (("train", train), ("val", val)):
        for file in sorted((spare / "train" / "red").glob("*.png"))[:count]:
            (root / split).mkdir(exist_ok=True)
            shutil.copy(file, root / split / file.name)
    bundle = classifier(tmp_path / "a.krl")
    assert main(["quantize", str(bundle.path), "--data", str(root), "--mixed-precision"]) == 2
    error = capsys.readouterr().err
    assert "too few to calibrate and to plan on" in error or "split of its" in error


def test_copies_alone_leave_nothing_to_plan_on(tmp_path, colors):
    root = tmp_path / "same"
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        for number in range(6):
            shutil.copy(
                colors / "val" / "red" / f"{number:03d}.png"
                if split == "val"
                else colors / "train" / "red" / "000.png",
                root / split / f"{number}.png",
            )
    with pytest.raises(DataError, match="the 6 images to train on are too few to calibrate and to plan on different"):
        choose_disjoint(open_data(root, on_bad="refuse"), 3, 512, 100, val_fraction=0.2)


def logits_of(predictions):
    return np.eye(4, dtype=np.float32)[np.asarray(predictions)]


def scored(task, made, wanted, truth):
    tally = task.tally()
    for start in range(0, len(made), 7):
        part = slice(start, start + 7)
        tally.add(made[part], wanted[part], None if truth is None else truth[part])
    return tally.score()


def test_the_paired_difference_is_that_of_a_plain_formula(tmp_path):
    rng = np.random.default_rng(0)
    task = task_of(classifier(tmp_path / "a.krl"), options())
    truth = rng.integers(0, 4, 200)
    wanted = np.where(rng.random(200) < 0.8, truth, rng.integers(0, 4, 200))
    made = np.where(rng.random(200) < 0.9, wanted, rng.integers(0, 4, 200))
    got = scored(task, logits_of(made), logits_of(wanted), truth)
    lost = np.sum((wanted == truth) & (made != truth)) - np.sum((wanted != truth) & (made == truth))
    each = (wanted == truth).astype(float) - (made == truth)
    assert got.drop == pytest.approx(100 * lost / 200)
    assert got.drop_error == pytest.approx(100 * np.sqrt(np.sum((each - each.mean()) ** 2) / 199 / 200))
    assert got.agreement == pytest.approx(np.mean(made == wanted))
    centered = [each - each.mean(axis=1, keepdims=True) for each in (logits_of(made), logits_of(wanted))]
    noise, signal = np.sum((centered[0] - centered[1]) ** 2), np.sum(centered[1] ** 2)
    assert got.snr_db == pytest.approx(10 * np.log10(signal / noise))
    assert scored(task, logits_of(made), logits_of(wanted), np.full(200, -1)).drop is None
    assert scored(task, logits_of(made), logits_of(made), truth).snr_db == 200


def changed(count, wrong, *, labeled=True):
    """FP32 is right on 400 images; the variant is wrong on some, and FP32 too on ``count`` of other changed ones."""
    truth = np.zeros(400, int)
    wanted, made = truth.copy(), truth.copy()
    made[:wrong] = 1
    wanted[wrong : wrong + count], made[wrong : wrong + count] = 1, 2
    return logits_of(made), logits_of(wanted), truth if labeled else np.full(400, -1)


@pytest.mark.parametrize(
    ("precision", "max_drop", "count", "wrong", "labeled", "reason"),
    [
        ("int8", None, 12, 0, True, None),  # 97 % agree
        ("int8", None, 13, 0, True, "96.75% of the predictions agree with fp32, required: 97.00%"),
        ("int8", 0.5, 6, 0, True, None),
        ("int8", 0.5, 7, 0, True, "98.25% of the predictions agree with fp32, required: 98.50%"),
        ("int8", None, 20, 0, False, None),
        ("int8", None, 21, 0, False, "94.75% of the predictions agree with fp32, required: 95.00%"),
        ("int8", None, 0, 6, True, None),  # 1.5 ± 0.61 points
        ("int8", None, 0, 9, True, "a drop of 2.25 ± 0.74 points, accepted: 1"),
        ("fp16", None, 4, 0, True, None),
        ("fp16", None, 5, 0, True, "98.75% of the predictions agree with fp32, required: 99.00%"),
        ("fp16", 0.2, 3, 0, True, "99.25% of the predictions agree with fp32, required: 99.40%"),
        ("fp16", 3.0, 5, 0, True, "98.75% of the predictions agree with fp32, required: 99.00%"),
        ("int8", 100.0, 200, 200, True, None),
    ],
)
def test_classifiers_are_accepted_on_what_resolves(tmp_path, precision, max_drop, count, wrong, labeled, reason):
    task = task_of(classifier(tmp_path / "a.krl"), options(max_drop=max_drop))
    assert task.why_refused(precision, scored(task, *changed(count, wrong, labeled=labeled))) == reason


def test_agreement_without_labels_is_that_of_the_gate():
    assert (LEAST_AGREEMENT["fp16"], LEAST_AGREEMENT["int8"]) == (0.99, 0.95)


def images(psnr, count=6, seed=0):
    """Images, and others at about this PSNR in dB from them."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(40, 210, (count, 1, 32, 32)).astype(np.float32)
    return truth, truth + rng.normal(0, 255 / 10 ** (psnr / 20), truth.shape).astype(np.float32)


def test_generators_are_accepted_on_their_psnr_to_fp32(tmp_path):
    bundle = write_generator(tmp_path / "a.krl")
    for precision, asked, psnr, accepted in (
        ("int8", None, 31.0, True),
        ("int8", None, 29.0, False),
        ("fp16", None, 39.0, False),
        ("fp16", None, 41.0, True),
        ("int8", 35.0, 34.0, False),
    ):
        task = task_of(bundle, options(min_psnr=asked))
        wanted, made = images(psnr)
        got = task.why_refused(precision, scored(task, made, wanted, None))
        assert (got is None) is accepted, (precision, psnr, got)


def test_restorers_are_accepted_on_the_upper_end_of_the_paired_drop(tmp_path, colors):
    task = task_of(write_restorer(tmp_path / "a.krl"), options(colors, max_drop=0.2))
    tally = task.tally()
    drops = []
    for seed in range(5):
        (truth,), (wanted,) = (part for part in images(30, 1, seed))
        made = wanted + np.random.default_rng(9 + seed).normal(0, 1.5 + 0.3 * seed, wanted.shape).astype(np.float32)
        truth = np.rint(truth).astype(np.uint8)
        tally.add(made[None], wanted[None], truth)
        inner = (slice(None), slice(2, -2), slice(2, -2))
        psnr = [
            10 * np.log10(255**2 / np.mean((np.rint(np.clip(out, 0, 255)) - truth.astype(float))[inner] ** 2))
            for out in (made, wanted)
        ]
        drops.append(psnr[1] - psnr[0])
    got = tally.score()
    error = np.std(drops, ddof=1) / np.sqrt(5)
    assert (got.drop, got.drop_error) == (pytest.approx(np.mean(drops)), pytest.approx(error))
    upper = np.mean(drops) + error
    assert 0 < np.mean(drops) < upper
    for limit, accepted in ((upper + 0.001, True), (upper - 0.001, False)):
        task = task_of(write_restorer(tmp_path / f"{accepted}.krl"), options(colors, max_drop=float(limit)))
        assert (task.why_refused("int8", got) is None) is accepted
