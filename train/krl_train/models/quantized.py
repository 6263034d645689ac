"""A network that computes as its INT8 graph will: fake-quantized, for training and for judging it.

Where values are rounded follows NVIDIA's rules of explicit quantization, the same that ``krl-deploy`` writes graphs by:
the input and the weight of each convolution and linear layer that is wide enough, and the branch of a residual
addition. Batch normalization is folded into the convolution before it, and frozen where there is none.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils.fusion import fuse_conv_bn_eval

from krl_runtime.errors import ModelError
from krl_runtime.int8 import MIN_CHANNELS

from .equalization import equalize
from .quantizers import ROUNDED_LAYERS, Mode, Quantizer, round_weights

__all__ = ["FakeQuantized"]

_WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
_ATTENTION_PRODUCTS = 4  # on the way through: the projection in, two products, the projection out
_PASSES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_PASSING_FUNCTIONS = frozenset({"dropout", "dropout2d", "stochastic_depth"})
_PRODUCTS = (torch.matmul, torch.bmm, operator.matmul)
_ADDITIONS = (operator.add, operator.iadd, torch.add)


class FakeQuantized(nn.Module):
    """A backbone that rounds where its INT8 graph will.

    It is always in eval mode: what is left of batch normalization is frozen, and nothing is dropped. It computes in
    float32 under mixed precision as well, whose own rounding is coarser than that of INT8.

    Args:
        backbone: The float network, with its weights; it is not changed.
        shape: Channels, height and width of one input.

    Raises:
        ModelError: The network cannot be traced, or no layer of it is wide enough for INT8.
    """

    def __init__(self, backbone: nn.Module, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.graph = _traced(backbone)
        ShapeProp(self.graph).propagate(torch.zeros(2, *shape))
        _place(self.graph)
        self.eval()

    def train(self, mode: bool = True) -> FakeQuantized:
        """Stay in eval mode, whatever is asked for."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalized ``[N, C, H, W]`` to what the backbone gives."""
        if torch.onnx.is_in_onnx_export():
            exported: Tensor = self.graph(x)
            return exported
        with torch.autocast(x.device.type, enabled=False):
            answer: Tensor = self.graph(x)
        return answer

    def quantizers(self) -> list[Quantizer]:
        """Return the quantizers of activations, in the order of execution."""
        return [module for module in self.modules() if isinstance(module, Quantizer)]

    def set_mode(self, mode: Mode) -> None:
        """Round, or do not, from now on."""
        for module in self.modules():
            if isinstance(module, (Quantizer, *ROUNDED_LAYERS)):
                module.mode = mode  # type: ignore[assignment]

    @contextmanager
    def computing(self, mode: Mode) -> Iterator[None]:
        """Compute in this mode for the time of a ``with`` block."""
        self.set_mode(mode)
        try:
            yield
        finally:
            self.set_mode("int8")

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Take the scales from what runs through the network in a ``with`` block; nothing is rounded there.

        Activations with outlier channels are equalized, which changes weights and leaves answers as they are.
        """
        with self.computing("observe"):
            yield
        equalize(self.graph)
        for quantizer in self.quantizers():
            quantizer.set_scale()


def _traced(backbone: nn.Module) -> fx.GraphModule:
    """Return the graph of a network in eval mode, batch normalization folded, without what only passes a tensor on."""
    try:
        graph = fx.symbolic_trace(copy.deepcopy(backbone).eval())
    except Exception as error:  # a network's own code raises whatever it raises on tensors without values
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"the network cannot be traced for quantization-aware training ({type(error).__name__}: {reason}); "
            "krl-deploy quantize quantizes it after training"
        ) from error
    for node in list(graph.graph.nodes):
        if _passes_on(graph, node):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    _fold_normalization(graph)
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def _module(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def _passes_on(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_function":
        return getattr(node.target, "__name__", "") in _PASSING_FUNCTIONS
    module = _module(graph, node)
    return isinstance(module, _PASSES) or type(module).__name__ == "StochasticDepth"


def _fold_normalization(graph: fx.GraphModule) -> None:
    for node in list(graph.graph.nodes):
        normalization = _module(graph, node)
        if type(normalization) is not nn.BatchNorm2d:
            continue
        before = node.args[0]
        convolution = _module(graph, before)
        if type(convolution) not in (nn.Conv2d, nn.ConvTranspose2d) or len(before.users) != 1:
            continue
        if sum(other.target == before.target for other in graph.graph.nodes) > 1:
            continue  # a convolution that is used twice cannot hold the statistics of one use
        transposed = isinstance(convolution, nn.ConvTranspose2d)
        assert isinstance(convolution, nn.Conv2d | nn.ConvTranspose2d)  # noqa: S101  for the type checker
        fused = fuse_conv_bn_eval(convolution, normalization, transpose=transposed)
        parent, _, name = str(before.target).rpartition(".")
        setattr(graph.get_submodule(parent), name, fused)
        node.replace_all_uses_with(before)
        graph.graph.erase_node(node)


def _place(graph: fx.GraphModule) -> None:
    """Round weights, and put a quantizer behind each tensor that an INT8 operator reads."""
    depths = _depths(graph)
    chosen = [
        node
        for node in graph.graph.nodes
        if type(layer := _module(graph, node)) in _WEIGHTED and _is_int8(layer, depths[node])
    ]
    if not chosen:
        raise ModelError(
            f"no convolution or linear layer of the network has {MIN_CHANNELS} channels; INT8 has nothing to do"
        )
    residuals = _residual_inputs(graph, chosen, depths)
    places: dict[fx.Node, list[tuple[fx.Node, int]]] = {}
    for reader, index in [*((node, 0) for node in chosen), *residuals]:
        places.setdefault(reader.args[index], []).append((reader, index))
    graph.add_module("quantizers", nn.Module())
    for source in [node for node in graph.graph.nodes if node in places]:
        name = f"quantizers.{source.name}"
        graph.add_submodule(name, Quantizer())
        with graph.graph.inserting_after(source):
            quantizer = graph.graph.call_module(name, (source,))
        for reader, index in places[source]:
            reader.update_arg(index, quantizer)
    for node in chosen:
        layer = _module(graph, node)
        if layer is not None and type(layer) in _WEIGHTED:  # not yet: a layer may be used twice
            round_weights(layer)
    graph.graph.lint()
    graph.recompile()


def _depths(graph: fx.GraphModule) -> Mapping[fx.Node, int]:
    """Return for each node the number of weighted operators on the longest way to its output."""
    depths: dict[fx.Node, int] = {}
    for node in graph.graph.nodes:
        own = int(isinstance(_module(graph, node), _WEIGHTED) or node.target in _PRODUCTS)
        if isinstance(_module(graph, node), nn.MultiheadAttention):
            own = _ATTENTION_PRODUCTS
        depths[node] = own + max((depths[before] for before in node.all_input_nodes), default=0)
    return depths


def _is_int8(layer: nn.Module | None, depth: int) -> bool:
    """Return whether a layer is wide enough for INT8 kernels; the rule of ``krl_deploy.graph.worker``."""
    if isinstance(layer, nn.Linear):
        return min(layer.in_features, layer.out_features) >= MIN_CHANNELS
    if not isinstance(layer, nn.Conv2d):
        return True
    out_channels, in_channels, *kernel = layer.weight.shape
    if min(out_channels, in_channels) >= MIN_CHANNELS:
        return True
    if layer.groups > 1:
        return out_channels % 8 == 0 and min(kernel) >= 3
    aligned = (out_channels % 8 == 0 or in_channels % 8 == 0) and len(set(kernel)) == 1
    return aligned and (depth == 1 or max(out_channels, in_channels) >= MIN_CHANNELS)


def _residual_inputs(
    graph: fx.GraphModule, chosen: list[fx.Node], depths: Mapping[fx.Node, int]
) -> list[tuple[fx.Node, int]]:
    """Return the additions of a branch to the output of an INT8 operator, and which argument is the branch."""
    fused = {node for node in chosen if len(node.users) == 1 and not _is_product_and_sum(graph, node)}
    found = []
    for node in graph.graph.nodes:
        is_addition = node.target in _ADDITIONS if node.op == "call_function" else node.target in ("add", "add_")
        terms = node.args[:2]
        if not is_addition or len(terms) < 2 or not all(isinstance(term, fx.Node) for term in terms):
            continue
        main = [index for index, term in enumerate(terms) if term in fused]
        if main and _shape(terms[0]) == _shape(terms[1]):
            longest = max(main, key=lambda index: (depths[terms[index]], -index))
            found.append((node, 1 - longest))
    return found


def _is_product_and_sum(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether ONNX has two operators for a linear layer: with other than matrices, the bias is an addition."""
    layer = _module(graph, node)
    return isinstance(layer, nn.Linear) and layer.bias is not None and len(_shape(node) or ()) != 2


def _shape(node: Any) -> tuple[int, ...] | None:
    known = node.meta.get("tensor_meta")
    return tuple(known.shape) if hasattr(known, "shape") else None
