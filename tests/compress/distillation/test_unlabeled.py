from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from _helpers.images import make_folder, make_split_folder
from _helpers.resuming import stopped_at_checkpoint
from krl_compress import losses
from krl_compress.config import CacheConfig, DataFreeConfig, DistillConfig, LossConfig
from krl_compress.distillation.distill import distill
from krl_compress.distillation.unlabeled import add_unlabeled, plan_alone
from krl_compress.distillers import Distiller, FrozenTeacher, FusedTeacher, parse_loss
from krl_runtime.errors import DataError, RunError, UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import AugmentConfig, DataConfig, FitConfig, LoopConfig
from krl_train.data import PixelSet, open_source
from krl_train.data.splits import Training, read_training
from krl_train.data.unpacking import unpack
from krl_train.loop.order import epoch_order
from krl_train.models import Network, build_model
from krl_train.run import Run
from krl_train.tasks import Batch
from krl_train.tasks.cross_entropy import cross_entropy
from krl_train.training.balance import class_weights, warn_of_imbalance
from krl_train.training.fit import fit

LOOP = LoopConfig(epochs=1, batch_size=8, device="cpu", precision="fp32")
LABELS = torch.tensor([0, -1, 2, 3, -1, 0])


def network(name: str = "resnet8", seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network(build_model(name, 4, 3), Preprocessing(16, 16)).eval()


def batch(seed: int = 0, labels: torch.Tensor = LABELS) -> Batch:
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 3, 16, 16)).astype(np.uint8)
    return Batch(torch.from_numpy(pixels), labels, torch.arange(len(labels)), 0)


def training(folder: Path, **options) -> Training:
    source = open_source(DataConfig(data=str(folder), **options))
    return read_training(source, Preprocessing(16, 16), AugmentConfig(), 0)


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 0.5, 4.0])])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_is_the_mean_of_the_labeled_ones(weights: torch.Tensor | None, smoothing: float) -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    known = LABELS >= 0
    expected = F.cross_entropy(logits[known], LABELS[known], weights, label_smoothing=smoothing)
    found = cross_entropy(logits, LABELS, label_smoothing=smoothing, class_weights=weights)
    torch.testing.assert_close(found, expected)


def test_a_batch_without_labels_has_a_cross_entropy_of_zero() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    value = cross_entropy(logits, torch.full((3,), -1), class_weights=torch.ones(4))
    value.backward()
    assert value.item() == 0
    assert torch.equal(logits.grad, torch.zeros(3, 4))


