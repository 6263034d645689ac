"""Exporting a generator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import onnx
from onnx import TensorProto

from krl_deploy.config import ExportConfig
from krl_deploy.evaluation.generation import GOLDEN_SEED
from krl_deploy.graph import IMAGES
from krl_deploy.graph.edit import GraphEditor
from krl_runtime.pipelines.random_inputs import random_inputs

from .conversion import EXPORT_BATCH, PARITY_INPUTS, convert
from .plan import ExportPlan

if TYPE_CHECKING:
    from krl_train.models.generators import GeneratorNetwork
    from krl_train.run import Run

__all__ = ["generator_graph", "plan_generator", "settings_of"]


def plan_generator(config: ExportConfig, run: Run) -> ExportPlan:
    """Convert a generator, and draw inputs; see ``krl_deploy.exporters.export``."""
    from krl_train.models.generators import GeneratorNetwork, count_generator_macs

    network, preprocessing = run.module(), run.record.preprocessing
    assert isinstance(network, GeneratorNetwork)  # noqa: S101  for the type checker
    settings = settings_of(network)
    inputs = random_inputs(settings, max(config.golden, PARITY_INPUTS), GOLDEN_SEED)
    model = generator_graph(network, inputs, config.opset)
    return ExportPlan(network, model, inputs, IMAGES, preprocessing, count_generator_macs(network), settings)


def settings_of(network: GeneratorNetwork) -> dict[str, Any]:
    """Return the settings of a generator's manifest: its latent, and its condition if it has one."""
    settings: dict[str, Any] = {"latent": {"size": network.latent_size, "distribution": "normal"}}
    if network.condition is not None:
        # The vectors of words are in the graph; a device needs the words alone.
        settings["condition"] = {name: value for name, value in network.condition.items() if name != "vectors"}
    return settings


def generator_graph(network: GeneratorNetwork, inputs: Mapping[str, npt.NDArray[Any]], opset: int) -> onnx.ModelProto:
    """Return the ONNX graph of a generator, from its inputs to ``images``, with an open batch.

    Args:
        network: In eval mode.
        inputs: At least two latents, and as many conditions if it has one, by name.
        opset: Requested version of the ONNX operators.
    """
    import torch

    batch = torch.export.Dim("batch")
    examples = {name: torch.from_numpy(array[:EXPORT_BATCH].copy()) for name, array in inputs.items()}
    graph = GraphEditor(convert(network, examples, IMAGES, [{0: batch}] * len(examples), opset))
    graph.declare_output(IMAGES, TensorProto.FLOAT, ("batch", *network.preprocessing.shape))
    return graph.close()
