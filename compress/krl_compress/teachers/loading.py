"""Teachers by run or by name, made to answer in the data's classes."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from krl_runtime.errors import UsageError
from krl_runtime.files import sha256_bytes
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.custom import CustomName, source_of
from krl_train.models import ModelSpec, Network, native_size, published_classes, published_input
from krl_train.run import Run, RunRecord, hash_of_weights
from krl_train.training.train import network_size

from .features import FeatureSource
from .kinds import ACCEPTED, check_teacher

__all__ = ["LoadedTeacher", "load_custom_teacher", "load_teacher", "name_alike"]

_log = logging.getLogger("krl")

_SAME_NAMES = "names"
_IMAGENET = 1000  # classes of ImageNet, which published weights know


@dataclass(frozen=True)
class LoadedTeacher:
    """A teacher and where it comes from.

    Attributes:
        name: What the user calls it.
        network: Its answers are in the order of the data's classes once ``name_alike`` was called.
        identity: What the student's record says of it.
        labels: Its classes; ``None`` for ImageNet's 1000, by number.
        record: Of its run, if it is one.
        features: Where its features come from; the network's modules by default.
        library: The library and version that compute a file's outputs; ``None`` where torch does.
        multi_label: Whether its labels are independent of each other.
    """

    name: str
    network: Network
    identity: dict[str, str]
    labels: tuple[str, ...] | None
    record: RunRecord | None
    features: FeatureSource | None = None
    library: str | None = None
    multi_label: bool = False

    @property
    def answers_sha256(self) -> str:
        """Identity of what it answers: of its weights or file, its source, the order of its classes, its library."""
        keys = ("weights_sha256", "sha256", "output_kind", "classes", "source_sha256")
        parts = [self.identity[key] for key in keys if key in self.identity]
        parts += [self.library] if self.library is not None else []
        return parts[0] if len(parts) == 1 else sha256_bytes(":".join(parts).encode())

    def size(self) -> dict[str, int]:
        """Return its parameters and multiply-accumulate operations; of a file nothing, which torch cannot count."""
        return network_size(self.network) if self.library is None else {}


def load_teacher(name: str, pretrained: bool) -> LoadedTeacher:
    """Load a teacher.

    Args:
        name: A run's folder, or with ``pretrained`` the name of a torchvision or timm classifier.
        pretrained: Whether a name is accepted; its published weights may then be downloaded.

    Raises:
        UsageError: It is neither.
        RunError: The run cannot be used.
    """
    folder = Path(name)
    if folder.exists():
        run = Run.open(folder)
        identity = {"kind": "run", **run.identity}
        record = run.record
        return LoadedTeacher(name, run.network(), identity, record.labels, record, multi_label=record.multi_label)
    check_teacher(name, pretrained)
    size = native_size(name)
    if size is None:
        raise UsageError(f"teacher {name!r} is a network without published weights; accepted: {ACCEPTED}")
    classes = published_classes(name)
    if classes != _IMAGENET:
        raise UsageError(
            f"teacher {name}: its published weights know {classes} classes; accepted: weights for ImageNet's 1000"
        )
    preprocessing = published_input(name) or Preprocessing(height=size, width=size, crop_fraction=0.875)
    network = ModelSpec(name, _IMAGENET, 3).build(preprocessing, pretrained=True)
    identity = {"kind": "published", "name": name, "weights_sha256": hash_of_weights(network.backbone.state_dict())}
    return LoadedTeacher(name, network, identity, None, None)


def load_custom_teacher(
    name: str, labels: Sequence[str], preprocessing: Preprocessing, *, multi_label: bool = False
) -> LoadedTeacher:
    """Load a teacher that is a user's own network, with its weights.

    Args:
        name: ``package.module:name`` of what returns it, or the name of one that was given in Python.
        labels: Its classes.
        preprocessing: From an image to its input.
        multi_label: Whether its labels are independent of each other, as the data's; it answers with logits.

    Raises:
        ModelError: It cannot be made, or does not fit the labels or the input.
    """
    if isinstance(name, CustomName) and isinstance(name.target, Network):
        network = Network(copy.deepcopy(name.target.backbone), name.target.preprocessing, classes=name.target.classes)
    else:
        network = ModelSpec(name, len(labels), preprocessing.channels).build(preprocessing)
        _log.info(
            "teacher %s takes images of %dx%dx%d, mean %s and std %s; give --size, --channels, --mean and --std if it "
            "was trained with others",
            *(name, *preprocessing.shape, preprocessing.mean, preprocessing.std),
        )
    identity = {"kind": "own", "name": str(name), "weights_sha256": hash_of_weights(network.backbone.state_dict())}
    source = source_of(name, "teacher")["sha256"]
    if source is not None:
        identity["source_sha256"] = source
    return LoadedTeacher(name, network, identity, tuple(labels), None, multi_label=multi_label)


def name_alike(teacher: LoadedTeacher, labels: Sequence[str], mapping: Sequence[str]) -> LoadedTeacher:
    """Return the teacher with its answers in the order of the data's classes.

    Args:
        teacher: The teacher.
        labels: The data's classes.
        mapping: What ``--map-labels`` gave: ``"DATA_LABEL=TEACHER_LABEL"`` for classes that are named otherwise (a
            number is a place among the teacher's classes), a file with a line for each, or ``"names"`` alone, to take
            from a teacher that knows more classes those of the same names.

    Raises:
        UsageError: The classes differ and ``mapping`` does not settle it.
    """
    names = teacher.labels or tuple(str(index) for index in range(_IMAGENET))
    if names == tuple(labels) or (teacher.labels is None and len(labels) == _IMAGENET and not mapping):
        return teacher
    if not mapping and sorted(names) != sorted(labels):
        raise UsageError(_differ(teacher, labels))
    given = _read(mapping, labels)
    columns = [_column(given.get(label, label), names, label, teacher) for label in labels]
    if len(set(columns)) < len(columns):
        twice = next(column for column in columns if columns.count(column) > 1)
        both = [label for label, column in zip(labels, columns, strict=True) if column == twice]
        raise UsageError(f"--map-labels gives the teacher's class {names[twice]!r} to several: {', '.join(both)}")
    _log.info("teacher %s answers in the data's %d classes, of its own %d", teacher.name, len(labels), len(names))
    network = teacher.network.answering(columns)
    identity = {**teacher.identity, "classes": ",".join(map(str, columns))}
    return replace(teacher, network=network, identity=identity, labels=tuple(labels))


def _differ(teacher: LoadedTeacher, labels: Sequence[str]) -> str:
    if teacher.labels is None:
        return (
            f"teacher {teacher.name} knows ImageNet's 1000 classes, the data has {len(labels)}; say which of them is "
            "which with --map-labels DATA_LABEL=NUMBER for each, or a file of such lines"
        )
    return (
        f"teacher {teacher.name} and the data do not have the same labels; teacher: {_some(teacher.labels)}; data: "
        f"{_some(labels)}. Say which is which with --map-labels DATA_LABEL=TEACHER_LABEL for those that are named "
        "otherwise, a file of such lines, or --map-labels names where the teacher knows all of the data's and more"
    )


def _read(mapping: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    lines: list[str] = []
    for item in mapping:
        if item == _SAME_NAMES:
            continue
        path = Path(item)
        if "=" not in item and not path.is_file():
            raise UsageError(f"--map-labels {item}: accepted: DATA_LABEL=TEACHER_LABEL, a file of such lines, or names")
        lines += [item] if "=" in item else [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    given = {}
    for line in lines:
        label, equals, name = (part.strip() for part in line.partition("="))
        if not equals or label not in labels:
            raise UsageError(f"--map-labels {line}: {label!r} is not a class of the data; it has {_some(labels)}")
        given[label] = name
    return given


def _column(name: str, names: Sequence[str], label: str, teacher: LoadedTeacher) -> int:
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    raise UsageError(
        f"the data's class {label!r} has no counterpart: teacher {teacher.name} does not know {name!r}; it knows "
        f"{_some(names)}. Give it with --map-labels {label}=TEACHER_LABEL"
    )


def _some(labels: Sequence[str]) -> str:
    return f"{len(labels)} ({', '.join(labels[:10])}{' …' if len(labels) > 10 else ''})"
