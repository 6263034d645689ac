from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from _helpers.images import make_split_folder
from _helpers.resuming import stopped_at_checkpoint
from krl_compress.cli import main
from krl_compress.config import CacheConfig, DistillConfig, GeneratorStudentConfig, LossConfig
from krl_compress.distillation.distill import distill
from krl_compress.distillers import Distiller, FrozenTeacher, parse_loss
from krl_compress.teachers.loading import LoadedTeacher, load_teacher, name_alike
from krl_compress.teachers.store import StoredTeacher
from krl_runtime.errors import DataError, ModelError, RunError, UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import (
    AugmentConfig,
    DataConfig,
    FitConfig,
    GenerationConfig,
    InputConfig,
    LoopConfig,
    OptimConfig,
)
from krl_train.data import Augmentation, PixelSet
from krl_train.loop import BatchStream
from krl_train.models import Network, build_model
from krl_train.run import Run
from krl_train.tasks import Batch, ClassificationTask
from krl_train.training.fit import fit
from krl_train.worker import Worker

LOOP = LoopConfig(epochs=2, batch_size=64, device="cpu", precision="fp32")
DIGITS = DataConfig(data="digits", limit=640, val_limit=200)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "teacher"
    return fit(FitConfig(model="resnet20", out=out, data=DIGITS, loop=replace(LOOP, epochs=8)))


def config(teacher: Run, out: Path, **changes) -> DistillConfig:
    data = DataConfig(limit=320, val_limit=100)
    base = DistillConfig(teacher=(str(teacher.path),), student="dscnn-0.25", out=out, data=data, loop=LOOP)
    return replace(base, **changes)


def network(name: str = "resnet8", seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network(build_model(name, 4, 3), Preprocessing(16, 16))


def batch(count: int = 8, size: int = 16, channels: int = 3) -> Batch:
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (count, channels, size, size)).astype(np.uint8))
    return Batch(pixels, torch.arange(count) % 4, torch.arange(count), 0)


def hinton(student: Network, teacher, alpha: float = 0.1) -> Distiller:
    return Distiller(student, teacher, [parse_loss(f"ce:weight={alpha}"), parse_loss(f"kd:weight={1 - alpha}")])


