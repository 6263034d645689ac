"""How well a profile predicts the latency of a network that is not in it.

    python benchmarks/compress/latency_profile.py OUT --rounds 4

Networks with random weights become bundles in FP32 and INT8; their latency does not depend on the weights. Each round
records a profile of all of them. Of each network the fastest round counts, since other programs only slow it down. Each
is then predicted from the others.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image

import krl_deploy
import krl_runtime
from krl_compress.searching.prediction import LatencyModel, from_profile
from krl_runtime.device.profiles import Profile
from krl_runtime.errors import KrlError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.models import ModelSpec
from krl_train.run import Run, RunRecord

LABELS = ("a", "b", "c", "d")
IMAGES = 128  # of smooth noise, to calibrate and to compare with
NETWORKS = (
    *((name, 32) for name in ("resnet8", "resnet20", "resnet32", "resnet56", "wrn-16-1", "wrn-16-2", "wrn-40-1")),
    *((f"dscnn-{width}", 32) for width in ("0.25", "0.5", "1")),
    *((name, 32) for name in ("lenet5", "resnet18", "cifar-vgg8", "cifar-mobilenetv2", "mobilenet_v2")),
    *((name, 32) for name in ("mobilenet_v3_small", "shufflenet_v2_x0_5")),
    *((name, 64) for name in ("resnet8", "resnet20", "resnet18", "dscnn-0.5", "mobilenet_v3_small")),
    *((name, 64) for name in ("shufflenet_v2_x1_0", "squeezenet1_1")),
    ("mobilenet_v3_small", 96),
)
FAMILIES = {"all": ("",), "resnet, wrn, dscnn": ("resnet8", "resnet20", "resnet32", "resnet56", "wrn", "dscnn")}
FAMILIES["resnet, wrn"] = FAMILIES["resnet, wrn, dscnn"][:-1]  # those of CIFAR: resnet18 is another architecture


def write_images(folder: Path) -> Path:
    """Write images of smooth noise in four classes."""
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        file = folder / LABELS[number % len(LABELS)] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((96, 96), Image.Resampling.BICUBIC).save(file)
    return folder


def bundle_of(name: str, side: int, folder: Path, images: Path) -> Path:
    """Export a network with random weights, with an INT8 variant where the gate accepts one."""
    out = folder / f"{name}-{side}.krl"
    if out.exists():
        return out
    torch.manual_seed(0)
    preprocessing, spec = Preprocessing(side, side), ModelSpec(name, len(LABELS), 3)
    record = RunRecord("classification", spec, preprocessing, LABELS, "krl-train fit", {}, 0, {})
    run = Run.write(folder / f"{name}-{side}", record, spec.build(preprocessing).backbone.state_dict())
    krl_deploy.export(run=run.path, out=out, data=images)
    try:
        krl_deploy.quantize(bundle=out, data=images, accept_unmeasured=True, max_drop=100.0)
    except KrlError as error:
        print(f"{out.name}: no INT8: {error}")
    return out


def fastest(profiles: list[Profile]) -> Profile:
    """Return of each entry the one with the smallest median."""
    entries = sorted((entry for profile in profiles for entry in profile.entries), key=lambda e: -e.latency_ms["p50"])
    merged = Profile(profiles[0].machine)
    for entry in entries:
        merged = merged.with_entry(entry)
    return merged


def main() -> None:
    """Print the errors of each precision, for all networks and for families."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder for bundles and profiles")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=100)
    options = parser.parse_args()
    images = write_images(options.out / "images")
    bundles = [bundle_of(name, side, options.out, images) for name, side in NETWORKS]
    files = [options.out / f"{number}.json" for number in range(options.rounds)]
    for file in files:
        krl_runtime.record(bundles, file, threads=1, require="cpu", iterations=options.iterations)
    merged = fastest([Profile.read(file) for file in files])
    for precision in ("fp32", "int8"):
        for family, names in FAMILIES.items():
            chosen = tuple(entry for entry in merged.entries if entry.bundle.startswith(names))
            Profile(merged.machine, chosen).write(options.out / "family.json")
            model: LatencyModel = from_profile(options.out / "family.json", precision=precision).model
            print(
                f"{precision} {family}: {model.entries} networks, median error {model.median_error:.1%}, "
                f"largest {model.largest_error:.1%}"
            )


if __name__ == "__main__":
    main()
