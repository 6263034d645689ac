"""Third-party weights: read without executing anything in them, and matched to a network of krl's."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from krl_runtime.errors import ModelError
from krl_train.run import check_finite

__all__ = ["match_weights", "read_npz", "read_weights"]

# Chosen so that every image network known passes, and a file cannot fill the memory of a workstation.
_MAX_BYTES = 8 * 2**30
# An npz is compressed: its size says little, so what it unpacks to is bounded. The networks in it have some megabytes.
_MAX_NPZ_BYTES = 2**30
_CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "ema", "state_dict_ema")
_PREFIXES = ("module.", "backbone.", "model.", "net.", "encoder.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file of weights.

    Args:
        path: ``.safetensors``, or anything that ``torch.load(weights_only=True)`` reads.

    Returns:
        Tensors by name, on the CPU; containers such as ``{"state_dict": …}`` are opened.

    Raises:
        ModelError: It is missing, not a file of weights, or would execute code.
    """
    if not path.is_file():
        raise ModelError(f"weights {path}: no such file")
    if path.stat().st_size > _MAX_BYTES:
        raise ModelError(f"weights {path} have {path.stat().st_size} bytes; at most {_MAX_BYTES} are accepted")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load and safetensors raise many types on damaged or hostile files
        first = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"weights {path} cannot be read as weights alone ({type(error).__name__}: {first}); accepted: safetensors, "
            "or a state dict saved by torch.save"
        ) from error
    return _tensors(content, path)


def read_npz(path: Path) -> dict[str, Tensor]:
    """Read an npz of float arrays, without executing anything in it.

    Raises:
        ModelError: It is missing, damaged, too large, or holds other things than numbers.
    """
    if not path.is_file():
        raise ModelError(f"weights {path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(item.file_size for item in archive.infolist())
        if size > _MAX_NPZ_BYTES:
            raise ModelError(f"weights {path} have {size} bytes unpacked; at most {_MAX_NPZ_BYTES} are accepted")
        with np.load(path, allow_pickle=False) as content:
            return {name: torch.from_numpy(np.asarray(content[name], np.float32)) for name in content.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ModelError(f"weights {path} cannot be read as an npz of numbers: {error}") from error


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        inner = next((content[key] for key in _CONTAINERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping):
        raise ModelError(f"weights {path} hold a {type(content).__name__}, not tensors by name")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ModelError(f"weights {path} hold no tensors; their entries are {sorted(map(str, content))[:10]}")
    return tensors


def match_weights(tensors: Mapping[str, Tensor], model: nn.Module, where: str) -> None:
    """Load third-party tensors into a network, with and without prefixes such as ``module.``.

    Args:
        tensors: By their own names.
        model: The network.
        where: The file, for messages.

    Raises:
        ModelError: Names or shapes do not match, or a value is not a finite number; the message lists which.
    """
    state = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    candidates = [_strip(tensors, prefix) for prefix in ("", *_PREFIXES)]
    candidates += [_strip(_strip(tensors, "module."), prefix) for prefix in _PREFIXES[1:]]
    best = max(candidates, key=lambda candidate: len(set(candidate) & set(state)))
    missing = sorted(set(state) - set(best))
    extra = sorted(name for name in set(best) - set(state) if not name.endswith("num_batches_tracked"))
    shapes = [
        f"{name} is {list(best[name].shape)}, expected {list(state[name].shape)}"
        for name in state
        if name in best and best[name].shape != state[name].shape
    ]
    problems = [
        f"{len(items)} {what}: {', '.join(items[:5])}"
        for what, items in (("missing", missing), ("not known to the network", extra), ("of another shape", shapes))
        if items
    ]
    if problems:
        raise ModelError(
            f"{where} does not fit the network: {'; '.join(problems)}. Check --model, the number of classes in --data "
            "or --labels, and --channels"
        )
    matched = {name: best[name] for name in state}
    check_finite(matched, where)
    model.load_state_dict(matched, strict=False)


def _strip(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items()}
