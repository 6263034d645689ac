"""Exporting restorers and generators: their inputs and open dimensions, golden inputs, and parity with torch."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from krl_deploy.bundles.reference import write_picture_maker
from krl_deploy.config import ExportConfig
from krl_deploy.data.folders import choose_any, open_data
from krl_deploy.evaluation.comparison import outputs_of
from krl_deploy.evaluation.generation import random_inputs
from krl_deploy.evaluation.restoration import DEGRADATIONS, inputs_of, patch_of, read_planes
from krl_deploy.graph import PICTURES, PIXELS, RESTORED
from krl_deploy.graph.edit import GraphEditor
from krl_deploy.graph.files import opset_of, to_bytes
from krl_deploy.graph.session import open_cpu
from krl_runtime.errors import CheckFailedError, DataError, ImageError, KrlError, ModelError, UsageError
from krl_runtime.images.folders import report_bad
from krl_runtime.images.preprocessing import Preprocessing

from .conversion import EXPORT_BATCH, FEW, OF_ROUNDING, PARITY_INPUTS, convert, source_of

if TYPE_CHECKING:
    from torch import nn

    from krl_train.run import Run

__all__ = ["export_pictures"]

_log = logging.getLogger("krl")

_GOLDEN_SEED = 2  # calibration has seed 0 and the evaluation 1


@dataclass(frozen=True)
class _Plan:
    """What is to be exported.

    Attributes:
        model: The ONNX graph.
        inputs: Real inputs by name ``[N, ...]``.
        further: Inputs of another size, where the graph takes any.
        output: Name of the output.
        preprocessing: Of the manifest.
        settings: Of the manifest.
        macs: Multiply-accumulates of one picture.
    """

    model: onnx.ModelProto
    inputs: Mapping[str, npt.NDArray[Any]]
    further: Mapping[str, npt.NDArray[Any]] | None
    output: str
    preprocessing: Preprocessing
    settings: Mapping[str, Any]
    macs: int


def export_pictures(config: ExportConfig, run: Run) -> dict[str, Any]:
    """Export the run of a restorer or a generator; see ``krl_deploy.exporters.export.export``."""
    from krl_train.models import count_parameters

    network, record = run.module(), run.record
    make: dict[str, Callable[[ExportConfig, Run, nn.Module], _Plan]] = {
        "restoration": _restorer,
        "generation": _generator,
    }
    plan = make[record.task](config, run, network)
    if opset_of(plan.model) != config.opset:
        _log.warning("torch wrote opset %d instead of %d", opset_of(plan.model), config.opset)
    data = to_bytes(plan.model)
    expected = _torch(network, plan.inputs)
    evidence = {
        "parity": _parity(data, network, plan, expected, 255 * config.tolerance),
        "parameters": count_parameters(network.get_submodule("backbone")),
        "macs": plan.macs,
        "file_bytes": len(data),
        "opset": opset_of(plan.model),
    }
    bundle = write_picture_maker(
        config.out,
        data,
        {name: array[: config.golden] for name, array in plan.inputs.items()},
        {plan.output: expected[: config.golden]},
        task=record.task,
        name=record.model.name,
        preprocessing=plan.preprocessing,
        settings=plan.settings,
        evidence=evidence,
        source=source_of(run),
        overwrite=config.overwrite,
        labels=record.labels,
    )
    return {"bundle": str(bundle.path), "task": record.task, "model": record.model.name, **evidence}


def _restorer(config: ExportConfig, run: Run, network: nn.Module) -> _Plan:
    import torch

    from krl_train.models import count_macs

    record = run.record
    arguments, channels = record.model.arguments, record.preprocessing.channels
    settings = {
        "scale": arguments["scale"],
        "colour": arguments.get("colour", "rgb" if channels == 3 else "grey"),
        "overlap": arguments.get("overlap"),
        "degradation": arguments.get("degradation") or {},
    }
    spec = (
        record.preprocessing if config.tile is None else _tile(config.tile, record.preprocessing, settings["overlap"])
    )
    pixels, whole = _real_pictures(config, run, spec, settings)
    example = torch.zeros((EXPORT_BATCH, *spec.shape), dtype=torch.uint8)
    sides: dict[int, int | str] = {0: "batch", 2: "height", 3: "width"}
    made: dict[int, int | str] = {2: "scaled_height", 3: "scaled_width"}
    if config.tile is not None:
        sides |= {2: config.tile, 3: config.tile}
        made = dict.fromkeys(made, settings["scale"] * config.tile)
    dynamic = {axis: torch.export.Dim(name) for axis, name in sides.items() if isinstance(name, str)}
    model = convert(network, {PIXELS: example}, RESTORED, [dynamic], config.opset)
    graph = GraphEditor(model)
    graph.declare_input(PIXELS, TensorProto.UINT8, ("batch", channels, sides[2], sides[3]))
    graph.declare_output(RESTORED, TensorProto.FLOAT, ("batch", channels, made[2], made[3]))
    further = {PIXELS: whole} if config.tile is None else None
    return _Plan(graph.close(), {PIXELS: pixels}, further, RESTORED, spec, settings, count_macs(network, spec.shape))


def _tile(side: int, spec: Preprocessing, overlap: int | None) -> Preprocessing:
    """Return the input of a graph that takes parts of one size.

    Raises:
        UsageError: The network cannot see a picture in such parts.
    """
    if overlap is None:
        raise UsageError("--tile: this network sees the whole picture at once, so it cannot restore it in parts")
    if side <= 2 * overlap:
        raise UsageError(f"--tile is {side}; accepted: more than {2 * overlap}, twice what an output pixel sees")
    return replace(spec, height=side, width=side)


def _generator(config: ExportConfig, run: Run, network: nn.Module) -> _Plan:
    import torch

    from krl_train.models.generators import Generator, count_generator_macs

    assert isinstance(network, Generator)  # noqa: S101  for the type checker
    if config.tile is not None:
        raise UsageError("--tile is for restorers; a generator's pictures have one size")
    settings: dict[str, Any] = {"latent": {"size": network.latent_size, "distribution": "normal"}}
    if network.condition is not None:
        # The vectors of words are in the graph; a device needs the words alone.
        settings["condition"] = {name: value for name, value in network.condition.items() if name != "vectors"}
    inputs = random_inputs(settings, max(config.golden, PARITY_INPUTS), _GOLDEN_SEED)
    batch = torch.export.Dim("batch")
    examples = {name: torch.from_numpy(array[:EXPORT_BATCH].copy()) for name, array in inputs.items()}
    model = convert(network, examples, PICTURES, [{0: batch}] * len(examples), config.opset)
    graph = GraphEditor(model)
    graph.declare_output(PICTURES, TensorProto.FLOAT, ("batch", *run.record.preprocessing.shape))
    preprocessing = run.record.preprocessing
    return _Plan(graph.close(), inputs, None, PICTURES, preprocessing, settings, count_generator_macs(network))


def _real_pictures(
    config: ExportConfig, run: Run, spec: Preprocessing, settings: Mapping[str, Any]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return patches ``[N, C, H, W]`` of what a restorer gets, and a part of one picture, of another size."""
    data, own = run.record.data, config.data is None
    place = config.data or Path(str(data.get("val_source") or data.get("source")))
    try:
        folder = open_data(place, on_bad=config.on_bad_image)
    except KrlError as error:
        if not own:
            raise
        raise DataError(
            f"parity and golden inputs need real pictures, and those of run {run.path} cannot be read ({error}); "
            "give some with --data FOLDER"
        ) from error
    known = settings["degradation"].get("kind") in DEGRADATIONS
    given = []
    count = max(config.golden, PARITY_INPUTS)
    for number, picture in enumerate(choose_any(folder, count)):
        try:
            planes = read_planes(picture.path, settings["colour"])
            given.append(inputs_of(planes, settings["scale"], settings["degradation"], number)[0] if known else planes)
        except (ImageError, UsageError) as error:
            report_bad([f"{picture.path}: {error}"], config.on_bad_image)
    if not given:
        raise DataError(f"no picture of {place} is left: none of the files can be decoded")
    rng = np.random.default_rng(0)
    pixels = np.stack([patch_of(given[index % len(given)], spec.height, spec.width, rng) for index in range(count)])
    return pixels, patch_of(given[0], 2 * spec.height + 1, spec.width + 3, rng)[None]


