"""Channels that can only be removed together, found through torch-pruning's dependency graph; and their removal."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from krl_runtime.errors import ModelError, require
from krl_train.models import ModelSpec
from krl_train.models.widths import PRUNED, set_widths, widths_of

__all__ = ["Slice", "Unit", "find_units", "masked", "pruned_spec", "removed", "rows"]

Side: TypeAlias = Literal["in", "out", "both"]

_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
# Both networks compute in float64, where sums in another order differ by about 1e-13.
_TOLERANCE = 1e-8
_MOST_WIDTHS = 3  # that layers of a group have beside the narrowest: 8 layouts to try, and no generator has more than 2
_NOT_FOUND = "what depends on its channels was not found"


@dataclass(frozen=True)
class Slice:
    """The channels of a layer that belong to a unit.

    Attributes:
        layer: Name of the layer in the backbone.
        side: Its outputs, its inputs, or both at once (batch normalization, depthwise convolution).
        channels: Indices in the layer.
        roots: For each of them the unit's channel that it goes with.
    """

    layer: str
    side: Side
    channels: tuple[int, ...]
    roots: tuple[int, ...]


@dataclass(frozen=True)
class Unit:
    """Channels of layers that depend on each other: a channel is removed from all of them, or from none.

    Attributes:
        name: Name of the layer that they are counted in.
        channels: Their number.
        parts: Number of consecutive parts that stay equally large: the groups of grouped convolutions.
        slices: Where they are.
    """

    name: str
    channels: int
    parts: int
    slices: tuple[Slice, ...]


def find_units(backbone: nn.Module, inputs: Sequence[Tensor]) -> tuple[list[Unit], dict[str, str]]:
    """Return the units that can be pruned in a network, and why the rest cannot.

    A unit is offered only if removing some of its channels gives what the network gives that ignores them. So a graph
    that was misread is found, whatever the network.

    Args:
        backbone: The network; it is not changed.
        inputs: An example of each of its inputs, in their order: floating-point numbers of any kind, or int64 tokens.

    Returns:
        The units, and by the name of a layer the reason why it is left alone.

    Raises:
        MissingExtraError: torch-pruning is not installed.
        ModelError: The network cannot be traced.
    """
    traced = copy.deepcopy(backbone).cpu().eval().requires_grad_(True)
    candidates: dict[str, list[Unit]] = {}
    reasons: dict[str, str] = {}
    for name, found in _groups(traced, inputs):
        if isinstance(found, str):
            reasons[name] = found
        else:
            candidates[name] = found
    exact, given = _exact(traced), [item.double() if item.is_floating_point() else item for item in inputs]
    units = [found[0] for found in candidates.values()]
    if _agrees(exact, given, units):
        return units, reasons
    units = []
    for name, found in candidates.items():
        right = next((unit for unit in found if _agrees(exact, given, [*units, unit])), None)
        if right is None:
            reasons[name] = _NOT_FOUND
        else:
            units.append(right)
    return units, reasons


def _exact(network: nn.Module) -> nn.Module:
    """Return a network in float64, without tensors of zeros: these would hide what channels change."""
    network.double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in network.parameters():
            if not value.any():
                value.copy_(0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return network


def _groups(network: nn.Module, inputs: Sequence[Tensor]) -> Iterator[tuple[str, list[Unit] | str]]:
    """Yield for each group of layers the name of its first one, and what units it may be or why it is none."""
    pruning: Any = require("torch_pruning", extra="prune", purpose="pruning")
    try:
        with torch.enable_grad():
            graph = pruning.DependencyGraph().build_dependency(network, tuple(inputs), verbose=False)
            groups = list(graph.get_all_groups(root_module_types=_LAYERS))
    except Exception as error:  # it raises whatever it raises on graphs that it was not made for
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"torch-pruning cannot follow the channels through this network ({type(error).__name__}: {reason}), so it "
            "cannot be pruned; distill a smaller network from it instead (krl-compress distill)"
        ) from error
    names = {module: name for name, module in network.named_modules()}
    last = _last_layers(graph, names)
    for group in groups:
        name = names[group[0].dep.target.module]
        if last.isdisjoint(_written(graph, group, names)):
            yield name, _candidates(graph, group, names)


def _last_layers(graph: Any, names: Mapping[nn.Module, str]) -> set[str]:
    """Return the layers whose output is not read by another layer: their channels are the network's outputs."""
    found = set()
    for module, node in graph.module2node.items():
        if not isinstance(module, _LAYERS) or module not in names:
            continue
        ahead, seen = list(node.outputs), set()
        while ahead:
            after = ahead.pop()
            if after in seen:
                continue
            seen.add(after)
            if not isinstance(after.module, _LAYERS):
                ahead += after.outputs
        if not any(isinstance(after.module, _LAYERS) for after in seen):
            found.add(names[module])
    return found


