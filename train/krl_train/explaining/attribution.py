"""Which pixels a score depends on: class activation maps and integrated gradients, by captum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from krl_runtime.errors import require
from krl_train.models.features import FeatureMap, channels_first, stage_outputs
from krl_train.models.network import Network

__all__ = ["Attribution", "Attributor"]

_BATCH = 25  # images on the path of integrated gradients that are run together: bounded memory
_OUTLIERS = 99.5  # percentile that integrated gradients are cut at for showing: single pixels would hide the others


@dataclass(frozen=True)
class Attribution:
    """The pixels that a score depends on.

    Attributes:
        cam: Gradient-weighted class activation map ``[h, w]``, 0 or more, of the last feature map; ``None`` for a
            network without one.
        gradients: Integrated gradients from the mean image ``[H, W]``, summed over the channels, in units of the score.
        delta: Difference of their sum from what the score rises from the mean image to the image; with enough steps 0.
    """

    cam: npt.NDArray[np.float32] | None
    gradients: npt.NDArray[np.float32]
    delta: float

    @property
    def shown_gradients(self) -> npt.NDArray[np.float32]:
        """Return the size of the integrated gradients, without what single pixels have beyond all others."""
        size = np.abs(self.gradients)
        return np.asarray(np.minimum(size, np.percentile(size, _OUTLIERS)), np.float32)


class Attributor:
    """Explains scores of a network.

    Args:
        network: In eval mode, of an image alone.
        steps: Steps of the path of integrated gradients.

    Attributes:
        layer: Name of the feature map that class activation maps are made of; ``None`` where there is none.
    """

    def __init__(self, network: Network, steps: int) -> None:
        self._captum: Any = require("captum.attr", extra="explain", purpose="explaining a prediction")
        self._network, self._steps = network, steps
        stages = stage_outputs(network)
        self._tap = stages[-1] if stages else None
        self.layer = None if self._tap is None else self._tap.name

    def explain(self, pixels: Tensor, score: Callable[[Tensor], Tensor]) -> Attribution:
        """Explain a score of an image.

        Args:
            pixels: ``[1, C, H, W]``, 0 to 255, as the network takes them.
            score: From such pixels ``[N, C, H, W]`` to ``[N]``, through the network.
        """
        image = pixels.to(self._network.device, torch.float32).requires_grad_()
        cam = None if self._tap is None else self._activation_map(image, self._tap, score)
        mean = 255 * torch.tensor(self._network.preprocessing.mean, device=image.device).reshape(1, -1, 1, 1)
        gradients, delta = self._captum.IntegratedGradients(score).attribute(
            image,
            baselines=mean.expand_as(image),
            n_steps=self._steps,
            internal_batch_size=_BATCH,
            return_convergence_delta=True,
        )
        return Attribution(cam, gradients[0].sum(0).detach().float().cpu().numpy(), float(delta))

    def _activation_map(
        self, image: Tensor, tap: FeatureMap, score: Callable[[Tensor], Tensor]
    ) -> npt.NDArray[np.float32]:
        """Return Grad-CAM (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391) of a feature map, ``[h, w]``."""
        # captum takes [N, C, H, W] alone: an identity that is shown every map so, whatever the module puts out.
        shown = nn.Identity()

        def show(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            turned: Tensor = shown(channels_first(output, tap).clone())
            return turned.permute(0, 2, 3, 1) if tap.channels_last else turned

        handle = self._network.backbone.get_submodule(tap.name).register_forward_hook(show)
        try:
            found = self._captum.LayerGradCam(score, shown).attribute(image, relu_attributions=True)
        finally:
            handle.remove()
        cam: npt.NDArray[np.float32] = found[0, 0].detach().float().cpu().numpy()
        return cam
