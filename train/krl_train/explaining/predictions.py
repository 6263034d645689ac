"""Single images: the prediction, what it depends on, and the images that are nearest in feature space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from krl_runtime.bundle.output_kind import scores_of
from krl_runtime.errors import UsageError
from krl_runtime.images.cells import SIDE, Cell, cell_sheet
from krl_runtime.images.folders import ImageFile, OnBadImage, find_images
from krl_runtime.images.heat import overlay
from krl_runtime.images.modes import image_of
from krl_runtime.pipelines.raster import Raster
from krl_train.config import ExplainConfig
from krl_train.models.embedders import EmbeddingNetwork
from krl_train.models.network import Network
from krl_train.run import Run

from .attribution import Attributor
from .neighbors import Gallery, Neighbor, embed

__all__ = ["Explainer", "images_of"]

_MOST_IMAGES = 200  # sheets in a folder: seconds each on a processor; all are decoded at once
_TOP = 3  # classes that are named beside the predicted one


def images_of(paths: Sequence[Path], on_bad: OnBadImage) -> list[ImageFile]:
    """Return image files, those of folders among them.

    Raises:
        DataError: A folder holds no image, or other files that are not to be skipped.
        UsageError: There are more than 200.
    """
    files = [file for path in paths for file in (find_images(path, on_bad=on_bad) if path.is_dir() else [path])]
    found = list(dict.fromkeys(files))
    if len(found) > _MOST_IMAGES:
        raise UsageError(f"{len(found)} images are given; accepted: {_MOST_IMAGES} at most, one sheet is made of each")
    return [ImageFile(file) for file in found]


class Explainer:
    """Explains what a network makes of single images.

    Args:
        run: The run.
        network: Its network, in eval mode, of an image alone.
        gallery: The images that neighbors are looked for among; ``None`` for none.
        config: How many neighbors, and how many steps.
    """

    def __init__(self, run: Run, network: Network, gallery: Gallery | None, config: ExplainConfig) -> None:
        self.attributor = Attributor(network, config.ig_steps)
        self._record, self._network, self._gallery, self._config = run.record, network, gallery, config

    def explain(self, file: Path, pixels: npt.NDArray[np.uint8], folder: Path, name: str) -> dict[str, Any]:
        """Write the sheet of an image, and return what ``explain.json`` says of it.

        Args:
            file: The image's file.
            pixels: ``[C, H, W]`` of uint8, as the network takes it.
            folder: Where the sheet goes.
            name: Its name.
        """
        image = torch.from_numpy(pixels)[None]
        near: list[Neighbor] = []
        if self._gallery is not None:
            near = self._gallery.search(embed(self._network, image)[0], self._config.neighbors)
        described, score = self._prediction(image, near)
        shown = _enlarged(pixels.transpose(1, 2, 0))
        cells = [Cell(image_of(shown, "rgb"), file.name, _text(described))]
        if score is not None:
            found = self.attributor.explain(image, score)
            if found.cam is not None:
                cells.append(Cell(Image.fromarray(overlay(shown, found.cam)), "class activation map"))
            cells.append(Cell(Image.fromarray(overlay(shown, found.shown_gradients)), "integrated gradients"))
            described |= {
                "cam": None if found.cam is None else found.cam.astype(float).round(6).tolist(),
                "convergence_delta": found.delta,
            }
        for each in near:
            assert self._gallery is not None  # noqa: S101  for the type checker: neighbors come from it
            text = f"{each.similarity:.3f} {each.label}"
            cells.append(Cell(self._gallery.image(each.index), Path(each.name).name, text))
        Raster(cell_sheet([cells], 1, len(cells))).save(folder / name)
        return {"file": str(file), "sheet": name, **described, "neighbors": [asdict(each) for each in near]}

    @torch.no_grad()
    def _prediction(
        self, image: Tensor, near: Sequence[Neighbor]
    ) -> tuple[dict[str, Any], Callable[[Tensor], Tensor] | None]:
        """Return the prediction, and the score to explain.

        Of a network of embeddings the score is the similarity to the nearest neighbor, which has the predicted label.
        """
        network, gallery = self._network, self._gallery
        if isinstance(network, EmbeddingNetwork):
            if not near or gallery is None:
                return {"prediction": None}, None
            target = gallery.features(near[0].index).to(network.device)
            return {"prediction": near[0].label or None}, lambda pixels: network(pixels) @ target
        outputs = network(image.to(network.device)).float().cpu().numpy()
        scores = scores_of(self._record.output_kind, outputs)[0]
        best = int(scores.argmax())
        top = [
            {"label": self._record.labels[index], "probability": round(float(scores[index]), 6)}
            for index in np.argsort(-scores, kind="stable")[: _TOP + 1].tolist()
        ]
        described = {"prediction": self._record.labels[best], "probability": top[0]["probability"], "top": top}
        return described, lambda pixels: network(pixels)[:, best]


def _text(described: dict[str, Any]) -> str:
    """Return the prediction with its probability, for the sheet."""
    label, probability = described["prediction"], described.get("probability")
    return f"{label or ''}" + ("" if probability is None else f" {probability:.1%}")


def _enlarged(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return an image ``[H, W, C]`` with each pixel repeated, so that a map over a small one is smooth."""
    times = max(1, SIDE // max(pixels.shape[:2]))
    return np.ascontiguousarray(pixels.repeat(times, 0).repeat(times, 1))