def _written(graph: Any, group: Any, names: Mapping[nn.Module, str]) -> set[str]:
    """Return the layers of a group whose outputs are in it."""
    return {
        names[item.dep.target.module]
        for item in group.items
        if item.dep.target.module in names and graph.is_out_channel_pruning_fn(item.dep.handler)
    }


def _candidates(graph: Any, group: Any, names: Mapping[nn.Module, str]) -> list[Unit] | str:
    """Return the units that a group may be, the likeliest first, or the reason why it is none."""
    slices: list[Slice] = []
    parts, layers = 1, {}
    for item in group.items:
        module = item.dep.target.module
        if module not in names:
            if isinstance(module, nn.Parameter):
                return "its channels are in a parameter that belongs to no layer"
            continue  # an operation without channels of its own
        layers[names[module]] = module
        if not widths_of(module):
            if isinstance(module, nn.PReLU):
                continue  # one slope for all channels
            return f"its channels are in {names[module]}, a {type(module).__name__}"
        side: Side = "out" if graph.is_out_channel_pruning_fn(item.dep.handler) else "in"
        piece = Slice(names[module], side, tuple(item.idxs), tuple(item.root_idxs))
        if isinstance(module, _NormBase | nn.PReLU):
            piece = replace(piece, side="both")
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.groups > 1:
            if module.groups == module.in_channels == module.out_channels:
                piece = replace(piece, side="both")
            elif isinstance(module, nn.ConvTranspose2d) or piece.channels != piece.roots:
                return f"its channels are mixed with those of {piece.layer}, a convolution of {module.groups} groups"
            else:
                parts = math.lcm(parts, module.groups)
        slices.append(piece)
    widths = {(piece.layer, piece.side): _width(layers[piece.layer], piece.side) for piece in slices}
    found = []
    if all(_is_sound(piece, widths[piece.layer, piece.side]) for piece in slices):
        channels = len(group[0].idxs)
        if channels % parts:
            return f"{parts} groups do not divide its {channels} channels"
        found.append(Unit(names[group[0].dep.target.module], channels, parts, tuple(slices)))
    if parts == 1:
        found += _layouts(widths)
    return found or _NOT_FOUND


def _width(layer: nn.Module, side: Side) -> int:
    """Return the number of channels on a side of a layer."""
    return next(value for key, value in widths_of(layer).items() if side == "both" or key.startswith(f"{side}_"))


def _is_sound(piece: Slice, width: int) -> bool:
    """Whether torch-pruning found for channels of a layer which of the unit they go with."""
    return None not in piece.roots and max(piece.channels, default=0) < width


