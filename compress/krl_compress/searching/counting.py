"""The work of one run of a network, counted without running it: what its latency is predicted from."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from krl_runtime.errors import KrlError, ModelError
from krl_train.models import count_parameters

__all__ = ["Workload", "workload"]

_BYTES = 4  # of a value in FP32; other precisions have less, and coefficients of their own
_FUSED = ("native_batch_norm", "relu", "hardtanh", "leaky_relu", "sigmoid", "tanh")
"""Operations that runtimes compute as part of the convolution before them."""


@dataclass(frozen=True)
class Workload:
    """The work of one run at batch 1.

    Attributes:
        layers: Operations: convolutions, matrix products, and all others that make a new tensor, such as additions,
            pooling and concatenations. Batch normalization and the activations that runtimes fuse are not counted.
        dense_macs: Multiply-accumulate operations of convolutions with one group. Products with padding are not
            counted: of a 3×3 convolution on one pixel there is one, not nine. Predictions were better without them.
        grouped_macs: The same of convolutions with several groups, such as depthwise ones.
        linear_macs: Multiply-accumulate operations of linear layers and other matrix products.
        weight_bytes: Bytes of the weights that are read, in FP32; those that meet padding alone are not.
        activation_bytes: Bytes that the layers read and write, in FP32.
    """

    layers: int
    dense_macs: int
    grouped_macs: int
    linear_macs: int
    weight_bytes: int
    activation_bytes: int

    @property
    def values(self) -> tuple[int, ...]:
        """The features in the order of the attributes."""
        return astuple(self)


@torch.no_grad()
def workload(network: nn.Module, shape: Sequence[int]) -> Workload:
    """Count the work of one run; the network stays as it is.

    Nothing is computed: a copy of the network is moved to torch's device ``meta``, which has shapes and no values.

    Args:
        network: A ``Network``, or a backbone: takes float32 ``[1, *shape]``.
        shape: Channels, height and width of one input.

    Raises:
        ModelError: The network does not take such an input, or needs values to run.
    """
    if any(parameter.device.type != "meta" for parameter in network.parameters()):
        network = copy.deepcopy(network).to("meta")
    modes = {module: module.training for module in network.modules()}
    image = torch.zeros((1, *shape), device="meta")
    counter = _Counter(network)
    try:
        with counter:
            network.eval()(image)
    except KrlError:
        raise
    except Exception as error:  # a network of the user's own may raise any
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"the work of {type(network).__name__} cannot be counted for an input of {list(shape)}: "
            f"{type(error).__name__}: {reason}; its forward() has to run on torch's device meta, which has no values"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    found = counter.found
    return Workload(
        layers=found["layers"],
        dense_macs=found["dense"],
        grouped_macs=found["grouped"],
        linear_macs=found["linear"],
        weight_bytes=_BYTES * (count_parameters(network) - found["unread"]),
        activation_bytes=_BYTES * found["activations"],
    )


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts each operation of a network as it is dispatched."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[str] = Counter()
        self._weights = {_storage(parameter) for parameter in network.parameters()}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and count it."""
        options = dict(kwargs or {})
        output = func(*args, **options)
        name = func.overloadpacket.__name__
        given, made = _tensors(args), _tensors((output,))
        if not given or not made or _is_view(func) or name.startswith(_FUSED):
            return output
        self.found["layers"] += 1
        read = (tensor.numel() for tensor in given if _storage(tensor) not in self._weights)
        self.found["activations"] += made[0].numel() + sum(read)
        if name == "convolution":
            self._convolution(args, made[0])
        elif func.overloadpacket in flop_registry:
            self.found["linear"] += flop_registry[func.overloadpacket](*args, **options, out_val=output) // 2
        return output

    def _convolution(self, args: Sequence[Any], made: Tensor) -> None:
        """Count the products with pixels, and the weights that meet no pixel."""
        image, weight, _, stride, padding, dilation, transposed, _, groups = args
        # A transposed convolution has the products of the convolution from its output to its input.
        wide, narrow = (made, image) if transposed else (image, made)
        products = read = weight.shape[0] * weight.shape[1]
        for axis, kernel in enumerate(weight.shape[2:]):
            places, size = range(narrow.shape[2 + axis]), wide.shape[2 + axis]
            first = [tap * dilation[axis] - padding[axis] for tap in range(kernel)]
            hits = [sum(0 <= place * stride[axis] + start < size for place in places) for start in first]
            products *= sum(hits)
            read *= sum(count > 0 for count in hits)
        self.found["grouped" if groups > 1 else "dense"] += products
        self.found["unread"] += weight.numel() - read


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    """Return the tensors among the arguments of an operation, those in lists as well."""
    found: list[Tensor] = []
    for value in values:
        found += _tensors(value) if isinstance(value, list | tuple) else [value] if isinstance(value, Tensor) else []
    return found


def _storage(tensor: Tensor) -> int:
    """Return the identity of a tensor's storage, which its views share; on ``meta`` no storage has an address."""
    identity: int = tensor.untyped_storage()._cdata
    return identity


def _is_view(func: Any) -> bool:
    """Return whether an operation returns another view of its input, and computes nothing."""
    aliases = [made.alias_info for made in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)
