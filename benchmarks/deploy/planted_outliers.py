"""A net whose INT8 collapses passes the accuracy gate: with the planner, or with equalization.

The outliers are planted in a trained CIFAR-style residual net: inside one block, a few channels of the first
convolution are made many times as large, and as small again in the weights of the second that read them. FP32's answers
stay what they were; INT8 has one scale for the tensor, so that all other channels lose their bits.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from _peers import machine
from onnx import numpy_helper

from krl_deploy.bundles.reference import make_reference
from krl_deploy.config import QuantizeConfig
from krl_deploy.evaluation.comparison import outputs_of
from krl_deploy.graph.session import open_cpu
from krl_deploy.precision.quantize import quantize
from krl_runtime.bundle import Bundle
from krl_runtime.errors import CheckFailedError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("bundle", type=Path, help="of a resnet8, resnet20, … trained here")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--max-drop", type=float, default=0.3)
    parser.add_argument("--factor", type=float, default=1000.0, help="how much larger the planted channels are")
    parser.add_argument("--channels", type=int, nargs="+", default=[3, 9], help="which ones")
    parser.add_argument("--block", type=int, default=1, help="in which block, counted from 0")
    parser.add_argument("--keep", type=Path, help="leave the bundle with its plan here")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    arguments = parser.parse_args()
    logging.getLogger("krl").setLevel("ERROR")
    with TemporaryDirectory() as folder:
        bundle = plant(Bundle.open(arguments.bundle), arguments.keep or Path(folder, "outlier.krl"), arguments)
        plain = QuantizeConfig(bundle.path, arguments.data, max_drop=arguments.max_drop, equalize="none")
        ways = {
            "neither": plain,
            "equalization": replace(plain, equalize="auto"),
            "the planner": replace(plain, mixed_precision=True),
        }
        results = {name: attempt(config) for name, config in ways.items()}
    if arguments.json:
        print(json.dumps({"machine": machine(), "max_drop": arguments.max_drop, "ways": results}, indent=2))
        return
    for name, result in results.items():
        print(f"\nwith {name}: {'passes' if result['passed'] else 'fails'}\n{result['shown']}")
        for tried in result.get("plan", {}).get("attempts", ()):
            print(f"  {tried['kept']:3} layers in floating point: {tried['refused'] or 'accepted'}")


def attempt(config: QuantizeConfig) -> dict[str, Any]:
    try:
        made, shown = quantize(config)
    except CheckFailedError as error:
        return {"passed": False, "shown": str(error)}
    return {"passed": True, "drop_points": made["drop_points"], "plan": made.get("plan", {}), "shown": shown}


def plant(bundle: Bundle, out: Path, arguments: argparse.Namespace) -> Bundle:
    """Write the bundle with outlier channels; its FP32 logits are checked to be what they were."""
    model = onnx.load(bundle.file("model.fp32.onnx"))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    first, second = convolutions[1 + 2 * arguments.block : 3 + 2 * arguments.block]

    def scale(name: str, axis: int, factor: float) -> None:
        values = numpy_helper.to_array(tensors[name]).copy()
        values[(slice(None),) * axis + (arguments.channels,)] *= np.float32(factor)
        tensors[name].CopyFrom(numpy_helper.from_array(values, name))

    for name in first.input[1:]:
        scale(name, 0, arguments.factor)
    scale(second.input[1], 1, 1 / arguments.factor)
    golden = bundle.golden()
    data = model.SerializeToString()
    error = np.abs(outputs_of(open_cpu(data), golden["pixels"]) - golden["logits"]).max()
    if error > 0.01 * np.abs(golden["logits"]).max():
        raise SystemExit(f"planting changed FP32's logits by {error:.3g}: this is not a CIFAR-style residual net")
    reference = make_reference(
        data,
        {"pixels": golden["pixels"]},
        {"logits": golden["logits"]},
        name="planted",
        preprocessing=bundle.manifest.preprocessing,
        source={"planted": f"channels {arguments.channels} {arguments.factor:g} times as large"},
        labels=bundle.manifest.labels,
    )
    return reference.write(out, {}, overwrite=True)


if __name__ == "__main__":
    main()
