"""INT8 of a Q/DQ file with poor ranges: with those of the file, and calibrated anew.

ONNX Runtime's quantize_static writes the file from a bundle's float model (Q/DQ, MinMax, uint8 activations, scales for
each channel), with the ranges of a few images of little contrast.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from _peers import quantize_static

from krl_deploy.config import ImportConfig, QuantizeConfig
from krl_deploy.data.folders import choose
from krl_deploy.importers.import_onnx import import_onnx
from krl_deploy.precision.quantize import quantize
from krl_runtime.bundle import Bundle
from krl_runtime.cli.tables import table
from krl_runtime.images.folders import decode
from krl_runtime.images.labeled import open_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("bundle", type=Path, help="of a classifier")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=16, help="that the file's ranges come from")
    parser.add_argument("--contrast", type=float, default=0.5, help="factor of their pixels")
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    manifest = bundle.manifest
    images = choose(open_data(options.data, on_bad="refuse"), "train", options.images, val_fraction=0.2)
    pixels, _ = decode(images, manifest.preprocessing, on_bad="refuse")
    float_model = bundle.file(manifest.variants["fp32"].file).read_bytes()
    rows = []
    with TemporaryDirectory() as folder:
        file, target = Path(folder, "file.onnx"), Path(folder, "file.krl")
        file.write_bytes(quantize_static(float_model, (pixels * options.contrast).astype(np.uint8), "MinMax"))
        # The float model takes pixels and normalizes them itself.
        said = import_onnx(ImportConfig(file, target, options.data, manifest.labels))
        found = said["quantized_file"]["scores"]
        rows += [
            ("float model", found["fp32"], said["count"]),
            ("the file itself", found["quantized_file"], said["count"]),
        ]
        for recalibrate in (False, True):
            # Everything is accepted, so that both are measured.
            limits = {"max_drop": 100.0, "max_recall_drop": 100.0, "recalibrate": recalibrate}
            made, _ = quantize(QuantizeConfig(target, options.data, **limits))
            name = "quantize --recalibrate" if recalibrate else "quantize"
            scores, count = made["scores"], made["images"]["count"]
            rows += [(f"{name}: {part}", scores[part], count) for part in ("int8", "int8.cpu")]
    cells = [
        (name, f"{score['top1']:.2%}", f"{score['drop']:.2f} ± {score['drop_error']:.2f}", count)
        for name, score, count in rows
    ]
    print(table(("variant", "top-1", "drop in points", "images"), cells))


if __name__ == "__main__":
    main()
