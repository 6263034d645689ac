"""Layers that round as INT8 does: activations with one learned scale, weights with one for each output channel.

All of it is symmetric. Scales of activations are learned (Esser et al., 2020, "Learned Step Size Quantization",
https://arxiv.org/abs/1902.08153); rounding passes gradients straight through (https://arxiv.org/abs/1308.3432).
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krl_runtime.int8 import LARGEST_INT8, LARGEST_WEIGHT, SMALLEST_INT8

__all__ = ["ROUNDED_LAYERS", "Mode", "Quantizer", "round_weights"]

Mode: TypeAlias = Literal["int8", "float", "observe"]
"""Round as INT8 does; do not round; do not round, and note the largest magnitude of each channel."""

_TINY = torch.finfo(torch.float32).tiny


class _Round(torch.autograd.Function):
    """``clamp(round(x / scale), low, high) * scale``, half to even, with the gradients of learned step sizes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        levels = x / scale
        ctx.save_for_backward(levels)
        ctx.low, ctx.high = low, high
        return levels.round().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor | None, None, None]:
        (levels,), (gradient,) = ctx.saved_tensors, gradients
        inside = (levels > ctx.low - 0.5) & (levels < ctx.high + 0.5)  # the largest weight may be at 127.00001
        to_scale = None
        if ctx.needs_input_grad[1]:
            rounded = levels.round().clamp_(ctx.low, ctx.high)
            each = torch.where(inside, rounded - levels, rounded)
            to_scale = (gradient * each).sum() / math.sqrt(levels.numel() * ctx.high)
        return gradient * inside, to_scale, None, None


def _round(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    rounded: Tensor = _Round.apply(x, scale, low, high)
    return rounded


class Quantizer(nn.Module):
    """Rounds an activation to int8.

    Attributes:
        scale: Value of one level, a positive scalar of float32; 1 until it was observed or loaded.
        largest: The largest magnitude of each channel that was observed since the scale was set, ``[C]``.
        mode: See ``Mode``.
    """

    zero: Tensor
    largest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("zero", torch.zeros((), dtype=torch.int8), persistent=False)
        self.register_buffer("largest", torch.zeros(()), persistent=False)
        self.mode: Mode = "int8"

    def forward(self, x: Tensor) -> Tensor:
        """Round float32 values of any shape; where the network is exported, as a pair of ONNX operators."""
        if self.mode == "float":
            return x
        if self.mode == "observe":
            others = [dim for dim in range(x.ndim) if dim != 1]
            self.largest = torch.maximum(self.largest, x.detach().abs().amax(others))
            return x
        if torch.onnx.is_in_onnx_export():
            return self._pair(x)
        return _round(x, self.scale.clamp_min(_TINY), SMALLEST_INT8, LARGEST_INT8)

    def _pair(self, x: Tensor) -> Tensor:
        parameters = (self.scale, self.zero)
        stored = torch.onnx.ops.symbolic(
            "QuantizeLinear", (x, *parameters), dtype=torch.int8, shape=x.shape, version=13
        )
        pair: Tensor = torch.onnx.ops.symbolic(
            "DequantizeLinear", (stored, *parameters), dtype=torch.float32, shape=x.shape, version=13
        )
        return pair

    @torch.no_grad()
    def set_scale(self) -> None:
        """Let the scale be what the largest observed magnitude needs; 1 for an activation that is always 0."""
        largest = self.largest.amax()
        self.scale.copy_(largest / LARGEST_INT8 if largest > 0 else torch.ones_like(largest))
        self.largest = torch.zeros_like(largest)


def _rounded(weight: Tensor, axis: int, mode: Mode) -> Tensor:
    """Round a weight with a scale for each channel of ``axis``, from its largest magnitude.

    An exported graph has the unrounded weight: whoever writes INT8 rounds it by the same formula.
    """
    if mode != "int8" or torch.onnx.is_in_onnx_export():
        return weight
    others = [dim for dim in range(weight.ndim) if dim != axis]
    scale = weight.detach().abs().amax(others, keepdim=True) / LARGEST_WEIGHT
    return _round(weight, torch.where(scale < _TINY, torch.ones_like(scale), scale), -LARGEST_WEIGHT, LARGEST_WEIGHT)


class _Convolution(nn.Conv2d):
    mode: Mode

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self._conv_forward(x, _rounded(self.weight, 0, self.mode), self.bias)
        return answer


class _TransposedConvolution(nn.ConvTranspose2d):
    mode: Mode

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        assert output_size is None  # noqa: S101  only the traced network calls this, and no layer of it with a size
        weight = _rounded(self.weight, 1, self.mode)
        settings: Any = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        answer: Tensor = F.conv_transpose2d(x, weight, self.bias, *settings)
        return answer


class _Linear(nn.Linear):
    mode: Mode

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, _rounded(self.weight, 0, self.mode), self.bias)


_ROUNDING: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: _Convolution,
    nn.ConvTranspose2d: _TransposedConvolution,
    nn.Linear: _Linear,
}
ROUNDED_LAYERS = tuple(_ROUNDING.values())
"""Layers whose weights are rounded; like ``Quantizer`` they have a ``mode``."""


def round_weights(layer: nn.Module) -> None:
    """Let a convolution, transposed convolution or linear layer round its weight from now on."""
    layer.__class__ = _ROUNDING[type(layer)]
    layer.mode = "int8"  # type: ignore[assignment]