def _torch(network: nn.Module, inputs: Mapping[str, npt.NDArray[Any]], *, exact: bool = False) -> npt.NDArray[Any]:
    """Return what torch computes in batches, in float64 on the way if it is to be exact.

    Raises:
        ModelError: That is not finite.
    """
    import torch

    if exact:
        network = copy.deepcopy(network).double()
    count = len(next(iter(inputs.values())))
    tensors = [torch.tensor(array) for array in inputs.values()]
    if exact:
        tensors = [tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors]
    with torch.inference_mode():
        parts = [network(*(tensor[start : start + 16] for tensor in tensors)) for start in range(0, count, 16)]
    made: npt.NDArray[Any] = torch.cat(parts).float().numpy()
    if not np.isfinite(made).all():
        raise ModelError("the network makes pictures with numbers that are not finite; train it again")
    return made


def _parity(
    data: bytes, network: nn.Module, plan: _Plan, expected: npt.NDArray[np.float32], tolerance: float
) -> dict[str, Any]:
    """Run the exported graph one by one, in a batch unlike the export's and in another size, and compare with torch."""
    session = open_cpu(data)
    few = {name: array[:FEW] for name, array in plan.inputs.items()}
    made = outputs_of(session, plan.inputs, batch=len(expected))
    errors = [np.abs(made - expected).max(), np.abs(outputs_of(session, few, batch=1) - expected[:FEW]).max()]
    if plan.further is not None:
        errors.append(np.abs(outputs_of(session, plan.further, batch=1) - _torch(network, plan.further)).max())
    worst, inputs = float(max(errors)), len(expected)
    rounding = None
    if not worst <= tolerance:
        rounding = float(np.abs(_torch(network, plan.inputs, exact=True) - expected).max())
        if not worst <= max(tolerance, OF_ROUNDING * rounding):
            raise CheckFailedError(
                f"the exported graph's pictures differ from torch's by {worst:.3g} of 255 on {inputs} inputs, accepted "
                f"are {tolerance:g} (float32 rounds by {rounding:.2g}); nothing was written. Give a higher --tolerance "
                "if you can accept that"
            )
    return {
        "max_abs_error": worst,
        "inputs": inputs,
        "batches": [1, inputs],
        "tolerance": tolerance,
        "float32_rounding": rounding,
    }