def _layouts(widths: Mapping[tuple[str, Side], int]) -> Iterator[Unit]:
    """Yield the units that layers are whose channels are those of the narrowest one, several numbers for each.

    Several numbers lie one after another where a map is made of a vector, a vector of a map, or a pixel shuffle
    enlarges; and far apart where a layer is cut in two (scale and shift).

    Args:
        widths: For each layer and side the number of its channels.
    """
    channels = min(widths.values())
    wide = sorted({width for width in widths.values() if width > channels})
    if not 1 <= len(wide) <= _MOST_WIDTHS or any(width % channels for width in wide):
        return
    narrow = [name for (name, side), width in widths.items() if width == channels and side != "in"]
    name = next(iter(narrow), next(name for (name, _), width in widths.items() if width == channels))
    for together in product((True, False), repeat=len(wide)):
        roots = {channels: tuple(range(channels))}
        for width, adjacent in zip(wide, together, strict=True):
            each = width // channels
            roots[width] = tuple(index // each if adjacent else index % channels for index in range(width))
        slices = [Slice(*where, tuple(range(width)), roots[width]) for where, width in widths.items()]
        yield Unit(name, channels, 1, tuple(slices))


def _agrees(network: nn.Module, inputs: Sequence[Tensor], units: Sequence[Unit]) -> bool:
    """Whether a network without some channels computes what the network does that ignores them."""
    generator = torch.Generator().manual_seed(0)
    choice = {}
    for unit in units:
        each = unit.channels // unit.parts
        drawn = [torch.randperm(each, generator=generator)[: each // 2] + part * each for part in range(unit.parts)]
        choice[unit] = set(torch.cat(drawn).tolist())
    try:
        with torch.no_grad():
            thin, ignoring = removed(network, choice)(*inputs), masked(network, choice)(*inputs)
    except (RuntimeError, IndexError, ValueError, ModelError):  # shapes that do not fit
        return False
    error = (thin - ignoring).abs().max()
    return bool(torch.isfinite(error)) and bool(error <= _TOLERANCE * (1 + ignoring.abs().max()))


def _dropped(choice: Mapping[Unit, Collection[int]]) -> dict[tuple[str, Side], set[int]]:
    """Return for each layer and side the indices of the channels that go."""
    found: dict[tuple[str, Side], set[int]] = {}
    for unit, roots in choice.items():
        for piece in unit.slices:
            gone = {channel for channel, root in zip(piece.channels, piece.roots, strict=True) if root in roots}
            found.setdefault((piece.layer, piece.side), set()).update(gone)
    return found


def masked(backbone: nn.Module, choice: Mapping[Unit, Collection[int]]) -> nn.Module:
    """Return a copy of a network whose layers ignore channels, that is, have weights of 0 for them.

    Args:
        backbone: The network.
        choice: For each unit, the channels.
    """
    network = copy.deepcopy(backbone)
    for (name, side), gone in _dropped(choice).items():
        if side == "in":
            layer = network.get_submodule(name)
            kept = torch.ones(widths_of(layer)["in_features" if isinstance(layer, nn.Linear) else "in_channels"])
            kept[sorted(gone)] = 0
            weight = layer.get_parameter("weight")
            _input_view(layer, weight.detach()).mul_(_for_inputs(layer, kept.to(weight)))
    return network


def _input_view(layer: nn.Module, weight: Tensor) -> Tensor:
    """Return a view of a weight whose first two axes are groups and the input channels of each."""
    if isinstance(layer, nn.ConvTranspose2d):
        return weight.reshape(layer.groups, -1, *weight.shape[1:])
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    return weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2)


def _for_inputs(layer: nn.Module, kept: Tensor) -> Tensor:
    view = _input_view(layer, layer.get_parameter("weight"))
    return kept.reshape(view.shape[0], view.shape[1], *[1] * (view.ndim - 2))


def removed(backbone: nn.Module, choice: Mapping[Unit, Collection[int]]) -> nn.Module:
    """Return a copy of a network without channels.

    Args:
        backbone: The network.
        choice: For each unit, the channels that go: as many of each of its parts.

    Raises:
        ModelError: Not as many of each part.
    """
    state = backbone.state_dict()  # with the versions of its modules, which some networks ask for
    state.update({name: value.clone() for name, value in state.items()})
    widths: dict[str, dict[str, int]] = {}
    for (name, side), gone in sorted(_dropped(choice).items()):
        layer = backbone.get_submodule(name)
        width = widths.setdefault(name, widths_of(layer))
        for key in width:
            if side == "both" or key.startswith(f"{side}_"):
                width[key] -= len(gone)
        _cut_state(state, name, layer, side, gone)
    network = copy.deepcopy(backbone)
    set_widths(network, widths)
    network.load_state_dict(state)
    return network


def pruned_spec(spec: ModelSpec, before: nn.Module, after: nn.Module) -> ModelSpec:
    """Return the record of a network that lost channels.

    Args:
        spec: Record of the network before.
        before: The network that ``spec`` makes.
        after: The network without channels.
    """
    widths = {name: dict(values) for name, values in spec.arguments.get(PRUNED, {}).items()}
    wide = {name: widths_of(layer) for name, layer in before.named_modules()}
    for name, layer in after.named_modules():
        changed = {key: value for key, value in widths_of(layer).items() if wide[name][key] != value}
        if changed:
            widths[name] = {**widths.get(name, {}), **changed}
    return replace(spec, arguments={**spec.arguments, PRUNED: dict(sorted(widths.items()))}) if widths else spec


def _cut_state(state: dict[str, Tensor], name: str, layer: nn.Module, side: Side, gone: Collection[int]) -> None:
    """Take channels out of the tensors of a layer."""
    if side == "in" and isinstance(layer, nn.Conv2d) and layer.groups > 1:
        weight, each = state[f"{name}.weight"], layer.in_channels // layer.groups
        kept = [[i for i in range(each) if group * each + i not in gone] for group in range(layer.groups)]
        if len({len(channels) for channels in kept}) > 1:
            raise ModelError(f"layer {name} would have groups of different widths")
        chunks = weight.chunk(layer.groups)
        state[f"{name}.weight"] = torch.cat([chunk[:, left] for chunk, left in zip(chunks, kept, strict=True)])
        return
    transposed = isinstance(layer, nn.ConvTranspose2d) and layer.groups == 1
    axes = {"weight": int(transposed != (side == "in"))}
    if side != "in":
        axes |= {"bias": 0, "running_mean": 0, "running_var": 0}
    for tensor, axis in axes.items():
        key = f"{name}.{tensor}"
        if key in state:
            left = [index for index in range(state[key].shape[axis]) if index not in gone]
            state[key] = state[key].index_select(axis, torch.tensor(left, device=state[key].device))


def rows(layer: nn.Module, side: Side, tensor: Tensor) -> Tensor:
    """Return a layer's weight, or a tensor of its shape, as ``[channels, numbers of each]``.

    Args:
        layer: The layer.
        side: Whose channels: of its outputs, or of its inputs.
        tensor: Of the shape of its weight.
    """
    if tensor.ndim == 1:
        return tensor[:, None]
    if side == "in":
        return _input_view(layer, tensor).flatten(0, 1).flatten(1)
    transposed = isinstance(layer, nn.ConvTranspose2d) and layer.groups == 1
    return tensor.transpose(0, 1).flatten(1) if transposed else tensor.flatten(1)