def test_a_mixed_batch_is_the_sum_by_hand() -> None:
    student, tutor = network(seed=0), network("resnet20", seed=1)
    terms = [parse_loss(text) for text in ("ce:weight=0.3", "kd:weight=0.7,temperature=2", "dkd:weight=0.5")]
    parts = Distiller(student, FrozenTeacher(tutor), terms).eval()(batch())
    with torch.no_grad():
        mine, theirs = student(batch().pixels), tutor(batch().pixels)
    known = LABELS >= 0
    ce = -mine.log_softmax(1)[known, LABELS[known]].mean()
    soft = (theirs / 2).softmax(1)
    kd = 4 * (soft * (soft.log() - (mine / 2).log_softmax(1))).sum(1).mean()
    filled = LABELS.clone()
    filled[[1, 4]] = theirs[[1, 4]].argmax(1)
    dkd = losses.dkd(mine, theirs, filled)
    for name, value in {"ce": ce, "kd": kd, "dkd": dkd, "loss": 0.3 * ce + 0.7 * kd + 0.5 * dkd}.items():
        torch.testing.assert_close(parts[name].detach(), value, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_the_labels_does_not_depend_on_unlabeled_images() -> None:
    gradients = []
    for seed in (1, 2):
        given, student = batch(), network()
        other = torch.where((LABELS < 0)[:, None, None, None], batch(seed).pixels, given.pixels)
        Distiller(student, None, [parse_loss("ce")]).eval()(replace(given, pixels=other))["loss"].backward()
        gradients.append(torch.cat([item.grad.flatten() for item in student.parameters()]))
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


def test_mixed_with_an_unlabeled_image_a_label_counts_by_its_share() -> None:
    mixed = replace(batch(), partners=LABELS.roll(1), share=0.7)
    student = network()
    value = Distiller(student, None, [parse_loss("ce")]).eval()(mixed)["ce"]
    log_p = student(mixed.pixels).log_softmax(1)
    own = -torch.stack([log_p[0, 0], log_p[2, 2], log_p[3, 3], log_p[5, 0]]).mean()
    other = -torch.stack([log_p[0, 0], log_p[1, 0], log_p[3, 2], log_p[4, 3]]).mean()
    torch.testing.assert_close(value, 0.7 * own + 0.3 * other)


@pytest.mark.parametrize("fusion", ["confidence", "class"])
def test_teachers_are_evenly_fused_on_unlabeled_images(fusion) -> None:
    tutors = [FrozenTeacher(network(seed=seed)) for seed in (1, 2)]
    recall = torch.tensor([[1.0] * 4, [0.0] * 4])
    fused = FusedTeacher(tutors, fusion, recall)(batch())
    first, second = (tutor(batch()) for tutor in tutors)
    unlabeled = LABELS < 0
    torch.testing.assert_close(fused[unlabeled], ((first + second) / 2)[unlabeled])
    assert not torch.allclose(fused[~unlabeled], ((first + second) / 2)[~unlabeled])
    if fusion == "class":
        torch.testing.assert_close(fused[~unlabeled], first[~unlabeled])


def test_each_batch_has_its_share_of_labels() -> None:
    labels = np.array([0] * 15 + [1] * 45 + [-1] * 4000)
    order = epoch_order(labels, np.random.default_rng(0))
    assert len(order) == len(labels)
    found = [int((labels[order[start : start + 64]] >= 0).sum()) for start in range(0, 4032, 64)]
    assert {7, 8, 9}.issuperset(found)  # an eighth, of 64
    times = np.bincount(order, minlength=len(labels))
    assert set(times[:60]) == {8, 9}
    assert set(times[60:]) == {0, 1}
    balanced = labels[epoch_order(labels, np.random.default_rng(0), balanced=True)]
    assert abs(int((balanced == 0).sum()) - int((balanced == 1).sum())) <= 1


def test_many_labels_are_all_shown_once() -> None:
    labels = np.array([0, 1] * 50 + [-1] * 50)
    assert sorted(epoch_order(labels, np.random.default_rng(0))) == list(range(150))


def test_counts_of_classes_are_those_of_the_labeled(caplog: pytest.LogCaptureFixture) -> None:
    images = PixelSet(np.zeros((10, 1, 4, 4), np.uint8), [0, 0, 0, 0, 1, 1, -1, -1, -1, -1])
    torch.testing.assert_close(class_weights(images, LoopConfig(balance="weights")), torch.tensor([0.75, 1.5]))
    warn_of_imbalance(images, ("a", "b"), LoopConfig())
    assert not caplog.records


def test_validation_and_training_images_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = make_split_folder(tmp_path / "data", count=4)
    new = make_folder(tmp_path / "new" / "deep" / "cat", ("a", "b"), count=3, seed=9)
    for index in range(3):
        shutil.copy(data / "val" / "cat" / f"{index:03d}.png", new / f"val{index}.png")
    for index in range(2):
        shutil.copy(data / "train" / "dog" / f"{index:03d}.png", new / f"train{index}.png")
    shutil.copy(new / "a" / "000.png", new / "again.png")
    given = training(data, val_limit=2)
    caplog.set_level("INFO", "krl")
    found, described = add_unlabeled(given, (tmp_path / "new", new), Preprocessing(16, 16))
    assert described["left_out"] == {"validation": 3, "training": 2, "copies": 1}
    assert described["count"] == 6
    assert "3 of the 12 unlabeled images are validation images; they are left out" in caplog.text
    assert found.train.labels.tolist() == [0] * 4 + [1] * 4 + [-1] * 6
    margin = found.train.margin
    pixels = found.train.pixels(np.arange(8, 14)).numpy()[:, :, margin : margin + 16, margin : margin + 16]
    expected = [np.asarray(Image.open(path)).transpose(2, 0, 1) for path in new.glob("[ab]/*.png")]
    assert sorted(item.tobytes() for item in pixels) == sorted(item.tobytes() for item in expected)
    with pytest.raises(DataError, match="none of the 4 images is left"):
        add_unlabeled(given, (data / "val" / "cat",), Preprocessing(16, 16))
    with pytest.raises(DataError, match=r"--unlabeled: .*nowhere does not exist"):
        add_unlabeled(given, (tmp_path / "nowhere",), Preprocessing(16, 16))


def test_images_of_a_named_data_set_are_known_by_their_pixels(tmp_path: Path) -> None:
    source = open_source(DataConfig(data="digits", limit=30, val_limit=10))
    unpack(source, tmp_path)
    given = read_training(source, Preprocessing(8, 8, channels=1, mean=(0.5,), std=(0.5,)), AugmentConfig(), 0)
    described = add_unlabeled(given, (tmp_path,), given.augmentation.preprocessing)[1]
    train, val = (len(source.arrays[split][0]) for split in ("train", "val"))
    assert described["left_out"] == {"validation": val, "training": 30, "copies": 0}
    assert described["count"] == train - 30


def test_bad_files_and_memory(tmp_path: Path) -> None:
    data = make_split_folder(tmp_path / "data", count=4)
    new = make_folder(tmp_path / "new", count=3, seed=9)
    (new / "notes.txt").write_text("no image")
    (new / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"--unlabeled: 1 files cannot be used: .*notes.txt"):
        add_unlabeled(training(data), (new,), Preprocessing(16, 16))
    kept, _ = add_unlabeled(training(data, on_bad_image="skip"), (new,), Preprocessing(16, 16))
    given = training(data, on_bad_image="skip", memory_limit_mb=0)
    read, described = add_unlabeled(given, (new,), Preprocessing(16, 16))
    assert described["count"] == 6
    for chosen in (np.arange(14), np.array([9, 10]), np.array([0, 3])):  # both parts, or one of them alone
        assert torch.equal(read.train.pixels(chosen), kept.train.pixels(chosen))


def test_the_labeled_images_alone_get_as_many_steps() -> None:
    alone = plan_alone(LoopConfig(epochs=10, batch_size=32, evaluate_every=2), 60, 1060, 40)
    assert (alone.epochs, alone.batch_size) == (165, 32)  # 10 * 33 steps, two in an epoch
    assert alone.evaluate_every == 33  # five evaluations in both


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    root = tmp_path_factory.mktemp("unlabeled")
    data = make_split_folder(root / "data", count=12)
    make_folder(root / "new", ("x", "y"), count=8, seed=5)
    teacher = fit(FitConfig(model="resnet8", out=root / "teacher", data=DataConfig(data=str(data)), loop=LOOP))
    return teacher, root


def config(runs: tuple[Run, Path], out: Path, **changes) -> DistillConfig:
    teacher, root = runs
    base = DistillConfig(
        teacher=(str(teacher.path),), student="dscnn-0.25", unlabeled=(root / "new",), out=out, loop=LOOP
    )
    return replace(base, **changes)


def test_the_flow(runs: tuple[Run, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "krl")
    asked = config(runs, tmp_path / "run", baseline=True, data=DataConfig(limit=8))
    with stopped_at_checkpoint(4), pytest.raises(KeyboardInterrupt):  # in the student's training, after the baseline's
        distill(asked)
    assert "plan: of 24 images 16 are unlabeled" in caplog.text
    assert "8 labeled images alone, for as many steps as with the unlabeled ones: 3" in caplog.text
    other = make_folder(tmp_path / "other", count=2, seed=6)
    for changed, message in (((other,), "unlabeled images are others: 16 were, now 4, 0 of them the same"), ((), "16")):
        with pytest.raises(RunError, match=message):
            distill(replace(asked, unlabeled=changed, resume=True))
    moved = tmp_path / "moved" / "inside"
    shutil.copytree(runs[1] / "new", moved)
    (moved / "x").rename(moved / "zz")
    run = distill(replace(asked, unlabeled=(moved.parent,), resume=True))
    assert run.record.data["unlabeled"]["count"] == 16
    assert run.record.data["train"]["count"] == 8
    baseline = Run.open(tmp_path / "run" / "baseline")
    assert "unlabeled" not in baseline.record.data
    assert run.record.metrics["count"] == baseline.record.metrics["count"] == 24


@pytest.mark.parametrize(
    "changes",
    [
        {"losses": LossConfig(loss=("ce", "crd:negatives=4", "sp", "nkd:weight=0.1"))},
        {"losses": LossConfig(loss=("ce",))},
        {"augment": AugmentConfig(mixup=1.0)},
        {"augment": AugmentConfig(cutmix=1.0, random_resized_crop=True)},
        {"cache": CacheConfig(cache_teacher=True)},
    ],
)
def test_losses_mixup_and_a_stored_teacher(runs: tuple[Run, Path], tmp_path: Path, changes) -> None:
    if "cache" in changes:
        changes["cache"] = replace(changes["cache"], cache_dir=tmp_path / "cache")
    run = distill(config(runs, tmp_path / "run", **changes))
    assert all(np.isfinite(value) for value in run.record.history[-1].values() if isinstance(value, float))


def test_generated_and_unlabeled_images_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--data-free and --unlabeled exclude each other"):
        DistillConfig(
            teacher=("runs/teacher",),
            student="resnet8",
            out=tmp_path,
            unlabeled=(tmp_path,),
            data_free=DataFreeConfig(data_free="teacher"),
        )
