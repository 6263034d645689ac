"""Exporting a generator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx import TensorProto

from krl_deploy.config import ExportConfig
from krl_deploy.evaluation.generation import random_inputs
from krl_deploy.graph import IMAGES
from krl_deploy.graph.edit import GraphEditor

from .conversion import EXPORT_BATCH, PARITY_INPUTS, convert
from .plan import ExportPlan

if TYPE_CHECKING:
    from krl_train.run import Run

__all__ = ["plan_generator"]

_GOLDEN_SEED = 2  # calibration has seed 0 and the evaluation 1


def plan_generator(config: ExportConfig, run: Run) -> ExportPlan:
    """Convert a generator, and draw inputs; see ``krl_deploy.exporters.export``."""
    import torch

    from krl_train.models.generators import GeneratorNetwork, count_generator_macs

    network, preprocessing = run.module(), run.record.preprocessing
    assert isinstance(network, GeneratorNetwork)  # noqa: S101  for the type checker
    settings: dict[str, Any] = {"latent": {"size": network.latent_size, "distribution": "normal"}}
    if network.condition is not None:
        # The vectors of words are in the graph; a device needs the words alone.
        settings["condition"] = {name: value for name, value in network.condition.items() if name != "vectors"}
    inputs = random_inputs(settings, max(config.golden, PARITY_INPUTS), _GOLDEN_SEED)
    batch = torch.export.Dim("batch")
    examples = {name: torch.from_numpy(array[:EXPORT_BATCH].copy()) for name, array in inputs.items()}
    graph = GraphEditor(convert(network, examples, IMAGES, [{0: batch}] * len(examples), config.opset))
    graph.declare_output(IMAGES, TensorProto.FLOAT, ("batch", *preprocessing.shape))
    return ExportPlan(network, graph.close(), inputs, IMAGES, preprocessing, count_generator_macs(network), settings)
