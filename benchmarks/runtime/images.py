"""Restorer and generator beside torch eager, in one process and interleaved; and the memory of a large photograph.

The networks are made here with random weights and exported by ``krl-deploy export``: speed does not depend on weights.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from _common import machine, ratios
from PIL import Image

from krl_deploy.config import ExportConfig
from krl_deploy.exporters.export import export
from krl_runtime import Generator, Restorer, load
from krl_runtime.device.timing import interleaved
from krl_runtime.images.preprocessing import Preprocessing
from krl_runtime.pipelines.generator import latents_of
from krl_train.models.generators import build_generator
from krl_train.models.restorers import build_restorer, receptive_radius
from krl_train.run import ModelSpec, Run, RunRecord

LATENT = 100
SIZES = {"180x320": (180, 320), "512x512": (512, 512)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="espcn", help="restorer, as krl-train fit names it")
    parser.add_argument("--generator", default="dcgan-64", help="generator, as krl-train fit names it")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--skip-photograph", action="store_true", help="leave out the 4000x3000 photograph")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root / "data")
        restorer = restorer_run(root, arguments.model)
        generator = generator_run(root, arguments.generator)
        for run in (restorer, generator):
            export(ExportConfig(run.path, run.path.with_suffix(".krl"), data=root / "data"))
        result = {
            "machine": machine(),
            "threads": arguments.threads,
            "restorer": {name: restore(restorer, size, arguments) for name, size in SIZES.items()},
            "generator": {f"batch {count}": generate(generator, count, arguments) for count in (1, 16)},
            "photograph": None if arguments.skip_photograph else photograph(restorer, root, arguments.threads),
        }
    print(json.dumps(result, indent=2) if arguments.json else "\n".join(lines(result)))


def write_images(folder: Path) -> None:
    """Write the two real photographs that scikit-learn has."""
    from sklearn.datasets import load_sample_images

    folder.mkdir()
    for number, image in enumerate(load_sample_images().images):
        Image.fromarray(image).save(folder / f"{number}.png")


def restorer_run(root: Path, name: str) -> Run:
    torch.manual_seed(0)
    arguments = {
        "scale": 3,
        "color": "y",
        "overlap": receptive_radius(name, 3),
        "degradation": {"kind": "bicubic"},
    }
    spec, preprocessing = ModelSpec(name, 0, 1, arguments), Preprocessing(48, 48, 1, mean=(0.5,), std=(1.0,))
    record = RunRecord("restoration", spec, preprocessing, (), "benchmark", {}, 0, {})
    return Run.write(root / "restorer", record, build_restorer(spec, preprocessing).backbone.state_dict())


def generator_run(root: Path, name: str) -> Run:
    torch.manual_seed(0)
    spec = ModelSpec(name, 0, 3, {"latent": LATENT})
    preprocessing = Preprocessing(64, 64, 3, mean=(0.5,) * 3, std=(0.5,) * 3)
    record = RunRecord("generation", spec, preprocessing, (), "benchmark", {}, 0, {})
    return Run.write(root / "generator", record, build_generator(spec, preprocessing).backbone.state_dict())


def restore(run: Run, size: tuple[int, int], arguments: argparse.Namespace) -> dict[str, float]:
    """Return milliseconds for luma of a size: krl's parts and stitching, and torch on the whole."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, *size), dtype=np.uint8)
    network, whole = run.module(), torch.from_numpy(pixels[None])
    with load(run.path.with_suffix(".krl"), Restorer, require="cpu", threads=arguments.threads) as model:

        def eager() -> None:
            with torch.inference_mode():
                network(whole)

        return timed({"krl": lambda: model.restore_planes(pixels), "torch eager": eager}, arguments.rounds)


def generate(run: Run, count: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Return milliseconds for a batch: from latents to uint8 images, on both sides."""
    latents = latents_of(0, count, LATENT)
    network, given = run.module(), torch.from_numpy(latents)
    with load(run.path.with_suffix(".krl"), Generator, require="cpu", threads=arguments.threads) as model:

        def eager() -> None:
            with torch.inference_mode():
                network(given).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()

        return timed({"krl": lambda: model.generate_from(latents), "torch eager": eager}, arguments.rounds)


def timed(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    blocks = interleaved(calls, rounds=rounds, block_seconds=0.1)
    medians = {f"{name} ms": median(values) for name, values in blocks.items()}
    return {**medians, "torch / krl": ratios(blocks, "torch eager")["krl"]}


def photograph(run: Run, root: Path, threads: int) -> dict[str, float]:
    """Restore 4000x3000 pixels in a process of its own; return seconds and the peak of its resident memory."""
    large = root / "large.png"
    Image.open(root / "data" / "0.png").resize((4000, 3000), Image.Resampling.BICUBIC).save(large, compress_level=1)
    code = (
        "import json, time, krl_runtime; from krl_runtime.device.bench import peak_memory_mib; "
        f"model = krl_runtime.load({str(run.path.with_suffix('.krl'))!r}, require='cpu', threads={threads}); "
        "loaded = peak_memory_mib(); begin = time.perf_counter(); "
        f"made = model({str(large)!r}); "
        "print(json.dumps({'seconds': time.perf_counter() - begin, 'peak_mib': peak_memory_mib(), "
        "'loaded_mib': loaded, 'result_mib': made.pixels.nbytes / 2**20, 'width': made.width}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def lines(result: dict) -> list[str]:
    rows = [f"{kind} {name}: {values}" for kind in ("restorer", "generator") for name, values in result[kind].items()]
    return [*rows, f"photograph of 4000x3000: {result['photograph']}", f"machine: {result['machine']}"]


if __name__ == "__main__":
    main()
