"""Small classifiers of the usual families, as graphs ``pixels`` → ``logits``, with random weights."""

from __future__ import annotations

import numpy as np
import onnx

from _helpers.planted_nets import WIDTH, Net

TOKENS = 16


def _constant(net: Net, name: str, *values: int) -> str:
    net.constants[name] = np.array(values)
    return name


def _tokens(net: Net) -> None:
    """Cut the image into 16 patches: ``[N, 16, WIDTH]``."""
    net.conv("patches", net.rng.normal(0, 0.2, (WIDTH, 3, 4, 4)), strides=[4, 4])
    net.add("Reshape", net.tensor, _constant(net, "rows", 0, WIDTH, TOKENS))
    net.add("Transpose", net.tensor, perm=[0, 2, 1])


def _product(net: Net, name: str, source: str, rows: int = WIDTH, columns: int = WIDTH) -> str:
    weight = net.constant(f"{name}_w", net.rng.normal(0, rows**-0.5, (rows, columns)))
    made = net.add("MatMul", source, weight, out=name)
    return net.add("Add", made, net.constant(f"{name}_b", net.rng.normal(0, 0.1, columns)))


def _norm(net: Net, name: str, source: str) -> str:
    scale, bias = net.constant(f"{name}_s", np.ones(WIDTH)), net.constant(f"{name}_b", np.zeros(WIDTH))
    return net.add("LayerNormalization", source, scale, bias, axis=-1)


def _mlp(net: Net, name: str, source: str, width: int = WIDTH) -> str:
    wide = net.add("Gelu", _product(net, f"{name}1", source, width, 2 * WIDTH))
    return _product(net, f"{name}2", wide, 2 * WIDTH, width)


def _logits(net: Net) -> onnx.ModelProto:
    net.add("ReduceMean", net.tensor, _constant(net, "token_axis", 1), keepdims=0)
    net.gemm("logits", net.rng.normal(0, 1, (4, WIDTH)))
    return net.model()


def mlp() -> onnx.ModelProto:
    """Five products with a GELU between each two of them; the last one is too narrow for INT8."""
    net = Net(0)
    net.add("AveragePool", net.tensor, kernel_shape=[4, 4], strides=[4, 4])
    net.add("Flatten", net.tensor)
    net.gemm("wide", net.rng.normal(0, 0.2, (WIDTH, 48)))
    net.add("Relu", net.tensor)
    source = net.tensor
    for name in ("first", "second"):
        source = net.add("Relu", _mlp(net, name, source))
    _product(net, "before", source)
    net.add("Gelu", net.tensor)
    net.gemm("logits", net.rng.normal(0, 1, (4, WIDTH)))
    return net.model()


def mixer() -> onnx.ModelProto:
    """Two blocks that mix tokens and then channels, each by an MLP beside a shortcut."""
    net = Net(1)
    _tokens(net)
    for block in ("a", "b"):
        stream = net.tensor
        turned = net.add("Transpose", _norm(net, f"{block}n", stream), perm=[0, 2, 1])
        back = net.add("Transpose", _mlp(net, f"{block}t", turned, TOKENS), perm=[0, 2, 1])
        stream = net.add("Add", back, stream)
        net.add("Add", _mlp(net, f"{block}c", _norm(net, f"{block}m", stream)), stream)
    return _logits(net)


def transformer() -> onnx.ModelProto:
    """A block of attention and an MLP, each beside a shortcut."""
    net = Net(2)
    _tokens(net)
    stream = net.tensor
    normal = _norm(net, "n1", stream)
    query, key, value = (_product(net, name, normal) for name in ("query", "key", "value"))
    scores = net.add("MatMul", query, net.add("Transpose", key, perm=[0, 2, 1]))
    scaled = net.add("Mul", scores, net.constant("root", np.float32(WIDTH**-0.5)))
    applied = net.add("MatMul", net.add("Softmax", scaled, axis=-1), value)
    stream = net.add("Add", _product(net, "projection", applied), stream)
    net.add("Add", _mlp(net, "mlp", _norm(net, "n2", stream)), stream)
    return _logits(net)


def resnet() -> onnx.ModelProto:
    """Two residual blocks, the second one with a convolution on its shortcut."""
    net = Net(3)
    net.conv("stem", net.rng.normal(0, 0.3, (WIDTH, 3, 3, 3)), pads=[1] * 4)
    net.add("Relu", net.tensor)
    for block, stride in (("a", 1), ("b", 2)):
        source = net.tensor
        for name, step in (("1", stride), ("2", 1)):
            net.conv(f"{block}{name}", net.rng.normal(0, 0.06, (WIDTH, WIDTH, 3, 3)), pads=[1] * 4, strides=[step] * 2)
            if name == "1":
                net.add("Relu", net.tensor)
        main = net.tensor
        if stride > 1:
            net.tensor = source
            source = net.conv(f"{block}s", net.rng.normal(0, 0.2, (WIDTH, WIDTH, 1, 1)), strides=[stride] * 2)
        net.add("Relu", net.add("Add", main, source))
    return _pooled_logits(net)


def separable() -> onnx.ModelProto:
    """Depthwise and pointwise convolutions in turn."""
    net = Net(4)
    net.conv("stem", net.rng.normal(0, 0.3, (WIDTH, 3, 3, 3)), pads=[1] * 4)
    for block in ("a", "b"):
        net.add("Relu", net.tensor)
        net.conv(f"{block}d", net.rng.normal(0, 0.3, (WIDTH, 1, 3, 3)), group=WIDTH, pads=[1] * 4)
        net.add("Relu", net.tensor)
        net.conv(f"{block}p", net.rng.normal(0, 0.2, (WIDTH, WIDTH, 1, 1)))
    return _pooled_logits(net)


def _pooled_logits(net: Net) -> onnx.ModelProto:
    net.add("GlobalAveragePool", net.tensor)
    net.add("Flatten", net.tensor)
    net.gemm("logits", net.rng.normal(0, 1, (4, WIDTH)))
    return net.model()


ARCHITECTURES = {"mlp": mlp, "mixer": mixer, "transformer": transformer, "resnet": resnet, "separable": separable}
