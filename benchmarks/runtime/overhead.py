"""Cost of ``model(array)`` beyond a bare ``InferenceSession.run`` with its arrays at hand, at batch 1."""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median

import numpy as np
from _common import machine, open_bundle, options, report

import krl_runtime
from krl_runtime.backends.onnxruntime import open_session
from krl_runtime.bundle import Bundle
from krl_runtime.device.timing import interleaved


def main() -> None:
    parser = options(str(__doc__), rounds=15, threads=1)
    parser.add_argument("--model", default="mobilenet_v3_small", help="a torchvision classifier")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: on a busy machine")
    arguments = parser.parse_args()
    made = open_bundle(arguments.model)
    # The image has the network's size, and nothing is cut off: the pixels go in as they are.
    whole = replace(made.manifest.preprocessing, crop_fraction=1.0)
    bundle = Bundle.create(
        made.path.with_suffix(".whole.krl"),
        replace(made.manifest, preprocessing=whole),
        {name: made.file(name) for name in made.manifest.files},
        replace=True,
    )
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    with krl_runtime.load(bundle.path, threads=arguments.threads) as model:
        pixels = model.preprocessing(image)[None]
        session = open_session(bundle.file("model.fp32.onnx"), cuda=False, threads=arguments.threads)
        feed, names = {"pixels": pixels}, ["logits"]
        blocks = interleaved(
            {
                "session.run": lambda: session.run(names, feed),
                "model.logits(pixels)": lambda: model.logits(pixels),
                "model(array)": lambda: model(image),
            },
            rounds=arguments.rounds,
            block_seconds=0.1,
            clock=time.process_time if arguments.clock == "cpu" else time.perf_counter,
        )
    medians = {name: median(values) for name, values in blocks.items()}
    over = median((mine - bare) * 1e3 for mine, bare in zip(blocks["model(array)"], blocks["session.run"], strict=True))
    share = over / medians["session.run"] / 10
    result = {"machine": machine(), "ms": medians, "overhead_us": over, "overhead_percent": share}
    lines = [f"{name:24} {value:8.4f} ms" for name, value in medians.items()]
    lines.append(f"overhead of model(array): {over:.0f} us, {share:.1f} %")
    report(result, lines, as_json=arguments.json)


if __name__ == "__main__":
    main()
