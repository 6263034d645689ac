"""Layers and functions of torch for ``scorecard.py``, through its older exporter, and some through the newer one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["EXPORTS"]

_OPSETS = (11, 17)


class _Of(nn.Module):
    """A function behind a layer, so that it works on what a network computes."""

    def __init__(self, function: Callable[..., Any], channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 1) if channels else nn.Identity()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self.layer(x))


class _Last(nn.Module):
    """A recurrent layer's outputs alone."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0]


_IMAGE, _TOKENS = (1, 4, 8, 8), (1, 6, 16)
_GRID = torch.rand(1, 5, 5, 2) * 2 - 1

_ON_IMAGES: dict[str, Callable[[torch.Tensor], Any]] = {
    "nearest": partial(F.interpolate, scale_factor=2),
    "bilinear": partial(F.interpolate, scale_factor=2, mode="bilinear"),
    "bilinear corners": partial(F.interpolate, size=(5, 7), mode="bilinear", align_corners=True),
    "bicubic": partial(F.interpolate, scale_factor=2, mode="bicubic"),
    "bilinear antialias": partial(F.interpolate, size=(4, 4), mode="bilinear", antialias=True),
    "nearest exact": partial(F.interpolate, size=(5, 5), mode="nearest-exact"),
    "area": partial(F.interpolate, size=(4, 4), mode="area"),
    "adaptive average": lambda x: F.adaptive_avg_pool2d(x, 2),
    "adaptive max": lambda x: F.adaptive_max_pool2d(x, 1),
    "max pool": lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "max pool dilated": lambda x: F.max_pool2d(x, 3, 1, 1, dilation=2),
    "max pool indices": lambda x: F.max_pool2d(x, 2, return_indices=True),
    "average pool": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "lp pool": lambda x: F.lp_pool2d(x, 2, 2),
    "lp pool 3": lambda x: F.lp_pool2d(x, 3, 2),
    "grid": lambda x: F.grid_sample(x, _GRID, align_corners=False),
    "grid nearest": lambda x: F.grid_sample(x, _GRID, mode="nearest", align_corners=True),
    "grid bicubic": lambda x: F.grid_sample(x, _GRID, mode="bicubic", align_corners=True),
    "grid reflection": lambda x: F.grid_sample(x, _GRID, padding_mode="reflection", align_corners=True),
    "affine grid": lambda x: F.affine_grid(x[:, 0, :2, :3], [1, 4, 6, 6], align_corners=False),
    "pad reflect": lambda x: F.pad(x, (2, 1, 2, 1), mode="reflect"),
    "pad replicate": lambda x: F.pad(x, (2, 1, 2, 1), mode="replicate"),
    "pad circular": lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"),
    "pad negative": lambda x: F.pad(x, (-1, 0, 1, -2)),
    "unfold": lambda x: F.unfold(x, 3, padding=1),
    "fold": lambda x: F.fold(F.unfold(x, 2, stride=2), (8, 8), 2, stride=2),
    "pixel shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "channel shuffle": lambda x: x.view(1, 2, 2, 8, 8).transpose(1, 2).reshape(1, 4, 8, 8),
    "roll": lambda x: torch.roll(x, (2, 3), (2, 3)),
    "flip": lambda x: torch.flip(x, [3]),
    "topk": lambda x: torch.topk(x.flatten(1), 5),
    "topk least": lambda x: torch.topk(x.flatten(1), 5, largest=False, sorted=False),
    "sort": lambda x: torch.sort(x.flatten(1)),
    "argsort": lambda x: torch.argsort(x.flatten(1), descending=True),
    "argmax": lambda x: x.argmax(1),
    "cumsum": lambda x: x.cumsum(2),
    "cumprod": lambda x: x.cumprod(2),
    "logsumexp": lambda x: x.logsumexp((2, 3)),
    "norm": lambda x: F.normalize(x, dim=1),
    "norm 3": lambda x: x.norm(3, dim=1),
    "std": lambda x: x.std((2, 3)),
    "median": lambda x: x.flatten(1).median(1).values,
    "quantile free": lambda x: x.amax((2, 3)) - x.amin((2, 3)),
    "nonzero": lambda x: torch.nonzero(x > 0),
    "masked fill": lambda x: x.masked_fill(x > 0.5, -1.0),
    "masked select": lambda x: x[x > 0],
    "where": lambda x: torch.where(x > 0, x, x * 2),
    "scatter": lambda x: torch.zeros_like(x).scatter(1, x.argmax(1, keepdim=True), 1.0),
    "scatter add": lambda x: torch.zeros_like(x).scatter_add(1, x.argmax(1, keepdim=True), x[:, :1]),
    "gather": lambda x: x.gather(1, x.argmax(1, keepdim=True)),
    "index": lambda x: x[:, [2, 0, 1]],
    "index put": lambda x: x.index_put((torch.tensor([0]), torch.tensor([1])), torch.zeros(8, 8)),
    "one hot": lambda x: F.one_hot(x.argmax(1), 4),
    "einsum": lambda x: torch.einsum("bchw,bdhw->bcd", x, x),
    "einsum diagonal": lambda x: torch.einsum("bchh->bch", x),
    "matmul": lambda x: x @ x.transpose(2, 3),
    "cdist": lambda x: torch.cdist(x.flatten(2), x.flatten(2)),
    "tril": lambda x: x.tril(),
    "remainder": lambda x: torch.remainder(x, 0.7),
    "fmod": lambda x: torch.fmod(x, 0.7),
    "round": torch.round,
    "erf": torch.erf,
    "atan2": lambda x: torch.atan2(x, x + 2),
    "sign": torch.sign,
    "isnan": lambda x: torch.isnan(x).float(),
    "isinf": lambda x: torch.isinf(x).float(),
    "bitwise": lambda x: (x > 0).int() & (x > -1).int(),
    "shift": lambda x: x.int() << 1,
    "double": lambda x: (x.double() * 2).float(),
    "half": lambda x: (x.half() * 2).float(),
    "bfloat16": lambda x: (x.bfloat16() * 2).float(),
    "int": lambda x: (x.int() * 2).float(),
    "uint8": lambda x: (x * 255).to(torch.uint8).float(),
    "int16": lambda x: x.to(torch.int16).float(),
    "bool": lambda x: (x > 0).float() * x,
    "random": lambda x: x + torch.randn_like(x),
    "bernoulli": lambda x: torch.bernoulli(torch.sigmoid(x)),
    "multinomial": lambda x: torch.multinomial(torch.softmax(x.flatten(1), 1), 2),
    "dropout": lambda x: F.dropout(x, 0.5, training=True),
    "unique": lambda x: torch.unique(x),
    "det": lambda x: torch.det(x),
    "split": lambda x: x.split([1, 3], 1),
    "chunk": lambda x: sum(x.chunk(2, 1)),
    "unbind": lambda x: sum(x.unbind(1)),
    "stack": lambda x: torch.stack([x, x], 1),
    "tile": lambda x: x.repeat(1, 2, 1, 1),
    "expand": lambda x: x[:, :1].expand(-1, 4, -1, -1) + x,
    "shape": lambda x: x.reshape(x.shape[0], -1) * x.shape[2],
    "arange": lambda x: x + torch.arange(x.shape[3]),
    "logsigmoid": F.logsigmoid,
    "bucketize": lambda x: torch.bucketize(x, torch.tensor([0.0, 0.5])),
    "float32 limits": lambda x: x.clamp(min=0.1).clamp(max=0.5),
}

