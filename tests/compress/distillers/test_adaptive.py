"""The default objective: labels, and a teacher whose weight follows from how much better than the student it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from krl_compress.config import LossConfig
from krl_compress.distillation.terms import resolve_losses
from krl_compress.distillers import Distiller, FrozenTeacher, parse_loss
from krl_compress.distillers.weighted_losses import teacher_weight
from krl_compress.teachers.strength import linear_quality
from krl_runtime.errors import UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.data import PixelSet
from krl_train.models import Network, build_model
from krl_train.tasks import Batch


def _network(seed: int) -> Network:
    torch.manual_seed(seed)
    return Network(build_model("resnet8", 4, 3), Preprocessing(16, 16))


def _batch() -> Batch:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 3, 16, 16)).astype(np.uint8))
    return Batch(pixels, torch.arange(8) % 4, torch.arange(8), 0)


def _gradient(objective: Distiller) -> torch.Tensor:
    objective.zero_grad()
    objective(_batch())["loss"].backward()
    return torch.cat([weight.grad.flatten() for weight in objective.network.parameters() if weight.grad is not None])


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        (0.99, 0.5, 1.0),  # 10.5 mistakes and 500.5
        (0.9, 0.8, 2 * (1 - 100.5 / 200.5)),
        (0.9, 0.85, 2 * (1 - 100.5 / 150.5)),
        (0.9, 0.9, 0.0),
        (0.7, 0.95, 0.0),
        (1.0, 1.0, 0.0),
        (1.0, 0.999, 1.0),  # half a mistake and one and a half
    ],
)
def test_the_weight_follows_the_mistakes_of_both(teacher: float, student: float, expected: float) -> None:
    assert teacher_weight(teacher, student, 1000) == pytest.approx(min(1.0, expected))


def test_a_weak_teacher_is_left_to_the_labels_and_a_good_one_is_not() -> None:
    terms = [parse_loss("ce"), parse_loss("kd:weight=0.9,adaptive")]
    student, tutor = _network(0).eval(), FrozenTeacher(_network(1))
    objective = Distiller(student, tutor, terms, teacher_quality=0.6)
    both = _gradient(objective)
    labels = _gradient(Distiller(student, tutor, [parse_loss("ce")]))
    teacher = _gradient(Distiller(student, tutor, [parse_loss("kd:weight=0.9")]))
    torch.testing.assert_close(both, labels + teacher)

    objective.evaluated({"top1": 0.7, "count": 1000})  # the student has overtaken it
    torch.testing.assert_close(_gradient(objective), labels)
    assert objective(_batch())["teacher_weight"] == 0

    objective.evaluated({"top1": 0.5, "count": 1000})
    weight = 2 * (1 - 400.5 / 500.5)
    torch.testing.assert_close(_gradient(objective), labels + weight * teacher)


def test_the_weight_is_part_of_the_checkpoint() -> None:
    made = [Distiller(_network(0), FrozenTeacher(_network(1)), [parse_loss("kd:adaptive")], teacher_quality=0.6)]
    made.append(Distiller(_network(0), FrozenTeacher(_network(1)), [parse_loss("kd:adaptive")], teacher_quality=0.6))
    made[0].evaluated({"top1": 0.55, "count": 1000})
    made[1].load_state_dict(made[0].state_dict())
    assert made[1](_batch())["teacher_weight"] == pytest.approx(2 * (1 - 400.5 / 450.5))


def test_weights_that_are_given_stay_as_they_are() -> None:
    objective = Distiller(_network(0), FrozenTeacher(_network(1)), [parse_loss("kd")], teacher_quality=0.1)
    before = objective(_batch())["loss"].item()
    objective.evaluated({"top1": 0.9, "count": 1000})
    parts = objective(_batch())
    assert parts["loss"].item() == pytest.approx(before)
    assert "teacher_weight" not in parts


@pytest.mark.parametrize(
    ("losses", "mixup", "expected"),
    [
        (LossConfig(), False, [("ce", 1.0, False), ("dkd", 0.3, True)]),
        (LossConfig(), True, [("ce", 1.0, False), ("kd", 0.9, True)]),
        (LossConfig(alpha=0.3), False, [("ce", 0.3, False), ("kd", 0.7, False)]),
        (LossConfig(temperature=2.0), False, [("ce", 0.1, False), ("kd", 0.9, False)]),
        (LossConfig(loss=("ce", "dist")), False, [("ce", 1.0, False), ("dist", 2.0, False)]),
    ],
)
def test_which_losses_count(losses: LossConfig, mixup: bool, expected: list[tuple[str, float, bool]]) -> None:
    terms = resolve_losses(losses, 0.0, mixup=mixup)
    assert [(term.name, pytest.approx(term.weight), term.adaptive) for term in terms] == expected


@pytest.mark.parametrize("text", ["ce:adaptive", "ce:weight=0.5,adaptive"])
def test_labels_have_no_teacher_to_adapt_to(text: str) -> None:
    with pytest.raises(UsageError, match="adaptive is for the losses of a classifier that see the teacher"):
        parse_loss(text)


@pytest.mark.parametrize("losses", [("kd:adaptive",), ("kd:adaptive", "dist:adaptive,weight=3")])
def test_something_is_left_to_learn_by_without_the_teacher(losses: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="every loss is adaptive"):
        resolve_losses(LossConfig(loss=losses), 0.0)


@pytest.mark.parametrize("options", [{"alpha": 0.3}, {"temperature": 2.0}])
def test_options_of_another_objective_are_not_dropped(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="--alpha and --temperature are of the objective without --loss"):
        LossConfig(loss=("ce", "kd"), **options)


def _striped(count: int, seed: int) -> PixelSet:
    """Make images of two classes that a line tells apart (bright at the left or at the right), in noise."""
    rng, labels = np.random.default_rng(seed), np.arange(count) % 2
    pixels = rng.integers(0, 200, (count, 1, 8, 8))
    pixels[labels == 0, :, :, :4] += 40
    pixels[labels == 1, :, :, 4:] += 40
    return PixelSet(pixels.astype(np.uint8), labels.tolist())


def test_the_linear_classifier_is_right_where_a_line_is_enough_and_guesses_where_it_is_not() -> None:
    assert linear_quality(_striped(400, 0), _striped(200, 1), 2) > 0.95
    random = PixelSet(np.random.default_rng(2).integers(0, 256, (400, 1, 8, 8)).astype(np.uint8), [0, 1] * 200)
    assert 0.35 < linear_quality(_striped(400, 0), random, 2) < 0.65


def test_the_linear_classifier_reads_few_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    read, pixels = [], PixelSet.pixels

    def counted(images: PixelSet, indices: np.ndarray, **options: bool) -> torch.Tensor:
        read.append(len(indices))
        return pixels(images, indices, **options)

    monkeypatch.setattr(PixelSet, "pixels", counted)
    linear_quality(_striped(600, 0), _striped(100, 1), 2)
    assert sum(read) == 700
    assert max(read) <= 256