def test_loss_is_the_formula() -> None:
    student, tutor = network(seed=0).eval(), network(seed=1).eval()
    objective = hinton(student, FrozenTeacher(tutor), alpha=0.3)
    objective.eval()
    parts = {name: value.item() for name, value in objective(batch()).items()}
    with torch.no_grad():
        z_s, z_t = (net(batch().pixels).double().numpy() for net in (student, tutor))

    def softmax(z):
        e = np.exp(z - z.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    ce = -np.mean(np.log(softmax(z_s)[np.arange(8), np.arange(8) % 4]))
    p_t, p_s = softmax(z_t / 4), softmax(z_s / 4)
    kl = np.mean(np.sum(p_t * (np.log(p_t) - np.log(p_s)), 1))
    assert parts["ce"] == pytest.approx(ce, rel=1e-5)
    assert parts["kd"] == pytest.approx(16 * kl, rel=1e-5)
    assert parts["loss"] == pytest.approx(0.3 * ce + 0.7 * 16 * kl, rel=1e-5)


def test_teacher_does_not_change_whatever_anyone_calls() -> None:
    given = network(seed=1)
    as_given = {name: value.clone() for name, value in given.state_dict().items()}
    frozen = FrozenTeacher(given)
    objective = hinton(network(), frozen)
    tutor = frozen.network
    before = {name: value.clone() for name, value in tutor.state_dict().items()}
    data = PixelSet(batch().pixels.numpy(), [0, 1, 2, 3] * 2)
    optim = OptimConfig(lr=1.0, weight_decay=0.5, warmup=0.0)
    task = ClassificationTask(objective, optim, steps=3, batch_size=8, val=data, labels=tuple("abcd"))
    learner = task.learners["model"]

    def update(name: str, loss: torch.Tensor) -> None:
        learner.optimizer.zero_grad()
        loss.backward()
        learner.optimizer.step()

    for _ in range(3):
        objective.train()
        tutor.train().requires_grad_(True)  # even this
        answers = objective.teacher(batch())
        assert not answers.requires_grad
        task.step(batch(), update)
    assert not tutor.training
    assert all(torch.equal(value, before[name]) for name, value in tutor.state_dict().items())
    assert all(torch.equal(value, as_given[name]) for name, value in given.state_dict().items())
    held = {id(parameter) for group in learner.optimizer.param_groups for parameter in group["params"]}
    assert held.isdisjoint({id(parameter) for parameter in tutor.parameters()})
    assert not any("teacher" in name for name in objective.state_dict())


def test_both_nets_see_the_same_view() -> None:
    seen = []

    class Spy:
        features = None

        def fold(self) -> None: ...

        def __call__(self, given: Batch) -> torch.Tensor:
            seen.append(given.pixels)
            return torch.zeros(len(given.pixels), 4)

    student = network()
    student.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    hinton(student, Spy())(batch())
    assert seen[0] is seen[1]


@pytest.mark.parametrize(("channels", "wanted"), [(1, 3), (3, 1), (3, 3)])
def test_teacher_gets_the_view_in_its_own_size_and_colors(channels: int, wanted: int) -> None:
    torch.manual_seed(0)
    preprocessing = Preprocessing(24, 24, channels=wanted, mean=(0.5,) * wanted, std=(0.25,) * wanted)
    tutor = Network(build_model("resnet8", 4, wanted), preprocessing)
    shapes = []
    tutor.register_forward_pre_hook(lambda _, arguments: shapes.append(tuple(arguments[0].shape)))
    flat = torch.full((2, channels, 16, 16), 100, dtype=torch.uint8)
    teacher = FrozenTeacher(tutor)
    answers = teacher.logits(flat)
    assert shapes == [(2, wanted, 24, 24)]
    # a flat image stays flat whatever is done to its size and colors
    torch.testing.assert_close(answers, teacher.logits(torch.full((2, wanted, 24, 24), 100, dtype=torch.uint8)))


class TestStoredTeacher:
    @pytest.fixture
    def parts(self):
        data = PixelSet(batch(24).pixels.numpy(), [0, 1, 2, 3] * 6)
        augmentation = Augmentation.resolve(AugmentConfig(), Preprocessing(16, 16), flip=True, seed=5)
        return FrozenTeacher(network(seed=1)), data, augmentation

    def test_answers_are_the_teachers_own(self, parts, tmp_path: Path) -> None:
        teacher, data, augmentation = parts
        stored = StoredTeacher(teacher, "hash", data, augmentation, views=2, folder=tmp_path)
        assert stored.fill(torch.device("cpu"), batch_size=7) == 2
        indices = np.array([3, 17, 8])
        for view in (0, 1):
            views = augmentation(data.pixels(indices), indices, view)
            given = Batch(views, torch.zeros(3), torch.from_numpy(indices), view)
            torch.testing.assert_close(stored(given), teacher(given), rtol=1e-5, atol=1e-5)

    def test_they_are_shared_and_keyed_by_identity(self, parts, tmp_path: Path) -> None:
        teacher, data, augmentation = parts
        cpu = torch.device("cpu")

        def fill(weights: str = "hash", data: PixelSet = data, augmentation=augmentation, views: int = 1) -> int:
            return StoredTeacher(teacher, weights, data, augmentation, views=views, folder=tmp_path).fill(cpu)

        assert fill() == 1
        assert fill() == 0
        assert fill(views=3) == 2  # one of three is there already
        assert fill(weights="other") == 1
        assert fill(augmentation=replace(augmentation, seed=6)) == 1
        assert fill(data=PixelSet(batch(24).pixels.numpy() ^ 1, [0, 1, 2, 3] * 6)) == 1
        assert len(list(tmp_path.iterdir())) == 4

    def test_views_of_all_kinds_are_those_of_the_training(self, parts, tmp_path: Path) -> None:
        teacher, data, _ = parts
        views = AugmentConfig(
            **{"random_resized_crop": True, "auto_augment": "trivialaugment", "color_jitter": (0.4, 0.4, 0.4, 0.1)},
            erase=0.5,
        )
        augmentation = Augmentation.resolve(views, Preprocessing(16, 16), flip=True, seed=5)
        stored = StoredTeacher(teacher, "hash", data, augmentation, views=2, folder=tmp_path)
        assert stored.fill(torch.device("cpu"), batch_size=7) == 2
        stream = BatchStream(data, augmentation, 8, seed=1, views=2)
        for epoch in (0, 1, 2):
            for given in stream.epoch(epoch, 0, Worker(torch.device("cpu"))):
                torch.testing.assert_close(stored(given), teacher(given), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("before", "now"),
        [
            ({}, {"random_resized_crop": True}),
            ({"random_resized_crop": True}, {"random_resized_crop": True, "crop_scale": (0.2, 1.0)}),
            ({"random_resized_crop": True}, {"random_resized_crop": True, "crop_ratio": (1.0, 1.0)}),
            ({"auto_augment": "randaugment"}, {"auto_augment": "trivialaugment"}),
            ({"auto_augment": "randaugment"}, {"auto_augment": "randaugment", "ra_ops": 1}),
            ({"auto_augment": "randaugment"}, {"auto_augment": "randaugment", "ra_magnitude": 3}),
            ({"color_jitter": (0.4,)}, {"color_jitter": (0.4, 0.4, 0.4, 0.1)}),
            ({"erase": 0.5}, {"erase": 0.4}),
            ({"erase": 0.5}, {"erase": 0.5, "erase_scale": (0.1, 0.2)}),
            ({"erase": 0.5}, {"erase": 0.5, "erase_ratio": (1.0, 2.0)}),
        ],
    )
    def test_other_views_are_computed_anew(self, parts, tmp_path: Path, before, now) -> None:
        teacher, data, _ = parts
        for options, computed in ((before, 1), (before, 0), (now, 1)):
            given = AugmentConfig(crop_padding=0, **options)
            augmentation = Augmentation.resolve(given, Preprocessing(16, 16), flip=True, seed=5)
            stored = StoredTeacher(teacher, "hash", data, augmentation, views=1, folder=tmp_path)
            assert stored.fill(torch.device("cpu")) == computed

    def test_damaged_answers_are_computed_again(self, parts, tmp_path: Path) -> None:
        teacher, data, augmentation = parts
        stored = StoredTeacher(teacher, "hash", data, augmentation, views=1, folder=tmp_path)
        stored.fill(torch.device("cpu"))
        file = next(stored.folder.glob("*.npy"))
        whole = file.read_bytes()
        file.write_bytes(whole[:-40] + b"\0" * 40)
        assert stored.fill(torch.device("cpu")) == 1
        assert file.read_bytes() == whole


def test_the_flow_with_baseline_and_json(teacher: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--teacher", str(teacher.path), "--student", "dscnn-0.25", "--out", str(tmp_path / "student")]
    options += ["--epochs", "8", "--batch-size", "64", "--precision", "fp32", "--baseline", "--json"]
    assert main(["distill", *options]) == 0
    result = json.loads(capsys.readouterr().out)
    run, baseline = Run.open(tmp_path / "student"), Run.open(tmp_path / "student" / "baseline")
    assert result["student"]["top1"] == run.record.metrics["top1"] > 0.8
    assert result["baseline"]["top1"] == baseline.record.metrics["top1"]
    assert result["teacher"]["parameters"] > 20 * result["student"]["parameters"]
    assert run.record.data["source"] == "digits"  # the teacher's data, as nothing else was named
    assert run.record.preprocessing == teacher.record.preprocessing
    assert run.record.parent["teachers"][0]["weights_sha256"] == teacher.record.weights_sha256
    assert set(run.record.history[0]) >= {"loss", "ce", "dkd", "teacher_weight", "val_top1"}
    assert "dkd" not in baseline.record.history[0]


def test_answers_of_another_teacher_are_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = PixelSet(batch().pixels.numpy(), [0, 1, 2, 3] * 2)
    augmentation = Augmentation.resolve(AugmentConfig(), Preprocessing(16, 16), flip=True, seed=0)
    mine, other = (
        StoredTeacher(
            FrozenTeacher(network(seed=seed)), f"weights {seed}", data, augmentation, views=2, folder=tmp_path
        )
        for seed in (0, 1)
    )
    for stored in (mine, other):
        assert stored.fill(torch.device("cpu")) == 2
    for file in other.folder.glob("view*"):  # shards alone: they are found out one by one
        shutil.copy(file, mine.folder)
    assert mine.fill(torch.device("cpu")) == 2
    assert "not of this teacher" in caplog.text
    first, second = (mine.folder / f"view-00{view}-00000" for view in (0, 1))
    for suffix in (".npy", ".sha256"):
        shutil.copy(first.with_suffix(suffix), second.with_suffix(suffix))  # another view's
    assert mine.fill(torch.device("cpu")) == 1
    shutil.rmtree(mine.folder)
    shutil.copytree(other.folder, mine.folder)
    with pytest.raises(DataError, match=r"weights is 'weights 1', needed is 'weights 0'\. Delete the folder"):
        mine.fill(torch.device("cpu"))
    (mine.folder / "identity.json").write_text("{")
    with pytest.raises(DataError, match="not this one"):
        mine.fill(torch.device("cpu"))


def test_a_teacher_that_answers_nan_is_named(tmp_path: Path) -> None:
    tutor = network(seed=1)
    with torch.no_grad():
        tutor.backbone.linear.bias[0] = float("nan")
    frozen = FrozenTeacher(tutor)
    objective = hinton(network(), frozen)
    with pytest.raises(ModelError, match="teacher answers 8 of 8 images with logits that are not finite"):
        objective(batch())
    data = PixelSet(batch().pixels.numpy(), [0, 1, 2, 3] * 2)
    augmentation = Augmentation.resolve(AugmentConfig(), Preprocessing(16, 16), flip=True, seed=0)
    with pytest.raises(ModelError, match="not finite"):
        StoredTeacher(frozen, "w", data, augmentation, views=1, folder=tmp_path).fill(torch.device("cpu"))
    assert not list(tmp_path.rglob("*.npy"))


def test_stored_teacher_in_the_flow(teacher: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = CacheConfig(cache_teacher=True, views=2, cache_dir=tmp_path / "cache")
    with caplog.at_level("INFO", "krl"):
        distill(config(teacher, tmp_path / "a", cache=cache))
        distill(config(teacher, tmp_path / "b", cache=cache, student="resnet8"))
    assert "2 parts computed, 0 reused" in caplog.text
    assert "0 parts computed, 2 reused" in caplog.text
    # a stored teacher and a live one teach the same, where the views are the same
    once = replace(LOOP, epochs=1)
    cached = distill(config(teacher, tmp_path / "c", cache=replace(cache, views=1), loop=once)).state()
    live = distill(config(teacher, tmp_path / "d", loop=once)).state()
    for name, value in cached.items():
        torch.testing.assert_close(value, live[name], rtol=1e-3, atol=1e-4)


def test_mixed_views_are_distilled_but_not_stored(teacher: Run, tmp_path: Path) -> None:
    optim = OptimConfig(label_smoothing=0.1)
    loop = replace(LOOP, balance="weights")
    for name, views in (("cut", AugmentConfig(cutmix=1.0)), ("both", AugmentConfig(cutmix=1.0, mixup=0.4, erase=0.3))):
        asked = config(teacher, tmp_path / name, augment=views, optim=optim, loop=loop)
        history = distill(asked).record.history
        assert set(history[0]) >= {"ce", "kd"}  # the default without dkd
        assert all(np.isfinite(entry["loss"]) for entry in history)
        cache = CacheConfig(cache_teacher=True, views=2, cache_dir=tmp_path / "cache")
        with pytest.raises(UsageError, match="--mixup and --cutmix make views that are not stored; leave out --cache"):
            distill(replace(asked, cache=cache, out=tmp_path / "stored"))
        with pytest.raises(UsageError, match="dkd needs one label for each image, which --mixup and"):
            distill(replace(asked, losses=LossConfig(loss=("ce", "dkd")), out=tmp_path / f"dkd {name}"))


def test_an_interrupted_distillation_resumes(teacher: Run, tmp_path: Path) -> None:
    whole = distill(config(teacher, tmp_path / "whole", baseline=True))
    with stopped_at_checkpoint(3), pytest.raises(KeyboardInterrupt):  # in the student's training
        distill(config(teacher, tmp_path / "stopped", baseline=True))
    resumed = distill(config(teacher, tmp_path / "stopped", baseline=True, resume=True))
    assert resumed.record.weights_sha256 == whole.record.weights_sha256
    assert resumed.record.metrics["baseline"]["top1"] == whole.record.metrics["baseline"]["top1"]


def test_a_distillation_goes_on_with_the_same_teacher_wherever_it_lies(teacher: Run, tmp_path: Path) -> None:
    start = distill(config(teacher, tmp_path / "start"))
    asked = config(teacher, tmp_path / "run", student=str(start.path))
    with stopped_at_checkpoint(1), pytest.raises(KeyboardInterrupt):
        distill(asked)
    for name, path in (("teacher", teacher.path), ("start", start.path)):
        shutil.copytree(path, tmp_path / "moved" / name)
    moved = replace(
        asked, teacher=(str(tmp_path / "moved" / "teacher"),), student=str(tmp_path / "moved" / "start"), resume=True
    )
    with pytest.raises(RunError, match=r"parent\.teachers\[0\]\.weights_sha256 was"):
        distill(replace(moved, teacher=(str(start.path),)))
    with pytest.raises(RunError, match=r"parent\.start was .*, now None"):
        distill(replace(moved, student="dscnn-0.25"))
    assert distill(moved).record.parent["start"]["weights_sha256"] == start.record.weights_sha256


def test_a_student_may_start_from_a_run_and_see_another_size(teacher: Run, tmp_path: Path) -> None:
    first = distill(config(teacher, tmp_path / "first"))
    gentle = OptimConfig(lr=1e-9)
    second = distill(config(teacher, tmp_path / "second", student=str(first.path), optim=gentle))
    assert torch.allclose(first.state()["linear.weight"], second.state()["linear.weight"], atol=1e-5)
    own = InputConfig(size=(10,), mean=(0.0,), std=(1.0,))
    third = distill(config(teacher, tmp_path / "third", student="resnet8", input=own))
    tuned = distill(config(teacher, tmp_path / "tuned", student=str(third.path), optim=gentle))
    assert tuned.record.preprocessing == Preprocessing(10, 10, 1, mean=(0.0,), std=(1.0,))  # as it was trained
    wide = distill(config(teacher, tmp_path / "wide", input=InputConfig(size=(12,), channels=3)))
    assert wide.record.preprocessing.shape == (3, 12, 12)
    assert len(wide.record.preprocessing.mean) == 3


def test_options_of_generators_are_refused(teacher: Run, tmp_path: Path) -> None:
    changes = {
        "generation": GenerationConfig(latent=8, beta=2.0),
        "generator_student": GeneratorStudentConfig(latents=9),
    }
    with pytest.raises(UsageError, match="--latents is for gan; the task is classification"):
        distill(config(teacher, tmp_path / "x", **changes))
    assert not (tmp_path / "x").exists()


def test_a_student_that_does_not_fit_the_labels_is_refused(teacher: Run, tmp_path: Path) -> None:
    folder = make_split_folder(tmp_path / "data", classes=("cat", "dog"))
    with pytest.raises(UsageError, match=r"teacher: 10 \(0, 1, .*data: 2 \(cat, dog\)"):
        distill(config(teacher, tmp_path / "x", data=DataConfig(data=str(folder))))
    assert not (tmp_path / "x").exists()


def _named(*labels: str) -> LoadedTeacher:
    """A teacher whose logits are 0, 1, 2 … whatever it sees, as far as its order goes."""
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, len(labels)))
    nn.init.zeros_(backbone[1].weight)
    backbone[1].bias.data = torch.arange(float(len(labels)))
    made = Network(backbone, Preprocessing(2, 2))
    return LoadedTeacher("t", made, {"path": "t", "weights_sha256": "w"}, labels or None, None)


PIXELS = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("mapping", "labels", "expected"),
    [
        ((), ("fox", "dog", "cat"), [2.0, 1.0, 0.0]),  # the same names in another order
        (("kitten=cat",), ("dog", "kitten"), [1.0, 0.0]),
        (("kitten=0", "hound=dog"), ("hound", "kitten"), [1.0, 0.0]),
        (("names",), ("fox", "cat"), [2.0, 0.0]),
    ],
)
def test_a_teacher_answers_in_the_classes_of_the_data(mapping, labels, expected, tmp_path: Path) -> None:
    for given in (mapping, (str(tmp_path / "map.txt"),)) if mapping and mapping != ("names",) else (mapping,):
        (tmp_path / "map.txt").write_text("\n".join(mapping) + "\n")
        teacher = _named("cat", "dog", "fox")
        made = name_alike(teacher, labels, given)
        assert made.network(PIXELS).tolist() == [expected]
        assert made.labels == labels
        assert made.answers_sha256 != teacher.answers_sha256  # what is stored of one is not the other's
        frozen = FrozenTeacher(made.network)
        frozen.fold()
        assert frozen.logits(PIXELS).tolist() == [expected]


