"""The gradient of each distillation loss beside that of the cross-entropy: what default weights follow from.

    krl-train import --weights cifar10_resnet56.th --model resnet56 --data FOLDER --split val --out runs/resnet56
    python benchmarks/compress/gradients.py runs/resnet56 --data FOLDER

The norm of a loss's gradient with respect to the student's weights, over that of the cross-entropy on the same images;
a fresh student, and the same one after 30 steps on the labels. Each is a mean over batches and seeds of the student.
``papers`` is the ratio at the weight that is usual in the literature, ``default`` the one at krl's default.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from krl_compress.distillers import REGISTRY, Distiller, FrozenTeacher, parse_loss
from krl_train.config import AugmentConfig, DataConfig
from krl_train.data import open_source
from krl_train.data.splits import Training, read_training
from krl_train.loop import BatchStream
from krl_train.models import Network, build_model
from krl_train.run import Run
from krl_train.tasks import Batch
from krl_train.worker import Worker

IMAGES = 4000  # of the training images: as many as the steps see
BATCH, STEPS = 128, 30
MEASURED = 4  # batches; the ratios of single ones differ by some tenths
SEEDS = (0, 1)
LR, MOMENTUM = 0.1, 0.9  # krl's own for this batch

# Weights that are usual in the literature, where they are not the default: see the docstring of each loss.
PAPERS = {
    "logit_mse": 1.0,
    "ttm": 45.0,
    "wttm": 4.0,
    "mlkd": 1.0,
    "dkd": 1.0,
    "rld": 1.0,
    "fitnet": 100.0,
    "wkd_f": 0.08,
    "at": 1000.0,
    "nst": 50.0,
    "sp": 3000.0,
    "rkd": 1.0,
    "pkt": 30000.0,
    "cc": 1.0,
}


def read(data: str, student: Network) -> Training:
    """Read a sample of the training images, with augmentation."""
    source = open_source(DataConfig(data=data, limit=IMAGES, val_limit=100))
    return read_training(source, student.preprocessing, AugmentConfig(), 0)


def batches(training: Training, epoch: int) -> list[Batch]:
    """Return the batches of an epoch."""
    stream = BatchStream(training.train, training.augmentation, BATCH, 0)
    return list(stream.epoch(epoch, 0, Worker(torch.device("cpu"))))


def norm(student: Network, loss: Tensor) -> float:
    """Return the norm of a loss's gradient with respect to all of the student's weights."""
    found = torch.autograd.grad(loss, list(student.parameters()), retain_graph=True, allow_unused=True)
    return float(torch.stack([item.norm() for item in found if item is not None]).norm())


def ratios(student: Network, teacher: Network, training: Training, name: str, measured: list[Batch]) -> list[float]:
    """Return the ratio of one loss at weight 1 for each batch."""
    torch.manual_seed(0)  # of adapters
    term = parse_loss(f"{name}:weight=1")
    objective = Distiller(student, FrozenTeacher(teacher), [parse_loss("ce"), term], labels=training.train.labels)
    found = []
    for batch in measured:
        parts = objective(batch)
        found.append(norm(student, parts[name]) / norm(student, parts["ce"]))
    return found


def train(student: Network, training: Training) -> None:
    """Train on the labels."""
    optimizer = torch.optim.SGD(student.parameters(), LR, MOMENTUM, nesterov=True)
    for batch in batches(training, 0)[:STEPS]:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(student(batch.pixels), batch.labels).backward()
        optimizer.step()


def measure(run: Run, data: str, name_of_student: str) -> dict[str, list[float]]:
    """Return for each loss the mean ratio at weight 1 for a fresh student, and for one of 30 steps."""
    teacher = run.network()
    names = [name for name in REGISTRY if name not in ("ce", "bce")]
    found: dict[str, list[list[float]]] = {name: [[], []] for name in names}
    for seed in SEEDS:
        torch.manual_seed(seed)
        student = Network(build_model(name_of_student, len(run.record.labels)), teacher.preprocessing)
        training = read(data, student)
        measured = batches(training, 1)[:MEASURED]
        for moment in range(2):
            if moment:
                train(student, training)
            for name in names:
                found[name][moment] += ratios(student, teacher, training, name, measured)
    return {name: [sum(items) / len(items) for items in moments] for name, moments in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--student", default="resnet20")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print("| loss | papers' weight | fresh | after 30 steps | default | fresh | after 30 steps | balanced |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (fresh, later) in measure(Run.open(asked.teacher), asked.data, asked.student).items():
        default = REGISTRY[name].weight
        usual = PAPERS.get(name, default)
        cells = [f"{weight:g} | {weight * fresh:.2g} | {weight * later:.2g}" for weight in (usual, default)]
        print(f"| `{name}` | {' | '.join(cells)} | {1 / math.sqrt(fresh * later):.2g} |")


if __name__ == "__main__":
    main()
