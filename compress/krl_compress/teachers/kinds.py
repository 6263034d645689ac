"""The kinds of teachers that ``--teacher`` takes, by what is on disk; nothing here imports torch."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeAlias

from krl_runtime.backends.onnxruntime import open_session, tensor_specs
from krl_runtime.bundle import MANIFEST, Bundle
from krl_runtime.errors import KrlError, UsageError
from krl_runtime.files import sha256_file
from krl_train.config import check_run, recorded_task
from krl_train.custom import is_custom

__all__ = ["ACCEPTED", "VARIANT", "TeacherKind", "check_teacher", "file_sha256", "kind_of", "task_of"]

TeacherKind: TypeAlias = Literal["run", "bundle", "onnx", "own", "published"]
"""A run's folder, a bundle's folder, an ONNX file, a network of the user's own, and a published one by its name."""

ACCEPTED = (
    "a run, a bundle (NAME.krl), an ONNX file (NAME.onnx), your own network as package.module:name, or with "
    "--pretrained the name of a torchvision classifier or timm/NAME"
)
"""All that ``--teacher`` takes, for messages."""

VARIANT = "fp32"
"""The variant of a bundle that teaches: the reference."""

_SUFFIX = ".onnx"


def kind_of(name: str) -> TeacherKind:
    """Return the kind of a teacher.

    Args:
        name: What was given to ``--teacher``.

    Raises:
        UsageError: It is a file or folder of no kind that is accepted, or names one that does not exist.
        RunError: It is a folder that holds neither a run nor a bundle.
    """
    if is_custom(name):
        return "own"
    path = Path(name)
    if (path / MANIFEST).is_file():
        return "bundle"
    if path.is_dir():
        check_run(path)
        return "run"
    if path.exists() and path.suffix.lower() != _SUFFIX:
        raise UsageError(f"teacher {name} is a file that cannot teach; accepted: {ACCEPTED}")
    if path.exists():
        return "onnx"
    if path.suffix.lower() in (_SUFFIX, ".krl") or ("/" in name and not name.startswith("timm/")):
        raise UsageError(f"teacher {name} does not exist; accepted: {ACCEPTED}")
    return "published"


def check_teacher(name: str, pretrained: bool) -> None:
    """Check that a teacher is one that can be had.

    Raises:
        KrlError: See ``kind_of``; or it is the name of a network, and those may not be downloaded.
    """
    if kind_of(name) == "published" and not pretrained:
        raise UsageError(f"teacher {name!r} is neither on disk nor allowed to be downloaded; accepted: {ACCEPTED}")


def task_of(name: str) -> str:
    """Return the task of a teacher: what a run or bundle records; of an ONNX file what its output looks like.

    A network of the user's own and a published one are classifiers, and so is what cannot be read: those that open it
    say why.
    """
    try:
        kind = kind_of(name)
        if kind == "bundle":
            return str(json.loads((Path(name) / MANIFEST).read_bytes())["task"])
        if kind == "onnx":
            return _task_of_file(Path(name), Path(name).stat().st_mtime_ns)
        return recorded_task(name) if kind == "run" else "classification"
    except (KrlError, OSError, ValueError, KeyError, TypeError):
        return "classification"


@lru_cache(maxsize=1)
def _task_of_file(path: Path, changed: int) -> str:
    """Return the task of an ONNX file; it is opened once for the command line, the checks and the distillation.

    Args:
        path: The file.
        changed: When it was changed.
    """
    del changed
    shape = tensor_specs(open_session(path, cuda=False, threads=1).get_outputs())[0].shape
    return "restoration" if len(shape) == 4 and shape[2:] != (1, 1) else "classification"  # images [N, C, H, W]


def file_sha256(name: str) -> str | None:
    """Return the hash of a teacher's file; ``None`` for a teacher that is none.

    Raises:
        KrlError: A bundle is damaged.
    """
    kind = kind_of(name)
    if kind == "onnx":
        return sha256_file(Path(name))
    if kind == "bundle":
        manifest = Bundle.open(name).manifest
        return manifest.files[manifest.variants[VARIANT].file].sha256
    return None
