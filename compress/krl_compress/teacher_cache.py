"""A stored teacher: its logits for fixed views, computed once, shared by all students of the same teacher and data."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from krl_runtime._files import atomic_path, sha256_bytes, sha256_file, write_atomic
from krl_runtime.commandline import progress_bar
from krl_train.data import Augmentation, PixelSet
from krl_train.tasks import Batch

from .distillers import FrozenTeacher

__all__ = ["StoredTeacher"]

_log = logging.getLogger("krl")

_SCHEMA_VERSION = 1


class StoredTeacher:
    """A teacher that looks its answers up.

    The folder's name is a hash of everything that the answers depend on: the teacher's weights, the pictures, the
    views. So a stale answer cannot be found; and each file's hash is checked before it is used.

    Args:
        teacher: Computes what is not stored yet.
        weights_sha256: Identity of the teacher's weights.
        data: The training pictures.
        augmentation: Makes the views.
        views: Number of fixed views of each picture.
        folder: Where the answers of all teachers lie.
    """

    def __init__(
        self,
        teacher: FrozenTeacher,
        weights_sha256: str,
        data: PixelSet,
        augmentation: Augmentation,
        *,
        views: int,
        folder: Path,
    ) -> None:
        identity = {
            "schema_version": _SCHEMA_VERSION,
            "weights": weights_sha256,
            "teacher_preprocessing": teacher.network.preprocessing.to_dict(),
            "data": data.identity,
            "views": asdict(augmentation),
        }
        canonical = json.dumps(identity, sort_keys=True).encode()
        self.folder = folder.expanduser() / sha256_bytes(canonical)[:32]
        self._identity, self._teacher, self._data = canonical, teacher, data
        self._augmentation, self._views = augmentation, views
        self._logits: list[npt.NDArray[np.float32]] = []

    def fill(self, device: torch.device, batch_size: int = 256) -> int:
        """Compute what is not stored yet, and open all of it.

        Args:
            device: Where to compute.
            batch_size: Pictures in one step.

        Returns:
            The number of views that had to be computed.
        """
        write_atomic(self.folder / "identity.json", self._identity)
        computed = 0
        for view in range(self._views):
            if not self._usable(view):
                self._compute(view, device, batch_size)
                computed += 1
        self._logits = [np.load(self._path(view), mmap_mode="r") for view in range(self._views)]
        _log.info("stored teacher %s: %d views computed, %d reused", self.folder, computed, self._views - computed)
        return computed

    def __call__(self, batch: Batch) -> Tensor:
        """Return the stored logits ``[N, classes]`` of float32 of the batch's view."""
        rows = self._logits[batch.view][batch.indices.numpy()]
        return torch.from_numpy(np.array(rows)).to(batch.pixels.device)

    def _path(self, view: int) -> Path:
        return self.folder / f"view-{view:03d}.npy"

    def _usable(self, view: int) -> bool:
        path, seal = self._path(view), self._path(view).with_suffix(".sha256")
        if not path.is_file() or not seal.is_file():
            return False
        if sha256_file(path) == seal.read_text(encoding="ascii", errors="replace"):
            return True
        _log.warning("stored logits %s are damaged; they are computed again", path)
        return False

    def _compute(self, view: int, device: torch.device, batch_size: int) -> None:
        count = len(self._data)
        rows: list[npt.NDArray[Any]] = []
        with progress_bar(f"teacher, view {view + 1}/{self._views}", -(-count // batch_size)) as advance:
            for start in range(0, count, batch_size):
                indices = np.arange(start, min(start + batch_size, count))
                pixels = self._data.pixels(indices).to(device)
                views = self._augmentation(pixels, indices, view)
                rows.append(self._teacher.logits(views).cpu().numpy())
                advance()
        self._path(view).with_suffix(".sha256").unlink(missing_ok=True)
        with atomic_path(self._path(view)) as temporary, temporary.open("wb") as file:
            np.save(file, np.concatenate(rows))
        write_atomic(self._path(view).with_suffix(".sha256"), sha256_file(self._path(view)).encode())
