"""An image of the views that a classifier is trained on, for a person to look at."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from krl_runtime.files import write_atomic
from krl_train.loop import BatchStream
from krl_train.models.sampling import image_grid

__all__ = ["VIEW_SHEET", "write_view_sheet"]

VIEW_SHEET = Path("samples") / "views.png"  # in the run's folder
_IMAGES, _VIEWS = 8, 4  # columns and rows
_SIDE = 128  # of a view on the sheet at most: one of larger views is reduced, or the file has several MB


def write_view_sheet(stream: BatchStream, out: Path) -> None:
    """Write views of eight training images, a column for each: four views below each other, of the first epochs.

    Mixed views are as in a batch of these eight images. Of several processes the first one writes.

    Args:
        stream: What the network is trained on.
        out: The run's folder.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    count, augmentation = min(_IMAGES, len(stream.data)), stream.augmentation
    indices = np.linspace(0, len(stream.data) - 1, count).astype(np.int64)
    pixels, rows = stream.data.pixels(indices), []
    for epoch in range(_VIEWS):
        views = augmentation(pixels, indices, stream.view(epoch))
        rows.append(augmentation.mix(views, epoch, 0)[0] if augmentation.mixes else views)
    sheet = image_grid(torch.cat([row.float().round().to(torch.uint8) for row in rows]), count)
    image = Image.fromarray(sheet.squeeze(-1) if sheet.shape[-1] == 1 else sheet)
    largest = max(augmentation.preprocessing.height, augmentation.preprocessing.width)
    if largest > _SIDE:
        image = image.resize([side * _SIDE // largest for side in image.size], Image.Resampling.BOX)
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    write_atomic(out / VIEW_SHEET, encoded.getvalue())
