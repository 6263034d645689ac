"""Classifiers of four colors that a precision destroys, unless the right layers are kept, and images for them.

Each network is right on nearly all images in FP32. The fault stands between layers that the precision suits.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from PIL import Image

from _helpers.graphs import node
from krl_deploy.bundles.reference import make_reference
from krl_runtime import Bundle
from krl_runtime.images.preprocessing import Preprocessing

LABELS = ("blue", "brown", "green", "red")
COLORS = np.float32([[60, 60, 200], [150, 150, 30], [60, 200, 60], [200, 60, 60]]) / 255
SIDE = 16
WIDTH = 32


def write_colors(root: Path, *, train: int = 40, val: int = 30, seed: int = 0) -> Path:
    """Write ``train/COLOR/*.png`` and ``val/COLOR/*.png``: waves and noise around a color."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for split, count in (("train", train), ("val", val)):
        for label, color in zip(LABELS, COLORS, strict=True):
            folder = root / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                wave = 40 * np.sin(columns / rng.uniform(1, 3)) + 40 * np.cos(rows / rng.uniform(1, 3))
                tint = color * 255 * rng.uniform(0.6, 1.1) + rng.normal(0, 12, 3)
                pixels = tint + wave[..., None] + rng.normal(0, 20, (SIDE, SIDE, 3))
                Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{index:03d}.png")
    return root


def pixels_of(root: Path, split: str = "val") -> np.ndarray:
    """Return the images of a split, uint8 ``[N, 3, SIDE, SIDE]``, class after class."""
    files = sorted((root / split).glob("*/*.png"))
    return np.stack([np.asarray(Image.open(file)).transpose(2, 0, 1) for file in files])


class Net:
    """A network under construction: ``pixels`` → ``tensor``, with helpers for its layers."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.constant("unit", np.float32(1 / 255))
        self.nodes.append(helper.make_node("Cast", ["pixels"], ["float"], name="n_float", to=TensorProto.FLOAT))
        self.tensor = self.add("Mul", "float", "unit", out="scaled")

    def constant(self, name: str, value: np.ndarray | np.float32) -> str:
        self.constants[name] = np.asarray(value, np.float32)
        return name

    def add(self, op: str, *inputs: str, out: str = "", **attributes: object) -> str:
        out = out or f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(node(op, list(inputs), out, **attributes))
        self.tensor = out
        return out

    def conv(self, name: str, weight: np.ndarray, bias: np.ndarray | None = None, **attributes: object) -> str:
        weight = weight.reshape(*weight.shape, 1, 1) if weight.ndim == 2 else weight
        inputs = [self.tensor, self.constant(f"{name}_w", weight)]
        if bias is not None:
            inputs.append(self.constant(f"{name}_b", bias))
        return self.add("Conv", *inputs, out=name, **attributes)

    def gemm(self, name: str, weight: np.ndarray, bias: np.ndarray | None = None) -> str:
        inputs = [self.tensor, self.constant(f"{name}_w", weight)]
        if bias is not None:
            inputs.append(self.constant(f"{name}_b", bias))
        return self.add("Gemm", *inputs, out=name, transB=1)

    def mixing(self, out_channels: int = WIDTH, in_channels: int = WIDTH) -> np.ndarray:
        """A benign weight ``[out, in]``: the first three channels are passed on, the others mix them a little."""
        weight = self.rng.normal(0, 0.2, (out_channels, in_channels))
        weight[:, 3:] *= 0.1
        weight[:3] = np.eye(3, in_channels)
        return weight

    def head(self, channels: int = WIDTH) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias of the nearest color, from the first three channels."""
        weight = np.zeros((4, channels))
        weight[:, :3] = 10 * COLORS
        return weight, -5 * (COLORS**2).sum(1)

    def model(self, opset: int = 20) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "planted",
            [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 3, SIDE, SIDE])],
            [helper.make_tensor_value_info(self.tensor, TensorProto.FLOAT, ["batch", 4])],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model