@pytest.mark.parametrize(
    ("mapping", "labels", "message"),
    [
        ((), ("cat", "wolf"), r"teacher: 3 \(cat, dog, fox\); data: 2 \(cat, wolf\).* --map-labels"),
        (("names",), ("cat", "wolf"), r"'wolf' has no counterpart.* does not know 'wolf'"),
        (("wolf=hyena",), ("cat", "wolf"), "does not know 'hyena'; it knows 3"),
        (("wolf=7",), ("cat", "wolf"), "does not know '7'"),
        (("wolf=cat",), ("cat", "wolf"), "'cat' to several: cat, wolf"),
        (("lion=cat",), ("cat", "wolf"), "'lion' is not a class of the data"),
        (("map.csv",), ("cat", "wolf"), "accepted: DATA_LABEL=TEACHER_LABEL"),
    ],
)
def test_labels_that_do_not_fit(mapping, labels, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        name_alike(_named("cat", "dog", "fox"), labels, mapping)


def test_a_teacher_with_other_labels_teaches_through_a_map(teacher: Run, tmp_path: Path) -> None:
    folder = make_split_folder(tmp_path / "data", classes=("cat", "dog"))
    made = replace(config(teacher, tmp_path / "x", data=DataConfig(data=str(folder))), map_labels=("cat=3", "dog=5"))
    assert distill(made).record.labels == ("cat", "dog")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"teacher": ("runs/nowhere",)}, UsageError, "teacher runs/nowhere does not exist"),
        ({"teacher": ("resnet18",)}, UsageError, "nor allowed to be downloaded.*with --pretrained"),
        ({"teacher": ("resnet56",), "pretrained": True}, UsageError, "without published weights"),
    ],
)
def test_unusable_teachers(teacher: Run, tmp_path: Path, changes, error, message: str) -> None:
    with pytest.raises(error, match=message):
        distill(replace(config(teacher, tmp_path / "x"), **changes))


def test_a_damaged_teacher_is_refused(teacher: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(teacher.path, tmp_path / "copy")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(RunError, match="damaged or was changed"):
        distill(config(replace(teacher, path=copy), tmp_path / "x"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LossConfig(alpha=1.5), "--alpha is 1.5"),
        (lambda: LossConfig(temperature=0), "--temperature is 0"),
        (lambda: CacheConfig(views=0), "--views is 0"),
    ],
)
def test_out_of_range_values_are_refused(make, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_a_published_teacher_sees_its_own_input(monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("torchvision.models")
    published = models.efficientnet_b1(weights=None).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: dict(published))
    # torchvision's table of weights: IMAGENET1K_V2 of EfficientNet-B1 takes 240 of 255 pixels
    expected = Preprocessing(240, 240, crop_fraction=240 / 255)
    assert load_teacher("efficientnet_b1", pretrained=True).network.preprocessing == expected
