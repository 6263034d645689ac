"""Restorers that teach: a run, a bundle as a device runs it, and an ONNX file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import krl_runtime
from krl_runtime.errors import KrlError, ModelError, UsageError
from krl_runtime.images.luma import corrupt, crop_border, psnr, resize, to_uint8
from krl_runtime.images.preprocessing import Preprocessing
from krl_runtime.images.sides import padded
from krl_runtime.pipelines.restorer import Restorer
from krl_train.models.restorers import RestorerNetwork
from krl_train.run import Run
from krl_train.training.restoration import DEFAULT_PATCH, restorer_preprocessing
from krl_train.training.train import network_size

from .files import file_identity, read_onnx
from .graph import ADVICE, OnnxGraph
from .kinds import ACCEPTED, VARIANT, TeacherKind, kind_of
from .mosaic import Mosaic, Restore, radius_of

__all__ = ["FileRestorer", "LoadedRestorer", "load_restorer"]

_log = logging.getLogger("krl")

_SCALES = (1, 2, 3, 4)  # of the students
_EDGE = 8  # of a graph of fixed sides, the share of a part that the next one covers as well: seams stay out of it
_LEAST_PSNR = 15.0  # dB of a smooth image to its enlargement; in other units than 0 to 1 it is below 10
_PROBE = 48  # pixels a side of that image, where the graph takes any


@dataclass(frozen=True)
class LoadedRestorer:
    """A restorer that teaches, and where it comes from.

    Attributes:
        name: What the user calls it.
        network: What answers.
        arguments: ``scale``, ``color`` and ``degradation``, which are the student's as well.
        identity: What the student's record says of it.
        data: What its record says of the data; empty where it was not trained here.
    """

    name: str
    network: RestorerNetwork | FileRestorer
    arguments: Mapping[str, Any]
    identity: Mapping[str, str]
    data: Mapping[str, Any] = field(default_factory=dict)

    def size(self) -> dict[str, int]:
        """Return its parameters and multiply-accumulate operations; of a file nothing, which torch cannot count."""
        return network_size(self.network) if isinstance(self.network, RestorerNetwork) else {}


class FileRestorer(nn.Module):
    """A restorer that torch does not compute.

    Args:
        restore: Restores one image of any size.
        preprocessing: Channels, and the size of a student's patches.
        scale: By how much the result is larger than the input.
        sides: Height and width that the graph fixes, 1 for any: smaller images are restored many at a time.
    """

    def __init__(
        self,
        restore: Restore,
        preprocessing: Preprocessing,
        scale: int,
        sides: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__()
        self._restore, self.preprocessing, self.scale = restore, preprocessing, scale
        self._mosaic: Mosaic | None = None
        if min(sides) > 1:
            radius = radius_of(restore, preprocessing.channels, sides, scale)
            self._mosaic = Mosaic(restore, sides, scale, radius)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels ``[N, C, H, W]`` of 0 to 255, rounded as on a device, to the restored ones.

        Returns:
            ``[N, C, scale * H, scale * W]`` of float32, 0 to 255, neither rounded nor clipped.
        """
        images = pixels.detach().clamp(0, 255).round().to(torch.uint8).cpu().numpy()
        if self._mosaic is not None and self._mosaic.fits(*images.shape[2:]):
            restored = self._mosaic(images)
        else:
            restored = np.stack([self._restore(image) for image in images])
        return torch.from_numpy(restored).to(pixels.device)

    def with_features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Raise ``ModelError``: features of a file are compared in classifiers alone."""
        del pixels
        raise ModelError("a restorer's bundle or ONNX file has no features to compare; use --loss pixels and teacher")


def load_restorer(name: str) -> LoadedRestorer:
    """Load a restorer.

    Args:
        name: What was given to ``--teacher``.

    Raises:
        KrlError: It cannot be used; the message says why, and what to do.
    """
    kind = kind_of(name)
    if kind not in _LOADERS:
        raise UsageError(f"teacher {name} is no restorer; accepted: {ACCEPTED}")
    loaded = _LOADERS[kind](name)
    scale, degradation = loaded.arguments["scale"], loaded.arguments["degradation"]
    if degradation.get("kind") == "none":
        raise UsageError(
            f"teacher {name} is of translation or style, which are not distilled, or was imported with --degradation "
            "none; give a restorer"
        )
    try:
        corrupt(np.zeros((8, 8), np.uint8), degradation, [0])
    except (KrlError, KeyError) as error:
        raise UsageError(
            f"teacher {name} undoes {dict(degradation)}, of which krl cannot make images; accepted: a teacher that "
            "was trained here, or one of super-resolution"
        ) from error
    if scale not in _SCALES:
        raise UsageError(f"teacher {name} enlarges {scale} times; students enlarge 1, 2, 3 or 4 times")
    return loaded


def _of_run(name: str) -> LoadedRestorer:
    run = Run.open(name)
    network = run.module()
    assert isinstance(network, RestorerNetwork)  # noqa: S101  for the type checker
    identity = {"kind": "run", **run.identity}
    return LoadedRestorer(name, network, run.record.model.arguments, identity, run.record.data)


def _of_bundle(name: str) -> LoadedRestorer:
    where: Any = "cuda" if torch.cuda.is_available() else "cpu"
    model = krl_runtime.load(name, Restorer, variant=VARIANT, backend=where)
    manifest = model.bundle.manifest
    arguments = {key: manifest.settings.get(key, {}) for key in ("scale", "color", "degradation")}
    data = model.bundle.read(manifest.variants[VARIANT].file)
    identity = file_identity("bundle", name, data, variant=VARIANT)
    fixed = _fixed(manifest.inputs[0].shape[2:])
    own = manifest.preprocessing
    preprocessing = own if max(fixed) == 1 else _patches(own.channels, fixed)
    return LoadedRestorer(
        name, FileRestorer(model.restore_planes, preprocessing, model.scale, fixed), arguments, identity
    )


def _of_onnx(name: str) -> LoadedRestorer:
    data = read_onnx(name)
    graph = OnnxGraph(data, name)
    channels, *sides = graph.shape
    if not isinstance(channels, int):
        raise ModelError(f"teacher {name} does not say how many channels it takes. {ADVICE} --task restoration")
    fixed = _fixed(sides)
    height, width = (side if side > 1 else _PROBE for side in fixed)
    image = _smooth(channels, height, width)
    made = _one(graph, image)
    scale = made.shape[-1] // width
    if made.shape != (channels, height * scale, width * scale) or not scale:
        raise ModelError(
            f"teacher {name} makes {list(made.shape)} of an image {list(image.shape)}; accepted: an image of as many "
            f"channels whose sides are a whole multiple. {ADVICE} --task restoration"
        )
    _check_units(name, image, made, scale)
    if scale == 1:
        raise ModelError(
            f"teacher {name} keeps the size of images, and the file does not say what it undoes. {ADVICE} --task "
            "restoration --degradation KIND"
        )
    color = "y" if channels == 1 else "rgb"
    _log.info(
        "teacher %s enlarges %d times; images are its %s, of 0 to 1, made smaller bicubically", name, scale, color
    )
    preprocessing = _patches(channels, fixed)
    arguments = {"scale": scale, "color": color, "degradation": {"kind": "bicubic"}}
    restore = _in_parts(graph, fixed, scale) if max(fixed) > 1 else (lambda image: _one(graph, image))
    network = FileRestorer(restore, preprocessing, scale, fixed)
    return LoadedRestorer(name, network, arguments, file_identity("onnx", name, data))


_LOADERS: Mapping[TeacherKind, Callable[[str], LoadedRestorer]] = {
    "run": _of_run,
    "bundle": _of_bundle,
    "onnx": _of_onnx,
}


def _fixed(sides: Any) -> tuple[int, int]:
    """Return the height and width that a graph fixes; 1 for any."""
    height, width = (side if isinstance(side, int) else 1 for side in sides)
    return height, width


def _patches(channels: int, sides: tuple[int, int]) -> Preprocessing:
    """Return the channels and the size of a student's patches: the usual one, unless the graph takes only less."""
    height, width = (min(side, DEFAULT_PATCH) if side > 1 else DEFAULT_PATCH for side in sides)
    return restorer_preprocessing(channels, (height, width))


