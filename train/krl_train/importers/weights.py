"""Third-party weights: read without executing anything in them."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from krl_runtime.errors import ModelError

__all__ = ["read_npz", "read_weights"]

# Chosen so that every image network known passes, and a file cannot fill the memory of a workstation.
_MAX_BYTES = 8 * 2**30
# An npz is compressed: its size says little, so what it unpacks to is bounded. The networks in it have some megabytes.
_MAX_NPZ_BYTES = 2**30
# Checkpoints nest a few entries; an object that holds itself would never end.
_MAX_DEPTH = 16
# Entries of whatever kind; optimizers of the largest image networks have some thousands.
_MAX_ENTRIES = 1_000_000
_SHOWN = 5  # types in a message; the first ones show the kind
_ADVICE = """Where the file can be opened, save the network's weights alone, and import that file:
  from safetensors.torch import save_file
  save_file({name: value.clone() for name, value in model.state_dict().items()}, "weights.safetensors")"""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file of weights.

    Args:
        path: ``.safetensors``, or anything that ``torch.load(weights_only=True)`` reads.

    Returns:
        All tensors on the CPU; names of nested entries are joined with dots, as in ``state_dict.conv1.weight``.

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
        raise ModelError(f"weights {path} cannot be read as weights alone: {_reason(path, error)}") from error
    if not isinstance(content, Mapping):
        raise ModelError(f"weights {path} hold a {type(content).__name__}, not tensors by name")
    tensors = _flat(content, path)
    if not tensors:
        raise ModelError(f"weights {path} hold no tensors; their entries are {sorted(map(str, content))[:10]}")
    return tensors


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


def _reason(path: Path, error: Exception) -> str:
    """Say why a file was refused: damaged, or which objects other than tensors it holds."""
    text = str(error)
    if "TorchScript" in text:
        return f"it is a TorchScript archive, which holds code. {_ADVICE}"
    types = _other_types(path, text)
    if types:
        shown = f"{', '.join(types[:_SHOWN])}{' …' if len(types) > _SHOWN else ''}"
        return f"it holds objects other than tensors, of the types {shown}; krl executes nothing in a file. {_ADVICE}"
    first = "" if "weights_only" in text else f": {text.strip().partition(chr(10))[0]}"  # torch's advice is not krl's
    return f"{type(error).__name__}{first}; accepted: safetensors, or a state dict saved by torch.save"


def _other_types(path: Path, text: str) -> list[str]:
    """Return the names of classes and functions in a file that weights do not need, the user's own first."""
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # torch's older format, or damaged; then the error names the first one
        found = re.findall(r"GLOBAL ([\w.]+)", text)
    return sorted(
        set(found),
        key=lambda name: (name.startswith(("torch.", "numpy.", "builtins.", "__builtin__.", "collections.")), name),
    )


def _flat(content: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """Return all tensors of nested mappings and lists, by their joined names."""
    tensors: dict[str, Tensor] = {}
    entries = 0

    def visit(value: Any, names: tuple[str, ...]) -> None:
        nonlocal entries
        entries += 1
        if entries > _MAX_ENTRIES or len(names) > _MAX_DEPTH:
            raise ModelError(
                f"weights {path} have more than {_MAX_ENTRIES} entries, or more than {_MAX_DEPTH} in one another"
            )
        if isinstance(value, Tensor):
            tensors.setdefault(".".join(names), value)
        elif isinstance(value, Mapping):
            for name, item in value.items():
                visit(item, (*names, str(name)))
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                visit(item, (*names, str(index)))

    visit(content, ())
    return tensors
