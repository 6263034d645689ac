"""Third-party ONNX files for ``import_table.py``: of torch, quantized ones, generators, others, and faulty ones."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import onnx
from _peers import photographs, quantize_static
from _torch_files import (
    BATCH,
    CLASSES,
    SIDE,
    Item,
    ends,
    export,
    export_open_sides,
    external,
    input_forms,
    network,
    networks,
    normalized,
    save,
    stored_forms,
    through,
    title,
    wrapped,
)
from onnx import TensorProto, helper

__all__ = ["CLASSES", "Item", "items"]


def items(data: Path) -> list[Item]:
    """Return all files; those of ``data`` are left out where the folder lacks them."""
    return [
        *networks(),
        *input_forms(),
        *ends(),
        *stored_forms(),
        *_quantized(),
        *_generators(),
        *_of(data),
        *_refused(),
    ]


# Quantized files


def _quantized() -> list[Item]:
    return [
        Item("qdq_u8s8", "onnxruntime quantize_static", partial(_static, "resnet18")),
        Item("qdq_s8s8_symmetric", "onnxruntime quantize_static", partial(_static, "mobilenet_v2", symmetric=True)),
        Item("qdq_percentile", "onnxruntime quantize_static",
             partial(_static, "squeezenet1_1", method="Percentile")),
        Item("integers_dynamic", "onnxruntime quantize_dynamic", _dynamic),
    ]  # fmt: skip


def _static(name: str, path: Path, *, symmetric: bool = False, method: str = "MinMax") -> None:
    def change(source: Path, target: Path) -> None:
        images = normalized(photographs(BATCH, SIDE))
        target.write_bytes(quantize_static(source.read_bytes(), images, method, symmetric=symmetric, preprocess=True))

    through(path, change, name, input_names=["pixels"], dynamic_axes={"pixels": {0: "N"}, "scores": {0: "N"}})


def _dynamic(path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    through(path, lambda source, target: quantize_dynamic(source, target), "vit_small")


# Generators


def _generators() -> list[Item]:
    options = {"task": "generation"}
    return [
        Item("dcgan_dynamo", title(True), partial(_dcgan, dynamo=True), **options),
        Item("dcgan_script", title(False), partial(_dcgan, dynamo=False), **options),
        Item("dcgan_fixed", title(False), partial(_dcgan, dynamo=False, batch=1), **options),
    ]


def _dcgan(path: Path, *, dynamo: bool, batch: int | None = None) -> None:
    """Write a generator of DCGAN's layers for images of 32 x 32."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers: list[Any] = []
    for number, (before, after) in enumerate(((64, 64), (64, 32), (32, 16))):
        stride, padding = ((2, 1), (1, 0))[number == 0]
        layers += [nn.ConvTranspose2d(before, after, 4, stride, padding, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    model = nn.Sequential(*layers, nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Tanh())
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        model.train()(torch.randn(64, 64, 1, 1))
        model[-2].weight *= 4  # so that the images have contrast
    export(lambda: model, path, dynamo=dynamo, batch=batch, example=torch.randn(batch or 2, 64, 1, 1))


# Files that others made, and files that must be refused


def _of(data: Path) -> list[Item]:
    plain = {"mean": (0.0,), "std": (1.0,)}
    known = [
        (
            "mnist-cntk.onnx",
            {"side": 28, "channels": 1, **plain, "options": {"input_range": "0-255"}},
        ),
        ("shufflenet-v2-12-int8.onnx", {"side": 224}),
        ("super_resolution_espcn_x3.onnx", {"task": "restoration", "side": 224, "channels": 1, **plain}),
    ]
    return [
        Item(Path(name).stem, "of its authors", partial(_copy, data / "models" / name), **more)
        for name, more in known
        if (data / "models" / name).is_file()
    ]


def _copy(source: Path, path: Path) -> None:
    path.write_bytes(source.read_bytes())


def _refused() -> list[Item]:
    base = partial(network, "squeezenet1_1")
    return [
        Item("refused_segmentation", title(True), partial(export, base, dynamo=True, wrap=_features)),
        Item("refused_two_inputs", title(False), _two_inputs),
        Item("refused_no_height", title(True), export_open_sides),
        Item("refused_nan", title(False), partial(export, base, dynamo=False, wrap=_not_a_number)),
        Item("refused_truncated", title(False), _truncated),
        Item("refused_missing_data", "torch, then onnx.save_model", _missing),
    ]


def _features(net: Any) -> Any:
    return wrapped(lambda image: net.features(image), net)


def _not_a_number(net: Any) -> Any:
    return wrapped(lambda image: net(image).log(), net)


def _two_inputs(path: Path) -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Add", ["mean", "more"], ["scores"]),
    ]
    save(path, nodes, {}, ["N", 3, SIDE, SIDE], ["N", 3, 1, 1])
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["N", 3, 1, 1]))
    onnx.save(model, path)


def _truncated(path: Path) -> None:
    def change(source: Path, target: Path) -> None:
        data = source.read_bytes()
        target.write_bytes(data[: len(data) // 2])

    through(path, change)


def _missing(path: Path) -> None:
    external(path)
    path.with_suffix(".data").unlink()