def _one(graph: OnnxGraph, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Run a graph on one image ``[C, H, W]``; a graph of floats takes and makes 0 to 1."""
    pixels = torch.from_numpy(np.ascontiguousarray(image))[None]
    made = graph(pixels if graph.takes_pixels else pixels.float() / 255)
    if made.ndim == 4 and graph.channels_last:
        made = made.permute(0, 3, 1, 2)
    if not made.isfinite().all():
        raise ModelError("the teacher makes numbers that are not finite, so there is nothing to learn from")
    factor = 1 if graph.takes_pixels else 255
    return np.asarray((made[0] * factor).numpy(), np.float32)


def _in_parts(graph: OnnxGraph, sides: tuple[int, int], scale: int) -> Restore:
    """Return a function that restores images of any size by a graph of fixed sides."""

    def restore(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        channels, height, width = image.shape
        whole = padded(image, *sides)
        made = np.empty((channels, whole.shape[1] * scale, whole.shape[2] * scale), np.float32)
        for top, rows in _spans(whole.shape[1], sides[0]):
            for left, columns in _spans(whole.shape[2], sides[1]):
                part = _one(graph, whole[:, top : top + sides[0], left : left + sides[1]])
                kept = part[:, _scaled(rows, scale, top), _scaled(columns, scale, left)]
                made[:, _scaled(rows, scale), _scaled(columns, scale)] = kept
        return made[:, : height * scale, : width * scale]

    return restore


def _spans(length: int, side: int) -> Iterator[tuple[int, slice]]:
    """Yield where each part begins, and what is kept of it; together they cover the length once."""
    edge, keep = side // _EDGE, 0
    while keep < length:
        begin = max(0, min(keep - edge, length - side))
        until = length if begin + side >= length else begin + side - edge
        yield begin, slice(keep, until)
        keep = until


def _scaled(part: slice, scale: int, begin: int = 0) -> slice:
    return slice((part.start - begin) * scale, (part.stop - begin) * scale)


def _smooth(channels: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return an image of slow waves, which every restorer leaves about as it is."""
    rows, columns = np.meshgrid(np.linspace(0, 6, height), np.linspace(0, 6, width), indexing="ij")
    plane = np.round(128 + 60 * np.sin(rows) * np.cos(columns)).astype(np.uint8)
    return np.repeat(plane[None], channels, 0)


def _check_units(name: str, image: npt.NDArray[np.uint8], made: npt.NDArray[np.float32], scale: int) -> None:
    """Refuse a graph whose output is not its input, larger: its images have other units."""
    height, width = made.shape[1:]
    plain = to_uint8(resize(image[0].astype(np.float32), height, width))
    border = scale * 4  # pixels that many restorers compute from zeros around the image
    found = psnr(crop_border(to_uint8(made[0]), border), crop_border(plain, border))
    if found < _LEAST_PSNR:
        raise ModelError(
            f"teacher {Path(name)} makes of a smooth image one that has a PSNR of {found:.1f} dB to its enlargement; "
            f"accepted: images of 0 to 1 at input and output. {ADVICE} --task restoration, which has options for others"
        )
