"""The batches of images that a classifier or a generator is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from krl_runtime.processor import cpu_count
from krl_train.config import steps_per_epoch
from krl_train.data import Augmentation, PixelSet
from krl_train.data.rows import map_ahead
from krl_train.tasks.base import Batch
from krl_train.worker import Worker

from .order import epoch_order, grouped_order

__all__ = ["BatchStream"]

_LOADERS = 2  # batches that are read at the same time: the CPUs have work while the last images of one are decoded
_AHEAD = 3  # batches that wait: reading takes unevenly long, and each takes memory


@dataclass(frozen=True)
class BatchStream:
    """The batches of an epoch: shuffled, augmented, each process its share.

    All images are used, unless few of them have labels; see ``epoch_order``. The last batch has 0.5 to 1.5 times as
    many as the others: a few images alone would say little to batch normalization.

    Attributes:
        data: The training images.
        augmentation: Makes the views.
        batch_size: Images in one step over all processes.
        seed: Seed of the order.
        views: Number of different views of each image; ``None`` for a new one in each epoch.
        balanced: Whether an epoch shows as many images of each class; see ``epoch_order``.
        together: Images of a class that come together in a batch, see ``grouped_order``; 1 leaves it to chance.
    """

    data: PixelSet
    augmentation: Augmentation
    batch_size: int
    seed: int
    views: int | None = None
    balanced: bool = False
    together: int = 1

    @property
    def count(self) -> int:
        """Number of images in one epoch."""
        return len(self.data)

    @property
    def steps(self) -> int:
        """Number of steps in one epoch."""
        return steps_per_epoch(len(self.data), self.batch_size)

    def view(self, epoch: int) -> int:
        """Return the number of the view that an epoch shows."""
        return epoch if self.views is None else epoch % self.views

    def epoch(self, epoch: int, first_step: int, worker: Worker) -> Iterator[Batch]:
        """Yield the batches of one epoch from ``first_step`` on; the next ones are read while one is used."""
        order = self._order(epoch)
        view = self.view(epoch)
        on_gpu = worker.device.type == "cuda"
        by_image = self.augmentation.by_image
        loaders, ahead = (cpu_count(), cpu_count() + 1) if by_image else (_LOADERS, _AHEAD)

        def load(step: int) -> tuple[int, list[Tensor], npt.NDArray[np.int64]]:
            indices = worker.share(order, step, self.steps, self.batch_size)
            images = [each.pixels(indices, pinned=on_gpu and not by_image) for each in self.data.images]
            if by_image:
                images = [self.augmentation(pixels, indices, view) for pixels in images]
                images = [pixels.pin_memory() if on_gpu else pixels for pixels in images]
            return step, images, indices

        steps = range(first_step, self.steps)
        with ThreadPoolExecutor(loaders) as pool, closing(map_ahead(pool, load, steps, ahead)) as loaded:
            for step, images, indices in loaded:
                moved = [pixels.to(worker.device, non_blocking=on_gpu) for pixels in images]
                # The same random draws for each image of an example: what is shown of them fits together.
                every = moved if by_image else [self.augmentation(pixels, indices, view) for pixels in moved]
                views = every[0]
                positions = torch.from_numpy(indices)
                labels = self.data.labels[positions].to(worker.device)
                partners, share = None, None
                if self.augmentation.mixes:
                    views, share = self.augmentation.mix(views, epoch, step)
                    partners = labels.roll(1, 0)
                further = self.data.beside(positions, every[1:], worker)
                views = views.contiguous(memory_format=worker.layout)
                yield Batch(views, labels, positions, view, epoch, partners, share, further)

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return the indices of an epoch's images, ``[N]``, in random order."""
        random = np.random.default_rng((self.seed, epoch))
        if self.together > 1:
            return grouped_order(self.data.labels.numpy(), random, self.together)
        classes = self.data.labeled.long() - 1 if self.data.multi_label else self.data.labels
        return epoch_order(classes.numpy(), random, balanced=self.balanced)
