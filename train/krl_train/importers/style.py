"""Third-party style networks: TensorFlow variables in an npz, in the order in which the network was made."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from krl_runtime.errors import ModelError
from krl_train.config import ImportConfig
from krl_train.models.restorers import build_restorer
from krl_train.training.style import style_preprocessing, style_spec
from krl_train.training.train import network_size

from .matching import match_weights
from .target import Measured, Target
from .weights import read_npz, read_weights

__all__ = ["renamed", "style_target"]

# Chosen for the record alone, where --size is not given: the network takes every size.
_SIZE = (64, 64)
_OF_A_LAYER = ("conv.weight", "norm.bias", "norm.weight")


def style_target(config: ImportConfig) -> Target:
    """Return the style network that the weights are for; there is nothing to measure it by.

    Args:
        config: ``weights`` is an npz of variables ``Variable``, ``Variable_1`` …, as TensorFlow 1 named them: for each
            layer the convolution (HWIO), the shift and the scale of its instance normalization; or a file that
            ``read_weights`` reads, with krl's own names.

    Raises:
        ModelError: ``--model`` names no style network.
    """
    spec = style_spec(config.model)
    size = config.input.size or _SIZE
    network = build_restorer(spec, style_preprocessing((size[0], size[-1])))

    backbone = network.backbone
    npz = config.weights.suffix == ".npz"
    tensors = renamed(read_npz(config.weights), list(backbone.state_dict())) if npz else read_weights(config.weights)
    entry = match_weights(tensors, backbone, f"weights {config.weights}", key=config.weights_key)
    return Target("restoration", spec, network, entry, lambda: Measured(network_size(network), {}))


def renamed(variables: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Give TensorFlow's variables krl's names and layouts.

    Args:
        variables: ``Variable``, ``Variable_1`` …: convolution, shift and scale of each layer in turn. Convolutions are
            HWIO; those that enlarge have their outputs before their inputs.
        names: The network's own names, of as many tensors.

    Raises:
        ModelError: There are other names among them, or another number.
    """
    layers = list(dict.fromkeys(name.rsplit(".", 2)[0] for name in names))
    if len(variables) != len(names) or not all(re.fullmatch(r"Variable(_\d+)?", name) for name in variables):
        raise ModelError(
            f"the npz has {len(variables)} arrays ({', '.join(sorted(variables)[:3])} …); accepted: {len(names)} named "
            "Variable, Variable_1 …, three for each layer of style-WIDTH"
        )
    ordered = [variables[f"Variable_{index}" if index else "Variable"] for index in range(len(variables))]
    wanted = [f"{layer}.{part}" for layer in layers for part in _OF_A_LAYER]
    # [H, W, in, out] becomes [out, in, H, W]; and [H, W, out, in] of an enlarging one [in, out, H, W].
    return {
        name: value.permute(3, 2, 0, 1).contiguous() if value.ndim == 4 else value
        for name, value in zip(wanted, ordered, strict=True)
    }