_LAYERS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "ReLU6": nn.ReLU6,
    "SiLU": nn.SiLU,
    "GELU": nn.GELU,
    "GELU tanh": lambda: nn.GELU("tanh"),
    "Mish": nn.Mish,
    "Hardswish": nn.Hardswish,
    "Hardsigmoid": nn.Hardsigmoid,
    "ELU": nn.ELU,
    "SELU": nn.SELU,
    "CELU": nn.CELU,
    "Softplus": nn.Softplus,
    "Softsign": nn.Softsign,
    "Tanhshrink": nn.Tanhshrink,
    "Softshrink": nn.Softshrink,
    "Hardshrink": nn.Hardshrink,
    "GLU": lambda: nn.GLU(1),
    "LeakyReLU": nn.LeakyReLU,
    "PReLU": lambda: nn.PReLU(4),
    "Threshold": lambda: nn.Threshold(0.1, 0.0),
    "LogSoftmax": lambda: nn.LogSoftmax(1),
    "BatchNorm2d": lambda: nn.BatchNorm2d(4).eval(),
    "BatchNorm2d without statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "GroupNorm": lambda: nn.GroupNorm(2, 4),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(4, affine=True),
    "LayerNorm": lambda: nn.LayerNorm([4, 8, 8]),
    "LocalResponseNorm": lambda: nn.LocalResponseNorm(3),
    "RMSNorm": lambda: nn.RMSNorm(8),
    "Conv2d dilated": lambda: nn.Conv2d(4, 4, 3, dilation=2, groups=2),
    "Conv2d same": lambda: nn.Conv2d(4, 4, 3, padding="same"),
    "Conv2d reflect": lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(4, 4, 3, 2, 1, output_padding=1),
    "ConvTranspose2d dilated": lambda: nn.ConvTranspose2d(4, 4, 3, dilation=2, groups=2),
    "Linear": lambda: nn.Linear(8, 3),
    "Flatten": nn.Flatten,
}

