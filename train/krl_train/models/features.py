"""Reading what modules inside a network compute: feature maps, and the input of the last linear layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .network import Network

__all__ = [
    "FeatureMap",
    "by_resolution",
    "channels_first",
    "has_negative_values",
    "last_linear",
    "list_feature_maps",
    "reading",
    "run_once",
    "stage_outputs",
]

# torchvision's networks whose maps are [N, H, W, C]; timm's say so in their attribute output_fmt.
_CHANNELS_LAST = frozenset({"SwinTransformer"})
# torchvision's networks of tokens, whose one map is an embedding of patches.
_WITHOUT_MAPS = frozenset({"VisionTransformer"})
_SEVERAL_STAGES = 3  # a stage halves the resolution at most; what makes it a third or less holds several stages
_NOISE_IMAGES = 4  # a channel with negative values has some among the positions of a single image; more is for safety


@dataclass(frozen=True)
class FeatureMap:
    """An output inside a network.

    Attributes:
        name: The module's name in the backbone.
        shape: ``(C, H, W)`` of one sample.
        channels_last: Whether the module puts out ``[N, H, W, C]``.
    """

    name: str
    shape: tuple[int, int, int]
    channels_last: bool = False


@dataclass(frozen=True)
class _Call:
    """The last call of a module: its place in the order of ends, and the maps that went in and came out."""

    order: int
    given: FeatureMap | None
    made: FeatureMap | None


@contextmanager
def reading(
    outputs: Mapping[str, nn.Module],
    inputs: Mapping[str, nn.Module] | None = None,
    *,
    reduce: Callable[[Any], Any] = lambda output: output,
) -> Iterator[dict[str, Any]]:
    """Yield what modules computed in the last forward pass inside the block, by the names given here.

    Args:
        outputs: Modules whose output is wanted.
        inputs: Modules whose first input is wanted.
        reduce: Makes of an output, at once, the smaller thing that is kept of it.
    """
    found: dict[str, Any] = {}

    def keep_output(name: str, _: nn.Module, __: Any, output: Any) -> None:
        found.pop(name, None)  # a module that is used twice counts, and stands, where it is used last
        found[name] = reduce(output)

    def keep_input(name: str, _: nn.Module, given: tuple[Any, ...]) -> None:
        found[name] = given[0]

    handles = [module.register_forward_hook(partial(keep_output, name)) for name, module in outputs.items()]
    handles += [module.register_forward_pre_hook(partial(keep_input, name)) for name, module in (inputs or {}).items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run_once(network: Network, pixels: Tensor | None = None) -> None:
    """Run a network once in evaluation mode, leaving its mode and statistics as they were.

    Args:
        network: The network.
        pixels: ``[N, C, H, W]`` of uint8; one black image by default.
    """
    was_training, device = network.training, network.device
    network.eval()
    try:
        network(*(network.example() if pixels is None else [pixels.to(device)]))
    finally:
        network.train(was_training)


def list_feature_maps(network: Network) -> list[FeatureMap]:
    """Return all feature maps of a network in the order in which they are computed, found by one forward pass."""
    calls = sorted(_calls(network).values(), key=lambda call: call.order)
    return [call.made for call in calls if call.made is not None and _is_spatial(call.made)]


def stage_outputs(network: Network) -> list[FeatureMap]:
    """Return the feature map that ends each stage of a network, from fine to coarse, one for each resolution.

    A stage ends with the last block of its resolution, after the activation where the block has one, and no map comes
    from inside of a block. timm's networks name their stages themselves (``feature_info``). Of others the blocks are
    found by one forward pass: modules that at most halve the resolution; modules that do more, and those that do not
    return a map, are looked into. What the classifier computes is no feature, and neither pooling to a fixed size nor
    dropout ends a stage.
    """
    backbone = network.backbone
    calls = _calls(network)
    named = getattr(backbone, "feature_info", None)
    if type(backbone).__name__ in _WITHOUT_MAPS:
        return []
    if isinstance(named, list):
        names = [str(stage["module"]) for stage in named]
    else:
        end = max((calls[name].order for name in _layers(backbone) if name in calls), default=len(calls))
        names = [name for name in _blocks(backbone, calls, "") if calls[name].order < end]
        names.sort(key=lambda name: calls[name].order)
    maps = [calls[name].made for name in names if name in calls]
    last = {item.shape[1]: item for item in maps if item is not None and _is_spatial(item)}
    return [last[height] for height in sorted(last, reverse=True)]


def by_resolution(maps: Iterable[FeatureMap], height: int) -> dict[float, FeatureMap]:
    """Return feature maps by their resolution's share of the input's, by which two networks' maps are paired.

    Args:
        maps: One for each resolution, as ``stage_outputs`` gives them.
        height: Of the network's input, in pixels.
    """
    return {round(item.shape[1] / height, 3): item for item in maps}


def _layers(backbone: nn.Module) -> Iterator[str]:
    """Yield the layers of which the one that is computed last is the classifier."""
    return (name for name, module in backbone.named_modules() if isinstance(module, nn.Linear | nn.Conv2d))


def _blocks(module: nn.Module, calls: Mapping[str, _Call], prefix: str) -> Iterator[str]:
    """Yield the names of the outermost modules that each are a block, or a whole stage."""
    for name, child in module.named_children():
        path = prefix + name
        call = calls.get(path)
        inside = any(True for _ in child.children())
        if isinstance(child, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d | nn.Dropout):
            continue
        if call is None or (inside and _holds_stages(call)):
            yield from _blocks(child, calls, f"{path}.")
        elif call.made is not None:
            yield path


def _holds_stages(call: _Call) -> bool:
    if call.made is None or not _is_spatial(call.made):
        return True
    return call.given is not None and call.given.shape[1] >= _SEVERAL_STAGES * call.made.shape[1]


def _is_spatial(item: FeatureMap) -> bool:
    return item.shape[1] * item.shape[2] > 1


def _calls(network: Network) -> dict[str, _Call]:
    """Return the last call of each module that is called in one forward pass."""
    modules = {name: module for name, module in network.backbone.named_modules() if name}
    with reading(modules, {f"{name} given": module for name, module in modules.items()}) as found:
        run_once(network)
    ends = [name for name in found if name in modules]
    return {
        name: _Call(order, _as_map(network, name, found.get(f"{name} given")), _as_map(network, name, found[name]))
        for order, name in enumerate(ends)
    }


def _as_map(network: Network, name: str, value: Any) -> FeatureMap | None:
    """Describe a tensor of four dimensions; which are height and width shows in the proportions of the input."""
    if not isinstance(value, Tensor) or value.ndim != 4:
        return None
    _, first, second, third = value.shape
    backbone, (_, height, width) = network.backbone, network.preprocessing.shape

    def fits(tall: int, wide: int) -> bool:
        return abs(tall * width - wide * height) <= (max(height, width) if height != width else 0)

    known = getattr(backbone, "output_fmt", None) == "NHWC" or type(backbone).__name__ in _CHANNELS_LAST
    if known and fits(first, second):
        return FeatureMap(name, (third, first, second), channels_last=True)
    return FeatureMap(name, (first, second, third))


def channels_first(value: Tensor, tap: FeatureMap) -> Tensor:
    """Return a tap's output as ``[N, C, H, W]``."""
    return value.permute(0, 3, 1, 2) if tap.channels_last else value


def has_negative_values(network: Network, name: str) -> bool:
    """Whether the map at a tap has negative values, found by one forward pass of images of noise.

    Args:
        network: With the weights that count.
        name: Of the module in the backbone.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (_NOISE_IMAGES, *network.preprocessing.shape), generator=generator).to(torch.uint8)
    with reading({name: network.backbone.get_submodule(name)}) as found:
        run_once(network, noise)
    return bool((found[name] < 0).any())


def last_linear(module: nn.Module) -> nn.Linear | None:
    """Return the last linear layer, whose input is what a classifier knows of an image; ``None`` if there is none."""
    return next((each for each in reversed(list(module.modules())) if isinstance(each, nn.Linear)), None)
