"""A generator's bundle where a run's generator is expected, so that what a device makes is measured like a run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import krl_runtime
from krl_runtime.backends.base import run_in_parts
from krl_runtime.backends.select import Kind
from krl_runtime.pipelines.generator import Generator as Pipeline
from krl_train.run import ModelSpec, RunRecord

__all__ = ["DeployedGenerator"]


class DeployedGenerator(nn.Module):
    """A bundle on a backend, with the interface of ``krl_train.models.generators.GeneratorNetwork``.

    Args:
        path: The bundle.
        variant: ``"fp32"``, ``"fp16"`` or ``"int8"``; what the bundle names for the device by default.
        backend: Where to begin to look for one, as ``krl_runtime.load`` takes it.

    Raises:
        BundleError: There is none, it is damaged, or it is no generator's.
        BackendError: No backend can run it.
    """

    def __init__(self, path: Path, variant: str | None = None, backend: Kind | None = None) -> None:
        super().__init__()
        self.pipeline = krl_runtime.load(path, Pipeline, variant=variant, backend=backend)
        self.latent_size = self.pipeline.latent_size
        self.condition = self.pipeline.condition
        self.preprocessing = self.pipeline.preprocessing
        self.device = torch.device("cpu")  # where images come from and go to, whatever computes them

    def forward(self, latent: Tensor, condition: Tensor | None = None) -> Tensor:
        """Map latents ``[N, Z]`` and tokens ``[N, L]`` to float32 images ``[N, C, H, W]``, as the network does.

        Raises:
            BackendError: The device failed, or an input has another shape.
        """
        inputs = {"latent": latent.detach().cpu().numpy()}
        inputs |= {} if condition is None else {"condition": condition.cpu().numpy()}
        images = run_in_parts(
            lambda part: {"images": self.pipeline.values(part["latent"], part.get("condition"))},
            inputs,
            self.pipeline.bundle.batch_limit,
        )
        return torch.from_numpy(images["images"]).to(latent.device)

    def record(self) -> RunRecord:
        """Return a record in place of that of its training: a bundle has none, and names no data."""
        manifest = self.pipeline.bundle.manifest
        spec = ModelSpec(manifest.name, 0, self.preprocessing.channels, {"latent": self.latent_size})
        return RunRecord("generation", spec, self.preprocessing, manifest.labels, "", {}, seed=0, data={})
