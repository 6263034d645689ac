"""Foreign networks of style: TensorFlow variables in an npz, in the order in which the network was made."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from krl_runtime.errors import ModelError
from krl_train.config import ImportConfig
from krl_train.models.restorers import build_restorer
from krl_train.run import Run
from krl_train.training.fit import network_size
from krl_train.training.style import style_preprocessing, style_spec

from .weights import match_weights, read_weights, write_import

__all__ = ["import_style", "read_variables", "renamed"]

_MAX_BYTES = 2**30  # a network of style has some megabytes; a bound before anything is unpacked
_SIZE = (64, 64)  # of the record; the network takes images of any size
_OF_A_LAYER = ("conv.weight", "norm.bias", "norm.weight")


def import_style(config: ImportConfig) -> Run:
    """Turn the weights of a network of style into a run of restoration; there is nothing to measure them by.

    Args:
        config: ``weights`` is an npz of variables ``Variable``, ``Variable_1`` …, as TensorFlow 1 named them: for each
            layer the convolution (HWIO), the shift and the scale of its instance normalisation; or a file that
            ``read_weights`` reads, with krl's own names.

    Raises:
        ModelError: The weights cannot be read, or do not fit the network.
    """
    spec = style_spec(config.model)
    size = config.input.size or _SIZE
    network = build_restorer(spec, style_preprocessing((size[0], size[-1])))
    names = list(network.backbone.state_dict())
    tensors = renamed(read_variables(config.weights), names) if config.weights.suffix == ".npz" else None
    match_weights(tensors or read_weights(config.weights), network.backbone, f"weights {config.weights}")
    return write_import(config, "restoration", spec, network, network_size(network), data={})


def read_variables(path: Path) -> dict[str, Tensor]:
    """Read an npz of float arrays, without executing anything in it.

    Raises:
        ModelError: It is missing, damaged, too large, or holds other things than numbers.
    """
    if not path.is_file():
        raise ModelError(f"weights {path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(item.file_size for item in archive.infolist())
        if size > _MAX_BYTES:
            raise ModelError(f"weights {path} have {size} bytes unpacked; at most {_MAX_BYTES} are accepted")
        with np.load(path, allow_pickle=False) as content:
            return {name: torch.from_numpy(np.asarray(content[name], np.float32)) for name in content.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ModelError(f"weights {path} cannot be read as an npz of numbers: {error}") from error


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
