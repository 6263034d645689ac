"""From JPEG bytes to the top-5, beside torchvision's transforms with torch, and beside PIL, numpy and ONNX Runtime.

All of them decode with Pillow and resize with its antialiased bilinear filter; the answers are compared.
"""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from _common import jpegs, machine, make_bundle, options, ratios, report
from PIL import Image

import krl_runtime
from krl_runtime.bundle import Bundle
from krl_runtime.device.timing import interleaved

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
Answer = Callable[[bytes], list[int]]


def with_torch(network: Any, threads: int) -> Answer:
    """Return the pipeline of torchvision's documentation."""
    import torch
    from torchvision import transforms

    torch.set_num_threads(threads)
    transform = transforms.Compose(
        [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )
    backbone = network.backbone

    def answer(data: bytes) -> list[int]:
        with torch.inference_mode():
            image = transform(Image.open(io.BytesIO(data)).convert("RGB"))
            return backbone(image[None]).softmax(1)[0].topk(5).indices.tolist()

    return answer


def with_numpy(bundle: Bundle, network: Any, threads: int) -> Answer:
    """Return the usual pipeline for ONNX Runtime: a float graph, and normalization in numpy."""
    import onnxruntime
    import torch

    path = bundle.path.with_suffix(".float.onnx")
    if not path.exists():
        torch.onnx.export(network.backbone, (torch.zeros(1, 3, 224, 224),), path, dynamo=True, verbose=False)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def answer(data: bytes) -> list[int]:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        scale = 256 / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        pixels = np.array(image.crop((left, top, left + 224, top + 224))) / 255
        batch = ((pixels - MEAN) / STD).transpose(2, 0, 1)[None].astype(np.float32)
        logits = session.run(None, {name: batch})[0][0]
        powers = np.exp(logits - logits.max())
        return np.argsort(powers / powers.sum())[::-1][:5].tolist()

    return answer


def with_krl(path: Path, threads: int, **arguments: Any) -> Answer:
    """Return a loaded bundle."""
    model = krl_runtime.load(path, threads=threads, **arguments)
    names = {label: index for index, label in enumerate(model.labels)}
    return lambda data: [names[label] for label, _ in model(data).top]


def scaled(bundle: Bundle) -> Path:
    """Return a bundle whose preprocessing lets the JPEG decoder scale."""
    manifest = bundle.manifest
    preprocessing = replace(manifest.preprocessing, decode_tolerance=6.0)
    files = {name: bundle.file(name) for name in manifest.files}
    path = bundle.path.with_suffix(".scaled.krl")
    return Bundle.create(path, replace(manifest, preprocessing=preprocessing), files, replace=True).path


def quantized(bundle: Bundle) -> Path:
    """Return a bundle with an INT8 variant, calibrated with crops of the photographs, made once."""
    from krl_deploy.config import QuantizeConfig
    from krl_deploy.precision.quantize import quantize

    path = bundle.path.with_suffix(".int8.krl")
    if not path.exists():
        images = bundle.path.with_suffix(".images")
        images.mkdir(exist_ok=True)
        for index, data in enumerate(jpegs(320, 240, 64)):
            (images / f"{index}.jpg").write_bytes(data)
        files = {name: bundle.file(name) for name in bundle.manifest.files}
        made = Bundle.create(path.with_suffix(".new"), bundle.manifest, files, replace=True)
        quantize(QuantizeConfig(bundle=made.path, data=images, max_drop=100))
        made.path.rename(path)
    return path


def agreement(answers: dict[str, Answer], images: Sequence[bytes]) -> dict[str, float]:
    """Return for each contender the share of images with the first one's top-1."""
    first, *_ = answers
    top = {name: [answer(data)[0] for data in images] for name, answer in answers.items()}
    return {name: float(np.mean(np.equal(top[first], values))) for name, values in top.items()}


def throughput(answer: Answer, images: Sequence[bytes], workers: int, seconds: float) -> float:
    """Return images per second with this many threads calling."""
    endless = itertools.cycle(images)
    answer(images[0])
    stop = time.perf_counter() + seconds

    def work() -> int:
        done = 0
        while time.perf_counter() < stop:
            answer(next(endless))
            done += 1
        return done

    begin = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        done = sum(future.result() for future in [pool.submit(work) for _ in range(workers)])
    return done / (time.perf_counter() - begin)


def on_all_cores(
    bundle: Bundle, network: Any, images: Sequence[bytes], cores: int, rounds: int
) -> dict[str, list[float]]:
    """Return images per second, in turn: peers with a thread for each core in one call, krl with a worker each."""
    measured: dict[str, list[float]] = {"torchvision + torch": [], "PIL + numpy + ORT": [], "krl": []}
    peers = {"torchvision + torch": with_torch(network, cores), "PIL + numpy + ORT": with_numpy(bundle, network, cores)}
    krl = with_krl(bundle.path, 1)
    for _ in range(rounds):
        for name, answer in peers.items():
            measured[name].append(throughput(answer, images, 1, 0.7))
        measured["krl"].append(throughput(krl, images, cores, 0.7))
    return measured


def main() -> None:
    parser = options(str(__doc__), rounds=9, cores=2)
    parser.add_argument("--model", default="mobilenet_v3_small", help="a torchvision classifier")
    parser.add_argument("--sizes", nargs="+", default=["640x480", "1920x1440", "4000x3000"], help="of the images")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: of one thread, on a busy machine"
    )
    parser.add_argument("--openvino", action="store_true", help="measure krl on OpenVINO in BF16 as well")
    parser.add_argument("--int8", action="store_true", help="quantize with the photographs, and measure INT8 as well")
    arguments = parser.parse_args()
    bundle, network = make_bundle(arguments.model)
    answers = {
        "torchvision + torch": with_torch(network, 1),
        "PIL + numpy + ORT": with_numpy(bundle, network, 1),
        "krl": with_krl(bundle.path, 1),
        "krl, scaled decoding": with_krl(scaled(bundle), 1),
    }
    if arguments.openvino:
        answers["krl, OpenVINO BF16"] = with_krl(bundle.path, 1, require="openvino-bf16")
    if arguments.int8:
        answers["krl, INT8"] = with_krl(quantized(bundle), 1, variant="int8")
    result: dict[str, Any] = {
        "machine": machine(),
        "model": arguments.model,
        "clock": arguments.clock,
        "one_thread": {},
    }
    lines = []
    for size in arguments.sizes:
        width, height = map(int, size.split("x"))
        images = jpegs(width, height)
        endless = itertools.cycle(images)
        blocks = interleaved(
            {name: lambda answer=answer, it=endless: answer(next(it)) for name, answer in answers.items()},
            rounds=arguments.rounds,
            clock=time.process_time if arguments.clock == "cpu" else time.perf_counter,
        )
        over_torch, over_numpy = (ratios(blocks, name) for name in list(answers)[:2])
        same = agreement(answers, images)
        lines.append(
            f"{arguments.model}, {size}, one thread, {arguments.clock} clock: "
            "ms, times torch, times PIL + numpy + ORT, same top-1"
        )
        result["one_thread"][size] = {
            name: {
                "ms": median(values),
                "over_torch": over_torch[name],
                "over_numpy": over_numpy[name],
                "same_top1": same[name],
            }
            for name, values in blocks.items()
        }
        for name, row in result["one_thread"][size].items():
            lines.append(f"  {name:22}" + "".join(f"{value:9.3f}" for value in row.values()))
    images = jpegs(640, 480)
    rates = on_all_cores(bundle, network, images, arguments.cores, max(3, arguments.rounds // 3))
    medians = {name: median(values) for name, values in rates.items()}
    result["throughput"] = {"cores": arguments.cores, "per_second": medians}
    for name in list(rates)[:2]:
        factor = median(mine / peer for mine, peer in zip(rates["krl"], rates[name], strict=True))
        result["throughput"][f"over {name}"] = factor
        lines.append(f"throughput on {arguments.cores} cores, 640x480: {factor:.2f} times {name}")
    report(result, lines, as_json=arguments.json)


if __name__ == "__main__":
    main()
