"""Exporting a network of embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from krl_deploy.config import ExportConfig
from krl_deploy.graph import EMBEDDINGS

from .conversion import to_onnx
from .plan import ExportPlan
from .real_inputs import real_inputs

if TYPE_CHECKING:
    from krl_train.run import Run

__all__ = ["plan_embedder"]


def plan_embedder(config: ExportConfig, run: Run) -> ExportPlan:
    """Convert a network of embeddings, and read real inputs; see ``krl_deploy.exporters.export``."""
    from krl_train.models import count_macs

    preprocessing, network = run.record.preprocessing, run.module()
    inputs = real_inputs(config, run)
    model = to_onnx(network, preprocessing.shape, config.opset, EMBEDDINGS)
    settings = {"embedding": {"size": run.record.model.num_classes}}
    macs = count_macs(network, preprocessing.shape)
    return ExportPlan(network, model, inputs, EMBEDDINGS, preprocessing, macs, settings)
