"""PSNR and SSIM of luma of restorers, bicubic enlargement and a third-party ESPCN, by the protocol of the literature.

Usage: python benchmarks/train/super_resolution.py FOLDER [FOLDER …] --run NAME=RUN [--run …] [--espcn FILE.onnx]
    [--image OUT.png --crop FILE TOP LEFT SIDE]

FOLDER     images that no network was trained on (Set5, Set14)
--run      a run of restoration and what to call it
--espcn    PyTorch's tutorial network (x3, 224x224 luma of full swing in 0 to 1), run by ONNX Runtime
--image  writes bicubic, the runs and the truth side by side, for a part of one image

Luma of BT.601 (studio swing) rounded to uint8, made smaller bicubically with antialiasing, enlarged again; the border
of as many pixels as the scale is cut off; PSNR with peak 255, SSIM with a Gaussian window of 11 pixels (sigma 1.5).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from krl_runtime.cli.tables import table
from krl_runtime.images.folders import find_images
from krl_runtime.images.luma import chroma, degrade, resize, to_rgb, to_uint8
from krl_runtime.images.preprocessing import open_image
from krl_train.data.patches import read_image
from krl_train.metrics.restoration import enlarge, restore_image, score
from krl_train.models import count_parameters
from krl_train.run import Run

Plane = npt.NDArray[np.uint8]
Method = Callable[[Plane], Plane]
_SIDE, _OVERLAP = 224, 8


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    runs = {name: Run.open(path) for name, _, path in (item.partition("=") for item in options.run)}
    scales = {run.record.model.arguments["scale"] for run in runs.values()}
    if len(scales) != 1:
        raise SystemExit(f"the runs enlarge {sorted(scales)} times; give runs of one scale")
    scale = scales.pop()
    methods: dict[str, tuple[Method, int]] = {"bicubic": (lambda plane: enlarge(plane, scale), 0)}
    if options.espcn:
        methods["third-party ESPCN"] = _espcn(options.espcn)
    for name, run in runs.items():
        network = run.module()
        methods[name] = (
            lambda plane, network=network: restore_image(network, plane, torch.device("cpu")),
            count_parameters(network),
        )
    rows = []
    for name, (method, parameters) in methods.items():
        cells: list[object] = [name, parameters or None]
        for folder in options.folders:
            found = [_score(path, scale, method) for path in find_images(folder)]
            cells += [
                f"{np.mean([item[key] for item in found]):.{digits}f}" for key, digits in (("psnr", 2), ("ssim", 4))
            ]
        rows.append(cells)
    titles = [f"{folder.name} {what}" for folder in options.folders for what in ("PSNR", "SSIM")]
    print(table(("", "parameters", *titles), rows))
    if options.image:
        _image(options, scale, {name: method for name, (method, _) in methods.items()})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--run", action="append", required=True)
    parser.add_argument("--espcn", type=Path)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--crop", nargs=4, metavar=("FILE", "TOP", "LEFT", "SIDE"))
    return parser.parse_args()


def _score(path: Path, scale: int, method: Method) -> dict[str, float]:
    small, truth = degrade(read_image(path, "y"), scale)
    return score(method(small), truth, scale)


def _espcn(path: Path) -> tuple[Method, int]:
    """Return the tutorial's network, in overlapping tiles of its one size, and its parameters."""
    import onnx
    import onnxruntime

    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3  # it warns of each weight that is an input as well
    session = onnxruntime.InferenceSession(str(path), quiet, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    weights = sum(int(np.prod(item.dims)) for item in onnx.load(path).graph.initializer)

    def enlarged(plane: Plane) -> Plane:
        full = (plane.astype(np.float32) - 16) / 219  # what Pillow's YCbCr has, in 0 to 1
        height, width = full.shape
        large = np.zeros((3 * height, 3 * width), np.float32)
        step = _SIDE - 2 * _OVERLAP
        for top in range(0, max(1, height - 2 * _OVERLAP), step):
            for left in range(0, max(1, width - 2 * _OVERLAP), step):
                part = full[top : top + _SIDE, left : left + _SIDE]
                padded = np.pad(part, [(0, _SIDE - part.shape[0]), (0, _SIDE - part.shape[1])], mode="edge")
                result = session.run(None, {name: padded[None, None]})[0][0, 0]
                y, x = (_OVERLAP if start else 0 for start in (top, left))
                kept = result[3 * y : 3 * part.shape[0], 3 * x : 3 * part.shape[1]]
                large[3 * (top + y) :, 3 * (left + x) :][: kept.shape[0], : kept.shape[1]] = kept
        return to_uint8(219 * large + 16)

    return enlarged, weights


def _image(options: argparse.Namespace, scale: int, methods: dict[str, Method]) -> None:
    """Write a part of one image as each method restores it, in color, and as it is."""
    path, (top, left, side) = Path(options.crop[0]), map(int, options.crop[1:])
    small, truth = degrade(np.asarray(open_image(path, mode="RGB")), scale)
    plane, _ = degrade(read_image(path, "y"), scale)
    colors = chroma(small)
    large = np.stack([resize(colors[..., k], truth.shape[0], truth.shape[1]) for k in range(2)], axis=2)
    shown = [to_rgb(method(plane).astype(np.float32), large) for method in methods.values()]
    parts = [item[top : top + side, left : left + side] for item in (*shown, truth)]
    zoomed = [np.asarray(Image.fromarray(part).resize((240, 240), Image.Resampling.NEAREST)) for part in parts]
    gap = np.full((240, 4, 3), 255, np.uint8)
    row = [piece for part in zoomed for piece in (part, gap)][:-1]
    options.image.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(row, axis=1)).save(options.image)
    print(f"{options.image}: {', '.join(methods)}, truth")


if __name__ == "__main__":
    main()
