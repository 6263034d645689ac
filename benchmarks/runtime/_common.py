"""The shared part of the runtime's benchmarks: real networks as bundles, real photographs as JPEG, and fair timing."""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from PIL import Image

from krl_runtime.bundle import Bundle, Manifest, TensorSpec, Variant
from krl_runtime.images.preprocessing import Preprocessing

__all__ = ["jpegs", "machine", "make_bundle", "open_bundle", "options", "ratios", "report"]

CACHE = Path(os.environ.get("KRL_BENCHMARK_CACHE", Path.home() / ".cache" / "krl-benchmarks"))


def options(description: str, **defaults: int) -> argparse.ArgumentParser:
    """Return a parser with ``--json`` and an integer option for each default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, metavar="N", help=" ")
    return parser


def jpegs(width: int, height: int, count: int = 8, quality: int = 90) -> list[bytes]:
    """Return crops of two real photographs (scikit-learn's), scaled to this size, as JPEG with 4:2:0 colors."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    encoded = []
    for index in range(count):
        photograph = Image.fromarray(load_sample_images().images[index % 2])
        share = rng.uniform(0.8, 1)
        box = (0, 0, photograph.width * share, photograph.height * share)
        file = io.BytesIO()
        photograph.resize((width, height), Image.Resampling.BICUBIC, box=box).save(file, "JPEG", quality=quality)
        encoded.append(file.getvalue())
    return encoded


def make_network(name: str) -> Any:
    """Return a torchvision network with random weights and sane BatchNorm statistics, in eval mode, fed with pixels."""
    import torch
    import torchvision

    from krl_train.models import Network

    torch.manual_seed(0)
    network = Network(torchvision.models.get_model(name, weights=None), Preprocessing(224, 224, crop_fraction=0.875))
    pixels = [np.asarray(network.preprocessing(data)) for data in jpegs(320, 240, 16)]
    network.train()
    with torch.no_grad():
        for _ in range(20):
            network(torch.from_numpy(np.stack(pixels)))
        network.eval()
        # Untrained logits are all alike; spread out, they make answers that can be compared.
        spread = network(torch.from_numpy(np.stack(pixels))).std(dim=1).mean()
        last = [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)][-1]
        last.weight *= 3 / spread
        last.bias *= 3 / spread
    return network


def make_bundle(name: str) -> tuple[Bundle, Any]:
    """Return a bundle of a torchvision network, made once and kept in a cache folder, and the network itself."""
    import torch

    from krl_deploy.exporters.conversion import to_onnx

    network = make_network(name)
    path = CACHE / f"{name}.krl"
    if path.exists():
        return Bundle.open(path), network
    pixels = np.stack([network.preprocessing(data) for data in jpegs(320, 240, 16)])
    with torch.no_grad():
        logits = np.concatenate([network(torch.from_numpy(pixels[i : i + 1])).numpy() for i in range(len(pixels))])
    golden = io.BytesIO()
    np.savez(golden, pixels=pixels, logits=logits)
    manifest = Manifest(
        task="classification",
        name=name,
        inputs=(TensorSpec("pixels", "uint8", ("batch", 3, 224, 224)),),
        outputs=(TensorSpec("logits", "float32", ("batch", logits.shape[1])),),
        preprocessing=network.preprocessing,
        labels=tuple(f"class {index}" for index in range(logits.shape[1])),
        variants={"fp32": Variant("fp32", "model.fp32.onnx", tolerance=1e-3 * max(1.0, float(np.abs(logits).max())))},
        golden="golden.npz",
    )
    data = to_onnx(network, network.preprocessing.shape, 20).SerializeToString()
    return Bundle.create(path, manifest, {"model.fp32.onnx": data, "golden.npz": golden.getvalue()}), network


def open_bundle(name: str) -> Bundle:
    """Return the same bundle without torch in this process."""
    path = CACHE / f"{name}.krl"
    if not path.exists():
        code = f"import _common; _common.make_bundle({name!r})"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
    return Bundle.open(path)


def ratios(blocks: Mapping[str, list[float]], base: str) -> dict[str, float]:
    """Return for each contender how many times as fast as ``base`` it is: the median over rounds of the ratio."""
    return {
        name: median(slow / fast for slow, fast in zip(blocks[base], values, strict=True))
        for name, values in blocks.items()
    }


def machine() -> dict[str, Any]:
    """Return the facts about this machine that a measured time depends on."""
    import PIL

    from krl_deploy.evaluation.comparison import machine as described

    return {**described(), "pillow": PIL.__version__, "numpy": np.__version__, "load": os.getloadavg()[0]}


def report(result: Mapping[str, Any], lines: list[str], *, as_json: bool) -> None:
    """Print a result for programs or for people."""
    if as_json:
        json.dump(result, sys.stdout, indent=2)
        print()
    else:
        print("\n".join(lines))
