"""A stored teacher: its answers to fixed views, computed once, shared by all students of the same teacher and data.

This is dataset reinforcement (https://arxiv.org/abs/2303.08983): a view is kept as its seed, which the image's index
and the view's number give, and beside it the teacher's logits or its largest probabilities (as in
https://arxiv.org/abs/2207.10666).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from krl_runtime.errors import DataError, UsageError
from krl_runtime.files import atomic_path, sha256_bytes, sha256_file, write_atomic
from krl_runtime.progress import progress_bar
from krl_train.data import Augmentation, PixelSet
from krl_train.tasks import Batch

from .teacher import FrozenTeacher

__all__ = ["StoredTeacher"]

_log = logging.getLogger("krl")

_SCHEMA_VERSION = 2  # of a stored teacher; another one is computed anew
_SHARD = 16384
"""Images in one file: what an interruption loses at most."""

Record = npt.NDArray[Any]


class StoredTeacher:
    """A teacher that looks its answers up.

    The folder's name is a hash of everything that the answers depend on: the teacher's weights, the images, the
    views. So a stale answer cannot be found; and each file's hash is checked before it is used. Files are
    memory-mapped, and several processes may read them at once.

    Args:
        teacher: Computes what is not stored yet.
        weights_sha256: Identity of the teacher's weights.
        data: The training images.
        augmentation: Makes the views.
        views: Number of fixed views of each image.
        folder: Where the answers of all teachers lie.
        top_k: Keep the largest k probabilities in half precision, and take the rest to be spread evenly; ``None`` keeps
            all logits in float32.

    Raises:
        UsageError: ``top_k`` is not smaller than the number of classes (found when the first answers are computed).
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
        top_k: int | None = None,
    ) -> None:
        identity = {
            "schema_version": _SCHEMA_VERSION,
            "weights": weights_sha256,
            "teacher_preprocessing": teacher.network.preprocessing.to_dict(),
            "data": data.identity,
            "views": asdict(augmentation),
            "top_k": top_k,
        }
        canonical = json.dumps(identity, sort_keys=True).encode()
        self.folder = folder.expanduser() / sha256_bytes(canonical)[:32]
        self._identity, self._teacher, self._data = canonical, teacher, data
        self._augmentation, self._views, self._top_k = augmentation, views, top_k
        self._shards: list[list[Record]] = []
        self._classes = 0

    features = None
    """It has logits alone."""

    def fold(self) -> None:
        """Do nothing: what is stored is stored, and ``fill`` folds what it computes with."""

    def fill(self, device: torch.device, batch_size: int = 256) -> int:
        """Compute what is not stored yet, and open all of it.

        Args:
            device: Where to compute.
            batch_size: Images in one step.

        Returns:
            The number of shards that had to be computed; an interrupted call goes on with the next one.

        Raises:
            DataError: The folder holds what another teacher answered, or other images or views; it says which.
            ModelError: The teacher answers with numbers that are not finite.
        """
        self._check_identity()
        write_atomic(self.folder / "identity.json", self._identity)
        todo = [(view, shard) for view in range(self._views) for shard in self._shard_numbers()]
        todo = [item for item in todo if not self._usable(*item)]
        if todo:
            self._teacher.fold()
        steps = sum(-(-len(self._indices(shard)) // batch_size) for _, shard in todo)
        with progress_bar("teacher", steps) as advance:
            for view, shard in todo:
                rows = []
                for answers in self._compute(view, self._indices(shard), device, batch_size):
                    rows.append(answers)
                    advance()
                self._write(view, shard, np.concatenate(rows))
        self._shards = [
            [np.load(self._path(view, shard), mmap_mode="r") for shard in self._shard_numbers()]
            for view in range(self._views)
        ]
        self._classes = self._number_of_classes()
        total = self._views * len(self._shard_numbers())
        _log.info("stored teacher %s: %d parts computed, %d reused", self.folder, len(todo), total - len(todo))
        return len(todo)

    def _check_identity(self) -> None:
        """Refuse a folder that was copied, renamed or changed: by its name nothing else can be in it."""
        try:
            there = json.loads((self.folder / "identity.json").read_bytes())
        except FileNotFoundError:
            return
        except ValueError:
            there = None
        mine = json.loads(self._identity)
        if there == mine:
            return
        known = there if isinstance(there, dict) else {}
        different = [
            f"{name} is {known.get(name)!r}, needed is {mine.get(name)!r}"
            for name in sorted(set(known) | set(mine))
            if known.get(name) != mine.get(name)
        ]
        raise DataError(
            f"{self.folder} holds a stored teacher that is not this one: {'; '.join(different)}. Delete the folder, or "
            "give another --cache-dir"
        )

    def __call__(self, batch: Batch) -> Tensor:
        """Return the stored logits ``[N, classes]`` of float32 of the batch's view."""
        indices = batch.indices.numpy()
        shards = self._shards[batch.view]
        first = shards[0]
        rows = np.empty((len(indices), *first.shape[1:]), first.dtype)
        for number, shard in enumerate(shards):
            inside = indices // _SHARD == number
            rows[inside] = shard[indices[inside] % _SHARD]
        logits = rows if self._top_k is None else self._spread(rows)
        return torch.from_numpy(logits).to(batch.pixels.device)

    def _spread(self, rows: Record) -> npt.NDArray[np.float32]:
        """Turn the largest probabilities back into logits, up to a constant: log p, with the rest spread evenly."""
        probabilities = rows["probability"].astype(np.float32)
        rest = np.maximum(1 - probabilities.sum(1, keepdims=True), 1e-6) / (self._classes - probabilities.shape[1])
        whole = np.repeat(rest, self._classes, axis=1).astype(np.float32)
        np.put_along_axis(whole, rows["class"].astype(np.int64), probabilities, axis=1)
        return np.log(np.maximum(whole, 1e-8))

    def _shard_numbers(self) -> range:
        return range(-(-len(self._data) // _SHARD))

    def _indices(self, shard: int) -> npt.NDArray[np.int64]:
        return np.arange(shard * _SHARD, min((shard + 1) * _SHARD, len(self._data)))

    def _path(self, view: int, shard: int) -> Path:
        return self.folder / f"view-{view:03d}-{shard:05d}.npy"

    def _usable(self, view: int, shard: int) -> bool:
        path = self._path(view, shard)
        seal = path.with_suffix(".sha256")
        if not path.is_file() or not seal.is_file():
            return False
        if self._seal(view, shard) == seal.read_text(encoding="ascii", errors="replace"):
            return True
        _log.warning("stored answers %s are damaged, or not of this teacher and view; they are computed again", path)
        return False

    def _seal(self, view: int, shard: int) -> str:
        """Return a hash of a file's bytes and of what it must be."""
        digest = sha256_file(self._path(view, shard))
        return sha256_bytes(self._identity + f" {view} {shard} {digest}".encode())

    def _compute(
        self, view: int, indices: npt.NDArray[np.int64], device: torch.device, batch_size: int
    ) -> Iterator[Record]:
        for start in range(0, len(indices), batch_size):
            chosen = indices[start : start + batch_size]
            views = self._augmentation.on(device, self._data.pixels(chosen), chosen, view)
            yield self._keep(self._teacher.logits(views).cpu())

    def _keep(self, logits: Tensor) -> Record:
        if self._top_k is None:
            return logits.numpy()
        if self._top_k >= logits.shape[1]:
            raise UsageError(f"--cache-top-k is {self._top_k}; accepted: below the {logits.shape[1]} classes, or none")
        largest = logits.softmax(1).topk(self._top_k, dim=1)
        kind = np.dtype([("class", np.uint16 if logits.shape[1] < 2**16 else np.uint32), ("probability", np.float16)])
        rows = np.empty(largest.indices.shape, kind)
        rows["class"], rows["probability"] = largest.indices.numpy(), largest.values.numpy()
        return rows

    def _write(self, view: int, shard: int, rows: Record) -> None:
        path = self._path(view, shard)
        path.with_suffix(".sha256").unlink(missing_ok=True)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, rows)
        write_atomic(path.with_suffix(".sha256"), self._seal(view, shard).encode())

    def _number_of_classes(self) -> int:
        if self._top_k is None:
            return int(self._shards[0][0].shape[1])
        network = self._teacher.network
        blank = torch.zeros(1, *network.preprocessing.shape, dtype=torch.uint8, device=network.device)
        return int(self._teacher.logits(blank).shape[1])