def outputs(model: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    """Return the outputs of a model on plain ONNX Runtime, with one thread and exact INT8."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = ort.InferenceSession(
        model.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["WeightBiasQuantization"],
    )
    return np.concatenate([session.run(None, {"pixels": pixels[i : i + 8]})[0] for i in range(0, len(pixels), 8)])


def write_planted(path: Path, model: onnx.ModelProto, data: Path) -> Bundle:
    """Write the bundle of a network, with real images as golden inputs."""
    golden = pixels_of(data)[::8]
    reference = make_reference(
        model.SerializeToString(),
        {"pixels": golden},
        {model.graph.output[0].name: outputs(model, golden)},
        name=path.stem,
        preprocessing=Preprocessing(SIDE, SIDE, 3, mean=(0.0,) * 3, std=(1.0,) * 3),
        source={},
        labels=LABELS,
    )
    return reference.write(path, {}, overwrite=False)


FACTOR = 3000.0


def outlier_on_a_residual() -> onnx.ModelProto:
    """Channel 3 of a residual stream is 3000 times the others; the two convolutions of the block read it."""
    net = Net()
    stem = net.mixing(in_channels=3)
    stem[3] = [FACTOR, 0, 0]
    net.conv("stem", stem)
    stream = net.add("Relu", "stem")
    first = net.mixing()
    first[:, 3] /= FACTOR
    branch = net.conv("first", 0.1 * first)
    net.add("Add", branch, stream)
    second = net.mixing()
    second[:, 3] /= FACTOR
    net.conv("second", second)
    return _tail(net)


def outlier_behind_a_gelu() -> onnx.ModelProto:
    """Channel 3 between two products is 3000 times the others; the GELU between them lets nothing be equalized."""
    net = Net(1)
    net.add("GlobalAveragePool", net.tensor)
    net.add("Flatten", net.tensor)
    net.gemm("stem", net.mixing(in_channels=3))
    first, second = net.mixing(), net.mixing()
    first[3] = 0
    first[3, 0] = FACTOR
    second[:, 3] /= FACTOR
    net.gemm("first", 3 * first)
    net.add("Gelu", "first")
    net.gemm("second", second / 3)
    for name in ("third", "fourth"):
        net.add("Relu", net.tensor)
        net.gemm(name, net.mixing())
    net.gemm("logits", *net.head())
    return net.model()


def outlier_behind_a_gate() -> onnx.ModelProto:
    """Channel 3 of a depthwise convolution is 3000 times the others; a hard-swish follows it."""
    net = Net(2)
    net.conv("stem", net.mixing(in_channels=3))
    kernels = np.zeros((WIDTH, 1, 3, 3))
    kernels[:, 0, 1, 1] = 6.0
    kernels[3] *= FACTOR
    net.conv("depthwise", kernels, group=WIDTH, pads=[1, 1, 1, 1])
    net.add("HardSwish", net.tensor)
    point = net.mixing() / 6
    point[:, 3] /= FACTOR
    net.conv("pointwise", point)
    return _tail(net)


def _tail(net: Net) -> onnx.ModelProto:
    for name in ("third", "fourth"):
        net.add("Relu", net.tensor)
        net.conv(name, net.mixing())
    net.add("GlobalAveragePool", net.tensor)
    net.conv("head", *net.head())
    net.add("Flatten", net.tensor, out="logits")
    return net.model()


OUTLIERS = {
    "residual": outlier_on_a_residual,
    "gelu": outlier_behind_a_gelu,
    "gate": outlier_behind_a_gate,
}
"""INT8 has one scale for a tensor, in which one channel leaves the others no level."""


def _pooled(seed: int) -> Net:
    """Begin with the mean color, so that no average over pixels makes up for the rounding."""
    net = Net(seed)
    net.add("GlobalAveragePool", net.tensor)
    net.conv("stem", net.mixing(in_channels=3))
    return net


def _finish(net: Net) -> onnx.ModelProto:
    net.conv("third", net.mixing())
    net.conv("head", *net.head())
    net.add("Flatten", net.tensor, out="logits")
    return net.model()


COMMON = 7000.0


def _with_common(net: Net) -> np.ndarray:
    """A weight that adds 7000 times the first channel's value to all channels."""
    weight = net.mixing()
    weight[:, 0] += COMMON
    return weight


def difference_of_two_convolutions() -> onnx.ModelProto:
    """Two values around 3000 are subtracted; their difference is at most 1, and FP16's steps are 2."""
    net = _pooled(0)
    source = net.tensor
    one = net.conv("one", _with_common(net))
    net.tensor = source
    common = np.zeros((WIDTH, WIDTH))
    common[:, 0] = COMMON
    other = net.conv("other", common)
    net.add("Sub", one, other)
    return _finish(net)


def difference_by_weights() -> onnx.ModelProto:
    """The second convolution subtracts channels of the first one that differ by less than FP16's steps."""
    net = _pooled(1)
    weight = _with_common(net)
    weight[WIDTH - 1] = 0
    weight[WIDTH - 1, 0] = COMMON
    net.conv("one", weight)
    net.add("Relu", net.tensor)
    subtract = np.zeros((WIDTH, WIDTH))
    subtract[: WIDTH - 1, : WIDTH - 1] = np.eye(WIDTH - 1)
    subtract[: WIDTH - 1, WIDTH - 1] = -1
    net.conv("other", subtract)
    return _finish(net)


def difference_of_squares() -> onnx.ModelProto:
    """(a + b)² - a² of a around 70 and b below 1/140: both squares fit, and their difference is at most 1."""
    net = _pooled(2)
    source = net.tensor
    shifted, plain = net.mixing() / 140, np.zeros((WIDTH, WIDTH))
    for weight in (shifted, plain):
        weight[:, 1] += 40
    bias = np.full(WIDTH, 60.0)
    one = net.conv("one", shifted, bias)
    net.tensor = source
    other = net.conv("other", plain, bias)
    squares = net.add("Mul", one, one), net.add("Mul", other, other)
    net.add("Sub", *squares)
    return _finish(net)


DIFFERENCES = {
    "convolutions": difference_of_two_convolutions,
    "weights": difference_by_weights,
    "squares": difference_of_squares,
}
"""Values between 2000 and 8000 fit into FP16; what differs between them does not."""

SMALL = 1e-4


def _restore(net: Net) -> onnx.ModelProto:
    """Bring the channels back in two steps, each by a factor that FP16 has."""
    for name in ("up", "again"):
        weight = np.eye(WIDTH)
        weight[range(WIDTH - 1), range(WIDTH - 1)] /= SMALL
        net.conv(name, weight)
    return _finish(net)


def _factors(value: float) -> np.ndarray:
    """A factor for each channel; the last channel keeps its size, so that the tensor's range looks harmless."""
    factors = np.full((1, WIDTH, 1, 1), value)
    factors[0, -1] = 1
    return factors


def underflow_by_factors() -> onnx.ModelProto:
    net = _pooled(3)
    for name in ("small", "tiny"):
        net.add("Mul", net.tensor, net.constant(f"{name}_factors", _factors(SMALL)), out=name)
    return _restore(net)


def underflow_by_divisors() -> onnx.ModelProto:
    net = _pooled(4)
    for name in ("small", "tiny"):
        net.add("Div", net.tensor, net.constant(f"{name}_divisors", _factors(1 / SMALL)), out=name)
    return _restore(net)


def underflow_by_weights() -> onnx.ModelProto:
    net = _pooled(5)
    for name in ("small", "tiny"):
        net.conv(name, np.diag(_factors(SMALL).ravel()))
    return _restore(net)


UNDERFLOWS = {"factors": underflow_by_factors, "divisors": underflow_by_divisors, "weights": underflow_by_weights}
"""Two factors of 1e-4 are FP16 numbers; their product with a value below 1 is not, beside a channel of usual size."""


def overflow(factor: float) -> onnx.ModelProto:
    """Two convolutions make the last channel 3000 and ``factor`` times as large, which the next one takes back."""
    net = _pooled(6)
    for name, last in (("one", FACTOR), ("other", factor), ("back", 1 / FACTOR)):
        weight = np.eye(WIDTH)
        weight[-1] = 0
        weight[-1, 0 if name == "one" else -1] = last
        net.conv(name, weight)
    return _finish(net)
