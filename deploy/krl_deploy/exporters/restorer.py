"""Exporting a restorer, for images of any size or for tiles of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from krl_deploy.config import ExportConfig
from krl_deploy.data.folders import choose_any
from krl_deploy.evaluation.restoration import patch_of
from krl_deploy.graph import PIXELS, RESTORED
from krl_deploy.graph.edit import GraphEditor
from krl_deploy.graph.sides import restorer_sides
from krl_runtime.errors import DataError, ImageError, KrlError, ModelError, UsageError
from krl_runtime.images.folders import report_bad
from krl_runtime.images.labeled import open_data
from krl_runtime.images.pairs import DEGRADATIONS, inputs_of, read_planes
from krl_runtime.images.preprocessing import Preprocessing
from krl_runtime.images.sides import Sides

from .conversion import EXPORT_BATCH, PARITY_INPUTS, convert
from .plan import ExportPlan, no_real_images

if TYPE_CHECKING:
    from torch import nn

    from krl_train.run import Run

__all__ = ["plan_restorer", "restorer_graph"]


def plan_restorer(config: ExportConfig, run: Run) -> ExportPlan:
    """Convert a restorer, and read real inputs; see ``krl_deploy.exporters.export``."""
    from krl_train.models import count_macs

    network, record = run.module(), run.record
    arguments, channels = record.model.arguments, record.preprocessing.channels
    settings = {
        "scale": arguments["scale"],
        "color": arguments.get("color", "rgb" if channels == 3 else "gray"),
        "overlap": arguments.get("overlap"),
        "degradation": arguments.get("degradation") or {},
    }
    spec = (
        record.preprocessing if config.tile is None else _tile(config.tile, record.preprocessing, settings["overlap"])
    )
    pixels, whole = _real_images(config, run, spec, settings)
    model = restorer_graph(network, spec, settings["scale"], config.opset, fixed=config.tile is not None)
    if config.tile is None:
        settings |= _sides(model, settings["scale"]).settings()
    further = {PIXELS: whole} if config.tile is None else None
    macs = count_macs(network, spec.shape)
    return ExportPlan(network, model, {PIXELS: pixels}, RESTORED, spec, macs, settings, further)


def restorer_graph(
    network: nn.Module, spec: Preprocessing, scale: int, opset: int, *, fixed: bool = False
) -> onnx.ModelProto:
    """Return the ONNX graph of a restorer, from ``pixels`` to ``restored``, with an open batch.

    Args:
        network: In eval mode.
        spec: Channels of the images, and the size of the traced example.
        scale: By how much it enlarges.
        opset: Requested version of the ONNX operators.
        fixed: Whether the graph takes images of this size alone, and not of any.
    """
    import torch

    sides: dict[int, int | str] = {0: "batch", 2: "height", 3: "width"}
    made: dict[int, int | str] = {2: "scaled_height", 3: "scaled_width"}
    if fixed:
        sides |= {2: spec.height, 3: spec.width}
        made = {2: scale * spec.height, 3: scale * spec.width}
    dynamic = {axis: torch.export.Dim(name) for axis, name in sides.items() if isinstance(name, str)}
    example = torch.zeros((EXPORT_BATCH, *spec.shape), dtype=torch.uint8)
    graph = GraphEditor(convert(network, {PIXELS: example}, RESTORED, [dynamic], opset))
    graph.declare_input(PIXELS, TensorProto.UINT8, ("batch", spec.channels, sides[2], sides[3]))
    graph.declare_output(RESTORED, TensorProto.FLOAT, ("batch", spec.channels, made[2], made[3]))
    return graph.close()


def _sides(model: onnx.ModelProto, scale: int) -> Sides:
    """Return the heights and widths that the graph takes.

    Raises:
        ModelError: It makes no image of the right size of small ones.
    """
    sides = restorer_sides(model, scale)
    if sides is None:
        raise ModelError(f"the network makes no images {scale} times as large of small ones; check its forward()")
    return sides


def _tile(side: int, spec: Preprocessing, overlap: int | None) -> Preprocessing:
    """Return the input of a graph that takes parts of one size.

    Raises:
        UsageError: The network cannot restore an image in such parts.
    """
    if overlap is None:
        raise UsageError("--tile: this network needs the whole image at once, so it cannot restore it in parts")
    if side <= 2 * overlap:
        raise UsageError(f"--tile is {side}; accepted: more than {2 * overlap}, twice the receptive field's radius")
    return replace(spec, height=side, width=side)


def _real_images(
    config: ExportConfig, run: Run, spec: Preprocessing, settings: Mapping[str, Any]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return patches ``[N, C, H, W]`` of restorer inputs, and a part of one image, of another size."""
    data, own = run.record.data, config.data is None
    root = config.data or Path(str(data.get("val_source") or data.get("source")))
    try:
        folder = open_data(root, on_bad=config.on_bad_image)
    except KrlError as error:
        if not own:
            raise
        raise no_real_images(run, error) from error
    known = settings["degradation"].get("kind") in DEGRADATIONS
    given = []
    count = max(config.golden, PARITY_INPUTS)
    for number, image in enumerate(choose_any(folder, count)):
        try:
            planes = read_planes(image.path, settings["color"])
            given.append(inputs_of(planes, settings["scale"], settings["degradation"], number)[0] if known else planes)
        except (ImageError, UsageError) as error:
            report_bad([f"{image.path}: {error}"], config.on_bad_image)
    if not given:
        raise DataError(f"no image of {root} is left: none of the files can be decoded")
    rng = np.random.default_rng(0)
    pixels = np.stack([patch_of(given[index % len(given)], spec.height, spec.width, rng) for index in range(count)])
    return pixels, patch_of(given[0], 2 * spec.height + 1, spec.width + 3, rng)[None]
