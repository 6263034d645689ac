"""The layers of a network that a person would count: its blocks, and what stands between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .features import reading

__all__ = ["list_layers"]

_LARGE_SHARE = 0.5  # of all innermost modules: what holds more is no block, but most of the network


def list_layers(backbone: nn.Module, run: Callable[[], Any]) -> list[str]:
    """Return the names of a network's layers in the order in which they are computed.

    A layer has parameters. Plain lists of modules are looked into, and so is what holds more than half of the network;
    a block, such as a residual one, is one layer.

    Args:
        backbone: The network.
        run: Runs it once, on one input or several.
    """
    total = _size(backbone)
    named = dict(_layers(backbone, "", total))
    with reading(named) as found:
        run()
    return [name for name, value in found.items() if isinstance(value, Tensor) and value.ndim > 1]


def _layers(module: nn.Module, prefix: str, total: int) -> list[tuple[str, nn.Module]]:
    found: list[tuple[str, nn.Module]] = []
    for name, child in module.named_children():
        path = prefix + name
        if next(child.parameters(), None) is None:
            continue
        inside = any(True for _ in child.children())
        is_list = type(child) in (nn.Sequential, nn.ModuleList)
        if inside and (is_list or _size(child) > _LARGE_SHARE * total):
            found += _layers(child, f"{path}.", total)
        else:
            found.append((path, child))
    return found


def _size(module: nn.Module) -> int:
    """Return the number of innermost modules."""
    return sum(not any(True for _ in each.children()) for each in module.modules())
