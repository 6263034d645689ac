"""Published networks under their own names: what an independent implementation computes, the imported run computes.

The implementations are functions of a file's tensors by their published names, written after the papers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from _helpers.images import blurred_noise, make_split_folder
from krl_runtime.errors import ModelError, UsageError
from krl_train.cli import main
from krl_train.config import DataConfig, EvaluateConfig, ImportConfig, ImportedRestorerConfig, InputConfig
from krl_train.evaluation.evaluate import evaluate
from krl_train.importers.importing import import_weights
from krl_train.importers.matching import match_weights
from krl_train.models.restorers import build_restorer
from krl_train.run import ModelSpec, Run
from krl_train.training.restoration import restorer_preprocessing

State = dict[str, Tensor]
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class File:
    """Makes a file's tensors when they are first asked for, and computes with them afterwards."""

    def __init__(self, seed: int) -> None:
        self.state: State = {}
        self.random = torch.Generator().manual_seed(seed)

    def tensor(self, name: str, *shape: int, low: float = -1.0) -> Tensor:
        if name not in self.state:
            scale = 1 / max(1, torch.zeros(shape[1:]).numel()) ** 0.5 if len(shape) > 1 else 0.5
            value = torch.rand(shape, generator=self.random)
            self.state[name] = value + 0.5 if low >= 0 else (2 * value - 1) * scale * 1.7
        return self.state[name]

    def conv(self, x: Tensor, name: str, out: int, kernel: int, stride: int = 1, *, bias: bool = False) -> Tensor:
        weight = self.tensor(f"{name}.weight", out, x.shape[1], kernel, kernel)
        return F.conv2d(x, weight, self.tensor(f"{name}.bias", out) if bias else None, stride, kernel // 2)

    def norm(self, x: Tensor, name: str) -> Tensor:
        """Batch normalization by its formula."""
        count = x.shape[1]
        weight, variance = (self.tensor(f"{name}.{part}", count, low=0) for part in ("weight", "running_var"))
        bias, mean = (self.tensor(f"{name}.{part}", count) for part in ("bias", "running_mean"))
        shape = (1, -1, 1, 1)
        return (x - mean.reshape(shape)) / (variance.reshape(shape) + 1e-5).sqrt() * weight.reshape(
            shape
        ) + bias.reshape(shape)

    def prelu(self, x: Tensor, name: str) -> Tensor:
        slope = self.tensor(f"{name}.weight", x.shape[1]).reshape(1, -1, 1, 1)
        return torch.where(x > 0, x, slope * x)


def resnet(
    file: File,
    x: Tensor,
    blocks: tuple[int, ...],
    widths: tuple[int, ...],
    *,
    stem: tuple[str, str] = ("conv1", "bn1"),
    stage: str = "layer{}",
    first: int = 1,
    parts: tuple[str, ...] = ("conv1", "bn1", "conv2", "bn2"),
    shortcut: str | None = "shortcut",
    last: str = "linear",
    pooled: bool = False,
) -> Tensor:
    """A ResNet for small images; ``shortcut`` is ``None`` for option A."""
    x = F.relu(file.norm(file.conv(x, stem[0], widths[0], 3), stem[1]))
    x = F.max_pool2d(x, 3, 2, 1) if pooled else x
    for index, (count, width) in enumerate(zip(blocks, widths[1:], strict=True)):
        for block in range(count):
            name = f"{stage.format(index + first)}.{block}"
            stride = 2 if index and not block else 1
            bottleneck = len(parts) == 6
            out = 4 * width if bottleneck else width
            kernels = (1, 3, 1) if bottleneck else (3, 3)
            y = x
            for number, kernel in enumerate(kernels):
                step = stride if kernel == 3 and number == (1 if bottleneck else 0) else 1
                channels = out if number == len(kernels) - 1 else width
                y = file.norm(
                    file.conv(y, f"{name}.{parts[2 * number]}", channels, kernel, step),
                    f"{name}.{parts[2 * number + 1]}",
                )
                y = F.relu(y) if number < len(kernels) - 1 else y
            if stride > 1 or x.shape[1] != out:
                if shortcut is None:
                    x = x[:, :, ::2, ::2]
                    zeros = torch.zeros(len(x), (out - x.shape[1]) // 2, *x.shape[2:])
                    x = torch.cat([zeros, x, zeros], 1)
                else:
                    x = file.norm(file.conv(x, f"{name}.{shortcut}.0", out, 1, stride), f"{name}.{shortcut}.1")
            x = F.relu(x + y)
    x = x.mean((2, 3))
    return x @ file.tensor(f"{last}.weight", 2, x.shape[1]).T + file.tensor(f"{last}.bias", 2)


def classifier(blocks: tuple[int, ...], widths: tuple[int, ...], **names: object) -> Callable[[File, Tensor], Tensor]:
    return lambda file, x: resnet(file, x, blocks, widths, **names)  # type: ignore[arg-type]


THIN, DEEP = (16, 16, 32, 64), (64, 64, 128, 256, 512)
TORCHVISION = {"shortcut": "downsample", "last": "fc"}
AKAMASTER = {
    "stem": ("compressible_conv1", "bn1"),
    "parts": ("compressible_conv1", "bn1", "compressible_conv2", "bn2"),
    "last": "compressible_linear",
}
WEIAICUNZAI = {
    "stem": ("conv1.0", "conv1.1"),
    "stage": "conv{}_x",
    "first": 2,
    "parts": tuple(f"residual_function.{index}" for index in (0, 1, 3, 4)),
    "last": "fc",
}
BOTTLENECK = {"parts": ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")}

CLASSIFIERS = {
    # asked for, made, the network
    "akamaster, option A": ("resnet8", "resnet8", classifier((1, 1, 1), THIN, shortcut=None)),
    "akamaster, option B": ("resnet8", "resnet8-b", classifier((1, 1, 1), THIN)),
    "akamaster, newer, option A": ("resnet14", "resnet14", classifier((2, 2, 2), THIN, shortcut=None, **AKAMASTER)),
    "akamaster, newer, option B": ("resnet14", "resnet14-b", classifier((2, 2, 2), THIN, **AKAMASTER)),
    "chenyaofo": ("resnet20", "resnet20-b", classifier((3, 3, 3), THIN, **TORCHVISION)),
    "chenyaofo by its exact name": ("resnet20-b", "resnet20-b", classifier((3, 3, 3), THIN, **TORCHVISION)),
    "option A under the other's name": ("resnet8-b", "resnet8", classifier((1, 1, 1), THIN, shortcut=None, last="fc")),
    "RepDistiller": ("resnet8x4", "resnet8x4", classifier((1, 1, 1), (32, 64, 128, 256), **TORCHVISION)),
    "kuangliu": ("cifar-resnet18", "cifar-resnet18", classifier((2, 2, 2, 2), DEEP)),
    "weiaicunzai 18": ("cifar-resnet18", "cifar-resnet18", classifier((2, 2, 2, 2), DEEP, **WEIAICUNZAI)),
    "weiaicunzai 34": ("cifar-resnet34", "cifar-resnet34", classifier((3, 4, 6, 3), DEEP, **WEIAICUNZAI)),
    "weiaicunzai 50": (
        "cifar-resnet50",
        "cifar-resnet50",
        classifier(
            (3, 4, 6, 3),
            DEEP,
            **{**WEIAICUNZAI, "parts": tuple(f"residual_function.{index}" for index in (0, 1, 3, 4, 6, 7))},
        ),
    ),
    "kuangliu 50": ("cifar-resnet50", "cifar-resnet50", classifier((3, 4, 6, 3), DEEP, **BOTTLENECK)),
    "huyvnphan": (
        "cifar-resnet18-pooled",
        "cifar-resnet18-pooled",
        classifier((2, 2, 2, 2), DEEP, pooled=True, **TORCHVISION),
    ),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_published_classifiers_compute_the_same(name: str, tmp_path: Path) -> None:
    asked, made, network = CLASSIFIERS[name]
    file = File(len(name))
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    normalized = (pixels.double() / 255 - torch.tensor(MEAN).double().reshape(3, 1, 1)) / torch.tensor(STD).reshape(
        3, 1, 1
    )
    network(file, torch.zeros(1, 3, 16, 16))  # makes the tensors
    torch.save({"state_dict": {f"module.{key}": value for key, value in file.state.items()}}, tmp_path / "w.th")
    data = DataConfig(data=str(make_split_folder(tmp_path / "data", count=2)))
    config = ImportConfig(
        weights=tmp_path / "w.th",
        model=asked,
        out=tmp_path / "run",
        data=data,
        input=InputConfig(mean=MEAN, std=STD),
        device="cpu",
    )
    run = import_weights(config)
    assert run.record.model.name == made
    with torch.no_grad():
        logits = Run.open(run.path).network()(pixels)
    wanted = network(file, normalized.float())
    assert wanted.std() > 1e-3
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)


def test_a_pooled_stem_is_pointed_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked, _, network = CLASSIFIERS["kuangliu"]
    file = File(0)
    network(file, torch.zeros(1, 3, 16, 16))
    torch.save(file.state, tmp_path / "w.pth")
    data = DataConfig(data=str(make_split_folder(tmp_path / "data", count=2)))
    with caplog.at_level("INFO", "krl"):
        import_weights(ImportConfig(weights=tmp_path / "w.pth", model=asked, out=tmp_path / "run", data=data))
    assert "try --model cifar-resnet18-pooled" in caplog.text


def test_two_names_of_one_tensor_are_refused() -> None:
    from krl_train.importers.spellings import rename_for
    from krl_train.models import build_model

    model = build_model("resnet8-b", 2)
    state = {**model.state_dict(), "fc.weight": torch.zeros(2, 64)}
    with pytest.raises(ModelError, match=r"1 not known to the network: fc\.weight"):
        match_weights(state, model, "file", rename=rename_for("resnet8-b"))


def espcn(file: File, x: Tensor, scale: int, first: str, last: str) -> Tensor:
    x = torch.tanh(file.conv(x, f"{first}.0", 8, 5, bias=True))
    x = torch.tanh(file.conv(x, f"{first}.2", 4, 3, bias=True))
    return shuffled(file.conv(x, f"{last}.0", scale * scale, 3, bias=True), scale)


def shuffled(x: Tensor, scale: int) -> Tensor:
    """Pixel shuffle by its formula."""
    count, channels, height, width = x.shape
    planes = x.reshape(count, channels // scale**2, scale, scale, height, width)
    return planes.permute(0, 1, 4, 2, 5, 3).reshape(count, -1, height * scale, width * scale)


YJN870 = [f"mid_part.{index}" for index in range(8)]
LORNATANG = ["shrink.0", "shrink.1", "map.0", "map.1", "map.2", "map.3", "expand.0", "expand.1"]


def fsrcnn(file: File, x: Tensor, scale: int, first: str, middle: list[str], last: str) -> Tensor:
    x = file.prelu(file.conv(x, f"{first}.0", 6, 5, bias=True), f"{first}.1")
    for index, (out, kernel) in enumerate(((4, 1), (4, 3), (4, 3), (6, 1))):
        x = file.prelu(file.conv(x, middle[2 * index], out, kernel, bias=True), middle[2 * index + 1])
    weight, bias = file.tensor(f"{last}.weight", 6, 1, 9, 9), file.tensor(f"{last}.bias", 1)
    return F.conv_transpose2d(x, weight, bias, scale, 4, scale - 1)


def edsr(file: File, x: Tensor, scale: int, names: str, factor: float = 1.0) -> Tensor:
    """EDSR of 3 blocks and 6 channels; ``x`` has 0 to 255 less the mean."""
    basic = names == "BasicSR"
    x = file.conv(x, "conv_first" if basic else "head.0", 6, 3, bias=True)
    y = x
    for block in range(3):
        one, two = ("conv1", "conv2") if basic else ("body.0", "body.2")
        inner = F.relu(file.conv(y, f"body.{block}.{one}", 6, 3, bias=True))
        y = y + factor * file.conv(inner, f"body.{block}.{two}", 6, 3, bias=True)
    y = x + file.conv(y, "conv_after_body" if basic else "body.3", 6, 3, bias=True)
    for index, step in enumerate((2, 2) if scale == 4 else (scale,)):
        name = f"{'upsample' if basic else 'tail.0'}.{2 * index}"
        y = shuffled(file.conv(y, name, 6 * step * step, 3, bias=True), step)
    return file.conv(y, "conv_last" if basic else "tail.1", 3, 3, bias=True)


DIV2K = torch.tensor([0.4488, 0.4371, 0.4040]).reshape(1, 3, 1, 1)


def imported(tmp_path: Path, state: State, model: str, **options: object) -> Run:
    torch.save({"params": state}, tmp_path / "w.pth")
    restorer = ImportedRestorerConfig(**options)  # type: ignore[arg-type]
    return import_weights(
        ImportConfig(weights=tmp_path / "w.pth", model=model, out=tmp_path / "run", restorer=restorer, device="cpu")
    )


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize(
    ("model", "network", "given"),
    [
        ("espcn-8", lambda file, x, scale: espcn(file, x, scale, "first_part", "last_part"), False),
        ("espcn-8", lambda file, x, scale: espcn(file, x, scale, "feature_maps", "sub_pixel"), False),
        ("fsrcnn-6-4-2", lambda file, x, scale: fsrcnn(file, x, scale, "first_part", YJN870, "last_part"), True),
        (
            "fsrcnn-6-4-2",
            lambda file, x, scale: fsrcnn(file, x, scale, "feature_extraction", LORNATANG, "deconv"),
            True,
        ),
    ],
)
def test_published_restorers_of_luma_compute_the_same(
    model: str, network: Callable[[File, Tensor, int], Tensor], given: bool, scale: int, tmp_path: Path
) -> None:
    file = File(scale)
    pixels = torch.randint(0, 256, (2, 1, 9, 7), dtype=torch.uint8)
    wanted = network(file, pixels.float() / 255, scale)
    run = imported(tmp_path, file.state, model, **({"scale": scale} if given else {}))
    with torch.no_grad():
        restored = Run.open(run.path).module()(pixels)
    torch.testing.assert_close(restored, 255 * wanted, rtol=1e-4, atol=1e-2)
    arguments = run.record.model.arguments
    assert (arguments["scale"], arguments["color"], arguments["published"]) == (scale, "y", True)
    if given:
        with pytest.raises(UsageError, match="fit fsrcnn-6-4-2 with every scale; give --scale, accepted: 2, 3, 4"):
            imported(tmp_path, file.state, model)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("names", ["EDSR-PyTorch", "EDSR-PyTorch of 0 to 1", "BasicSR"])
@pytest.mark.parametrize("factor", [1.0, 0.1])
def test_published_edsr_computes_the_same(names: str, scale: int, factor: float, tmp_path: Path) -> None:
    file = File(scale)
    whole = 1 if names.endswith("0 to 1") else 255
    pixels = torch.randint(0, 256, (2, 3, 9, 7), dtype=torch.uint8)
    seen = whole * (pixels.float() / 255 - DIV2K)
    wanted = 255 * (edsr(file, seen, scale, names, factor) / whole + DIV2K)
    state = dict(file.state)
    if names != "BasicSR":
        for name, sign in (("sub_mean", -1), ("add_mean", 1)):
            state |= {f"{name}.weight": torch.eye(3)[..., None, None], f"{name}.bias": sign * whole * DIV2K.flatten()}
    run = imported(tmp_path, state, "edsr-3-6", res_scale=factor)
    with torch.no_grad():
        restored = Run.open(run.path).module()(pixels)
    torch.testing.assert_close(restored, wanted, rtol=1e-4, atol=2e-2)
    assert (run.record.model.arguments["scale"], run.record.model.arguments["color"]) == (scale, "rgb")


def test_a_tile_of_a_published_edsr_is_seamless(tmp_path: Path) -> None:
    """What is farther away than ``overlap`` changes nothing, and what is nearer does."""
    file = File(1)
    edsr(file, torch.zeros(1, 3, 8, 8), 4, "BasicSR")
    run = imported(tmp_path, file.state, "edsr-3-6")
    reach = run.record.model.arguments["overlap"]
    network = run.module()
    image = torch.randint(0, 256, (1, 3, 1, 41), dtype=torch.uint8)
    changed = image.clone()
    changed[..., 0] = 255 - changed[..., 0]
    with torch.no_grad():
        difference = (network(changed) - network(image)).abs().amax((0, 1, 2)).reshape(-1, 4).amax(1)
    assert (difference[reach + 1 :] == 0).all()
    assert difference[reach - 1] > 0


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("espcn-8", {"scale": 3}),
        ("espcn", {"scale": 2, "color": "rgb"}),
        ("edsr-2-8", {"scale": 4}),
        ("fsrcnn-8-4-1", {"scale": 2}),
        ("edsr-1-4", {"restore": "denoise", "noise_level": 15.0}),
        ("unet-4-2", {"restore": "jpeg", "jpeg_quality": 30}),
    ],
)
def test_own_restorers_come_back_from_their_weights(model: str, options: dict[str, object], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    scale, color = int(options.get("scale", 1)), options.get("color", "y")  # type: ignore[call-overload]
    channels = 3 if color == "rgb" else 1
    torch.manual_seed(0)
    spec = ModelSpec(model, 0, channels, {"scale": scale})
    network = build_restorer(spec, restorer_preprocessing(channels, (8, 8)))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_file(network.backbone.state_dict(), tmp_path / "model.safetensors")
    # Scale and channels of super-resolution are read from the shapes, except fsrcnn's scale.
    known = {key: value for key, value in options.items() if key not in ("scale", "color") or model[0] == "f"}
    config = ImportConfig(
        weights=tmp_path / "model.safetensors",
        model=model,
        out=tmp_path / "run",
        restorer=ImportedRestorerConfig(**known),  # type: ignore[arg-type]
        device="cpu",
    )
    run = import_weights(config)
    pixels = torch.randint(0, 256, (1, channels, 12, 8), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(run.module()(pixels), network.eval()(pixels))
    arguments = run.record.model.arguments
    assert (arguments["scale"], arguments["color"]) == (scale, color)
    assert "published" not in arguments
    assert arguments["degradation"]["kind"] == {"denoise": "noise", "jpeg": "jpeg"}.get(
        str(options.get("restore")), "bicubic"
    )


def test_an_imported_restorer_is_measured_on_all_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(6):
        blurred_noise(36, index, 1).save(folder / f"{index}.png")
    network = build_restorer(ModelSpec("espcn-4", 0, 1, {"scale": 2}), restorer_preprocessing(1, (8, 8)))
    torch.save(network.backbone.state_dict(), tmp_path / "w.pth")  # as it begins: plain enlargement
    options = [
        "--weights",
        str(tmp_path / "w.pth"),
        "--model",
        "espcn-4",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(["import", *options, "--data", str(folder), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["count"], result["split"]) == (6, "all")
    assert main(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["count"], again["split"], again["psnr"]) == (6, "all", result["psnr"])
    assert again["trained_on"] == "not known: the weights were imported"
    assert main(["import", *options, "--overwrite"]) == 0
    with pytest.raises(UsageError, match="was imported, and nothing is known"):
        evaluate(EvaluateConfig(run=tmp_path / "run", device="cpu"))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("espcn-16", r"trunk\.0\.weight is \[8, 1, 5, 5\], expected \[16, 1, 5, 5\]"),
        ("edsr-1-8", "missing: tail"),
        ("unet-8-2", "keeps the size of images; it cannot enlarge"),
    ],
)
def test_other_restorers_are_refused(model: str, message: str, tmp_path: Path) -> None:
    file = File(0)
    espcn(file, torch.zeros(1, 1, 8, 8), 3, "first_part", "last_part")
    with pytest.raises(ModelError, match=message):
        imported(tmp_path, file.state, model)
    assert not (tmp_path / "run").exists()


def test_options_of_restorers_are_refused_for_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "w.pth")
    options = ["--weights", str(tmp_path / "w.pth"), "--out", str(tmp_path / "run")]
    for model, more in (
        ("resnet8", ["--scale", "2"]),
        ("style-4", ["--color", "rgb"]),
        ("mlp-8", ["--restore", "jpeg"]),
    ):
        assert main(["import", *options, "--model", model, *more]) == 2
        assert f"are for restorers; {model} is none" in " ".join(capsys.readouterr().err.split())
