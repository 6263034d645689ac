"""Files of torch for ``import_table.py``: networks of torchvision and timm through both exporters.

The weights are random, but sane: a few steps of training make the logits depend on the image, a few passes fit the
statistics of BatchNorm, and the last layer is scaled until the logits of one image differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from _peers import photographs
from onnx import TensorProto, helper, numpy_helper

__all__ = [
    "BATCH",
    "CLASSES",
    "SIDE",
    "Item",
    "ends",
    "export",
    "export_open_sides",
    "external",
    "input_forms",
    "network",
    "networks",
    "normalized",
    "save",
    "stored_forms",
    "through",
    "title",
    "wrapped",
]

CLASSES = 10
SIDE = 64
_SPREAD = 3  # standard deviation of the logits of one image: some predictions are sure, and others are not
_STEPS = 6  # of training: without any, the logits of a deep network hardly depend on the image
BATCH = 16  # images of a pass in training mode: as many as BatchNorm on maps of one pixel needs

TORCHVISION = (
    "resnet18",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "efficientnet_b0",
    "mnasnet0_5",
    "googlenet",
    "densenet121",
    "regnet_y_400mf",
    "convnext_tiny",
    "swin_t",
    "vit_small",
    "alexnet",
)

TIMM = (
    "mobilenetv4_conv_small",
    "repvgg_a0",
    "ghostnet_100",
    "efficientvit_b0",
    "mobileone_s0",
    "edgenext_xx_small",
    "levit_128s",
    "tinynet_e",
    "fastvit_t8",
    "resnest14d",
    "cspresnet50",
    "deit_tiny_patch16_224",
    "mobilevit_xxs",
    "nf_regnet_b0",
)

_SIZED = ("deit", "levit")  # networks of timm whose constructor takes the size of the images
_OWN_SIDES = {"alexnet": 224}  # its pooling to 6 x 6 is exported only where it divides the map


@dataclass(frozen=True)
class Item:
    """A file to make and to import.

    Attributes:
        name: Name of the row and of the file.
        exporter: What writes the file, for people.
        make: Writes it to a path.
        kind: Meaning of the output, which the expected scores are computed with.
        mean: Mean that the caller subtracts, in units of 0 to 1, or of the input range.
        std: Standard deviation that the caller divides by.
        side: Side of the images.
        channels: Channels of the images.
        task: Task of the import.
        options: Further options of the import.
    """

    name: str
    exporter: str
    make: Callable[[Path], None]
    kind: str = "logits"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    side: int = SIDE
    channels: int = 3
    task: str = "classification"
    options: Mapping[str, Any] = field(default_factory=dict)


# Networks


@cache
def network(name: str) -> Any:
    """Return a network of torchvision, or of timm, with random weights, in eval mode."""
    import torch
    import torchvision

    torch.manual_seed(0)
    if name == "vit_small":  # vit_b_16 with fewer and smaller layers
        made = torchvision.models.VisionTransformer(SIDE, 16, 4, 4, 128, 512, num_classes=CLASSES)
    elif name in TORCHVISION:
        extra = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
        made = torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **extra)
    else:
        import timm

        sized = {"img_size": SIDE} if name.startswith(_SIZED) else {}
        made = timm.create_model(name, pretrained=False, num_classes=CLASSES, **sized)
    return settled(made, _OWN_SIDES.get(name, SIDE))


def settled(net: Any, side: int) -> Any:
    """Train a few steps on photographs, fit the statistics of BatchNorm, and spread the logits."""
    import torch

    images = torch.from_numpy(normalized(photographs(BATCH, side)))
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    net.train()
    for _ in range(_STEPS):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(images), torch.arange(BATCH) % CLASSES).backward()
        optimizer.step()
    for layer in net.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all passes
    with torch.no_grad():
        for _ in range(2):
            net(images)
        spread = net.eval()(images).std()
        last = [layer for layer in net.modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)]
        for value in [layer for layer in last if CLASSES in layer.weight.shape[:1]][-1].parameters():
            value *= _SPREAD / spread
    return net


def normalized(pixels: np.ndarray) -> np.ndarray:
    """Return uint8 ``[N, 3, H, W]`` as the networks take it."""
    mean, std = (np.reshape(part, (1, 3, 1, 1)) for part in (Item.mean, Item.std))
    return ((pixels / 255 - mean) / std).astype(np.float32)


def networks() -> list[Item]:
    found = []
    for number, name in enumerate((*TORCHVISION, *TIMM)):
        library = "torchvision" if name in TORCHVISION else "timm"
        side = _OWN_SIDES.get(name, SIDE)
        # Beside the usual form each exporter writes others in turn.
        batch, last = (1 if number % 3 == 1 else None), number % 3 == 2
        for dynamo in (True, False):
            form = {"batch": batch, "last": last} if dynamo == bool(number % 2) else {}
            make = partial(export, partial(network, name), dynamo=dynamo, side=side, **form)
            found.append(Item(f"{library}_{name}_{_short(dynamo)}", title(dynamo), make, side=side))
    return found


def _short(dynamo: bool) -> str:
    return "dynamo" if dynamo else "script"


def title(dynamo: bool) -> str:
    return f"torch, dynamo={dynamo}"


def export(
    net: Callable[[], Any],
    path: Path,
    *,
    dynamo: bool,
    side: int = SIDE,
    batch: int | None = None,
    last: bool = False,
    wrap: Callable[[Any], Any] | None = None,
    example: Any = None,
    **options: Any,
) -> None:
    """Export a network with an open batch, or a fixed one; ``last`` takes images with channels last."""
    import torch

    model = net()
    model = wrap(model) if wrap else model
    if last:
        model = ChannelsLast(model)
    example = torch.rand(batch or 2, 3, side, side) if example is None else example
    example = example.permute(0, 2, 3, 1).contiguous() if last else example
    opened: dict[str, Any] = {}
    if batch is None and dynamo:
        opened = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)}
    elif batch is None:
        opened = {"dynamic_axes": {"image": {0: "batch"}, "scores": {0: "batch"}}}
    names = {"input_names": ["image"], "output_names": ["scores"]}
    kept = {"external_data": False} if dynamo else {}
    torch.onnx.export(model.eval(), (example,), path, dynamo=dynamo, **{**names, **opened, **kept, **options})


def ChannelsLast(net: Any) -> Any:  # noqa: N802  a class that needs torch
    """Return a network that takes ``[N, H, W, C]``."""
    return wrapped(lambda image: net(image.permute(0, 3, 1, 2)), net)


def wrapped(function: Callable[[Any], Any], *inner: Any) -> Any:
    """Return a module that calls a function of modules."""
    import torch

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.ModuleList(inner)

        def forward(self, image: Any) -> Any:
            return function(image)

    return Wrapped()


# Forms of inputs


def input_forms() -> list[Item]:
    plain = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    base = partial(network, "mobilenet_v3_small")
    return [
        Item("input_uint8_dynamo", title(True), partial(_export_uint8, dynamo=True), **plain),
        Item("input_uint8_last_script", title(False), partial(_export_uint8, dynamo=False, last=True), **plain),
        Item("input_0_255", title(True), partial(export, base, dynamo=True, wrap=_from_255), **plain,
             options={"input_range": "0-255"}),
        Item("input_symmetric_bgr", title(False), partial(export, base, dynamo=False, wrap=_from_symmetric_bgr),
             **plain, options={"input_range": "symmetric", "channel_order": "bgr"}),
        Item("input_flat", title(True), partial(_export_flat, dynamo=True), **plain),
        Item("input_flat_script", title(False), partial(_export_flat, dynamo=False, batch=1), **plain),
        Item("input_open_sides", title(True), export_open_sides, options={"height": SIDE, "width": SIDE}),
        Item("batch_4", title(False), partial(export, base, dynamo=False, batch=4)),
        Item("batch_8_dynamo", title(True), partial(export, base, dynamo=True, batch=8)),
        Item("nhwc_throughout", "by hand, as Keras", _nhwc_throughout, **plain),
        Item("nhwc_fixed", "by hand, as Keras", partial(_nhwc_throughout, batch=1), **plain),
    ]  # fmt: skip


def _from_255(net: Any) -> Any:
    import torch

    mean, std = (torch.tensor(part).reshape(1, 3, 1, 1) * 255 for part in (Item.mean, Item.std))
    return wrapped(lambda image: net((image - mean) / std), net)


def _from_symmetric_bgr(net: Any) -> Any:
    return wrapped(lambda image: net(image.flip(1) * 2), net)


def _export_uint8(path: Path, *, dynamo: bool, last: bool = False) -> None:
    import torch

    mean, std = (torch.tensor(part).reshape(1, 3, 1, 1) for part in (Item.mean, Item.std))
    net = network("squeezenet1_1")
    model = wrapped(lambda image: net((image.float() / 255 - mean) / std), net)
    example = torch.randint(0, 255, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    export(lambda: model, path, dynamo=dynamo, last=last, example=example)


def _export_flat(path: Path, *, dynamo: bool, batch: int | None = None) -> None:
    import torch

    layers = torch.nn
    torch.manual_seed(0)
    model = layers.Sequential(
        layers.Linear(3 * SIDE * SIDE, 64), layers.BatchNorm1d(64), layers.ReLU(), layers.Linear(64, CLASSES)
    )
    images = torch.from_numpy(photographs(BATCH, SIDE) / np.float32(255)).reshape(BATCH, -1)
    with torch.no_grad():
        model.train()(images)
        model.eval()[-1].weight *= 8
    export(lambda: model, path, dynamo=dynamo, batch=batch, example=images[: batch or 2])


def export_open_sides(path: Path) -> None:
    import torch

    sides = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    export(partial(network, "resnet18"), path, dynamo=True, dynamic_shapes=(sides,))


def _nhwc_throughout(path: Path, batch: int | str = "N") -> None:
    """Write a small network as tf2onnx does for Keras: a Transpose around each convolution, bias and mean in NHWC."""
    rng, nodes, weights, last = np.random.default_rng(0), [], {}, "image"
    for number, (before, after) in enumerate(((3, 16), (16, 32), (32, 64))):
        weights[f"w{number}"] = rng.normal(0, (2 / 9 / before) ** 0.5, (after, before, 3, 3))
        weights[f"b{number}"] = rng.normal(0, 0.1, (1, 1, 1, after))
        nodes += [
            helper.make_node("Transpose", [last], [f"x{number}"], perm=[0, 3, 1, 2]),
            helper.make_node(
                "Conv", [f"x{number}", f"w{number}"], [f"c{number}"], auto_pad="SAME_UPPER", strides=[2] * 2
            ),
            helper.make_node("Transpose", [f"c{number}"], [f"t{number}"], perm=[0, 2, 3, 1]),
            helper.make_node("Add", [f"t{number}", f"b{number}"], [f"a{number}"]),
            helper.make_node("Relu", [f"a{number}"], [f"r{number}"]),
        ]
        last = f"r{number}"
    weights |= {"wd": rng.normal(0, 2, (64, CLASSES)), "bd": rng.normal(0, 0.1, CLASSES)}
    nodes += [
        helper.make_node("ReduceMean", [last], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["mean", "wd"], ["product"]),
        helper.make_node("Add", ["product", "bd"], ["scores"]),
    ]
    save(path, nodes, weights, [batch, SIDE, SIDE, 3], [batch, CLASSES])


def save(path: Path, nodes: Sequence[Any], weights: Mapping[str, np.ndarray], given: Any, made: Any) -> None:
    constants = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, given)]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, made)]
    graph = helper.make_graph(list(nodes), "made", inputs, outputs, constants)
    # Opset 13 and IR 7 are what tf2onnx writes.
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7), path)


# Ends, number types, and how weights are stored


def ends() -> list[Item]:
    ends: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
        ("softmax", "probabilities", lambda x: x.softmax(1)),
        ("sigmoid", "sigmoid", lambda x: x.sigmoid()),
        ("log_softmax", "log-probabilities", lambda x: x.log_softmax(-1)),
        ("softmax_by_hand", "probabilities", lambda x: x.exp() / x.exp().sum(1, True)),
        ("squeezed", "logits", lambda x: x.reshape(-1, CLASSES, 1, 1).squeeze()),
    )  # fmt: skip
    found = []
    for name, kind, end in ends:
        for dynamo in (True, False) if name in ("softmax", "sigmoid", "log_softmax") else (False,):
            net = partial(network, "resnet18")
            wrap = partial(_ended, end=end)
            batch = 1 if name == "squeezed" else None
            make = partial(export, net, dynamo=dynamo, wrap=wrap, batch=batch)
            found.append(Item(f"end_{name}_{_short(dynamo)}", title(dynamo), make, kind))
    return found


def _ended(net: Any, end: Callable[[Any], Any]) -> Any:
    return wrapped(lambda image: end(net(image)), net)


def stored_forms() -> list[Item]:
    base = partial(network, "mobilenet_v2")
    return [
        Item("fp16_converter", "torch, then onnxruntime's float16", _fp16),
        Item("fp16_converter_float_input", "torch, then onnxruntime's float16", partial(_fp16, keep=True)),
        Item("fp16_torch_half", title(True), _half),
        Item("fp64_torch", title(False), _double),
        Item("external_data_dynamo", title(True), partial(export, base, dynamo=True, external_data=True)),
        Item("external_data_onnx", "torch, then onnx.save_model", external),
        Item("opset_9", title(False), partial(export, base, dynamo=False, opset_version=9)),
        Item("opset_11_not_folded", title(False),
             partial(export, base, dynamo=False, opset_version=11, do_constant_folding=False)),
        Item("opset_23_dynamo", title(True), partial(export, base, dynamo=True, opset_version=23)),
        Item("not_optimized_dynamo", title(True), partial(export, base, dynamo=True, optimize=False)),
        *(
            Item(
                f"not_optimized_{name}",
                title(True),
                partial(export, partial(network, name), dynamo=True, optimize=False),
            )
            for name in ("vit_small", "shufflenet_v2_x0_5", "edgenext_xx_small")
        ),
        Item("optimized_by_onnxruntime", "torch, then onnxruntime's extended optimization", _optimized),
    ]  # fmt: skip


def through(path: Path, change: Callable[[Path, Path], None], name: str = "mobilenet_v2", **options: Any) -> None:
    """Export a network, and let another tool change the file."""
    with TemporaryDirectory() as folder:
        source = Path(folder, "source.onnx")
        export(partial(network, name), source, dynamo=False, **options)
        change(source, path)


def _fp16(path: Path, *, keep: bool = False) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    def change(source: Path, target: Path) -> None:
        onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=keep), target)

    through(path, change)


def _half(path: Path) -> None:
    import copy

    import torch

    net = copy.deepcopy(network("resnet18")).half()
    export(lambda: net, path, dynamo=True, example=torch.rand(2, 3, SIDE, SIDE).half())


def _double(path: Path) -> None:
    import copy

    import torch

    net = copy.deepcopy(network("squeezenet1_1")).double()
    export(lambda: net, path, dynamo=False, example=torch.rand(2, 3, SIDE, SIDE).double())


def external(path: Path) -> None:
    def change(source: Path, target: Path) -> None:
        target.with_suffix(".data").unlink(missing_ok=True)
        location = target.with_suffix(".data").name
        onnx.save_model(onnx.load(source), target, save_as_external_data=True, location=location, size_threshold=0)

    through(path, change)


def _optimized(path: Path) -> None:
    import onnxruntime

    def change(source: Path, target: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(target)
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    through(path, change)