_SEQUENCES: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: _Last(nn.LSTM(16, 8, batch_first=True)),
    "LSTM both": lambda: _Last(nn.LSTM(16, 8, 2, bidirectional=True)),
    "GRU": lambda: _Last(nn.GRU(16, 8, batch_first=True)),
    "RNN": lambda: _Last(nn.RNN(16, 8, nonlinearity="relu")),
    "encoder": lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
    "encoder, GELU, norm first": lambda: nn.TransformerEncoderLayer(16, 4, 32, 0.0, "gelu", norm_first=True),
    "attention": lambda: _Of(lambda x: F.scaled_dot_product_attention(x, x, x), 0),
    "causal attention": lambda: _Of(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), 0),
    "Conv1d": lambda: nn.Conv1d(6, 4, 3, padding=1),
    "MaxPool1d": lambda: nn.MaxPool1d(2),
    "ConvTranspose1d": lambda: nn.ConvTranspose1d(6, 4, 4, 2),
    "AvgPool1d": lambda: nn.AvgPool1d(3, 1, 1),
    "Upsample1d": lambda: nn.Upsample(scale_factor=2, mode="linear"),
}

_NEWER = (
    *("nearest", "bilinear", "bicubic", "adaptive average", "max pool", "grid", "pad reflect", "pixel shuffle", "roll"),
    *("topk", "argmax", "norm", "std", "where", "scatter", "gather", "einsum", "double", "half", "one hot", "split"),
    *("index put", "cumsum", "expand", "bitwise", "random"),
)
"""Exports that the newer exporter writes as well. It takes seconds for each."""


def _module(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    if name in _SEQUENCES:
        return _SEQUENCES[name](), torch.rand(_TOKENS)
    layer = _LAYERS[name]() if name in _LAYERS else _Of(_ON_IMAGES[name], 4)
    return layer, torch.rand(_IMAGE)


def _older(name: str, opset: int, target: BinaryIO) -> None:
    module, example = _module(name)
    mode = torch.onnx.TrainingMode.PRESERVE if name.endswith("without statistics") else torch.onnx.TrainingMode.EVAL
    torch.onnx.export(module, (example,), target, dynamo=False, opset_version=opset, training=mode)


def _newer(name: str, target: BinaryIO) -> None:
    module, example = _module(name)
    program = torch.onnx.export(module.eval(), (example,), dynamo=True, verbose=False)
    assert program is not None
    target.write(program.model_proto.SerializeToString())


EXPORTS: dict[str, Callable[[BinaryIO], None]] = {
    **{
        f"{name}, opset {opset}": partial(_older, name, opset)
        for name in (*_ON_IMAGES, *_LAYERS, *_SEQUENCES)
        for opset in _OPSETS
    },
    **{f"{name}, newer exporter": partial(_newer, name) for name in _NEWER},
}
"""By name, what writes the file."""
