"""Cost of starting: importing, from a cold shell to the answer, memory, and the size of the device's wheel."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from _common import CACHE, jpegs, machine, open_bundle, options, report

ROOT = Path(__file__).parents[2]
IMPORTS = {
    "numpy, PIL.Image": "import numpy, PIL.Image",
    "krl_runtime": "import krl_runtime",
    "onnxruntime, PIL.Image": "import onnxruntime, PIL.Image",
    "torch, torchvision": "import torch, torchvision",
}
BARE = """
import io, sys, numpy as np, onnxruntime
from PIL import Image
options = onnxruntime.SessionOptions(); options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1] + "/model.fp32.onnx", options, providers=["CPUExecutionProvider"])
image = Image.open(sys.argv[2]).convert("RGB").resize((224, 224), box=(40, 0, 600, 480))
logits = session.run(None, {"pixels": np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))[None]})[0][0]
print(np.argsort(-logits)[:5])
"""
TORCH = """
import sys, torch, torchvision
from PIL import Image
from torchvision import transforms as t
torch.set_num_threads(1)
network = torchvision.models.get_model(sys.argv[1], weights=None).eval()
transform = t.Compose([t.Resize(256), t.CenterCrop(224), t.ToTensor()])
with torch.inference_mode():
    print(network(transform(Image.open(sys.argv[2]).convert("RGB"))[None]).topk(5))
"""


# A process starts with the largest memory of the one that started it: so that has to be a small one.
LAUNCHER = """
import os, subprocess, sys, time
begin = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print((time.perf_counter() - begin) * 1e3, (usage.ru_utime + usage.ru_stime) * 1e3, usage.ru_maxrss / 1024, status)
"""


def run(line: Sequence[str]) -> dict[str, float]:
    """Return the milliseconds that a process takes, those of the CPU, and its largest resident memory in MiB."""
    # As installed: pip compiles what it installs, and so does the first import from a checkout.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-S", "-c", LAUNCHER, *line]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    ms, cpu_ms, mib, status = map(float, done.stdout.split())
    if status:
        raise SystemExit(f"{line} failed")
    return {"ms": ms, "cpu_ms": cpu_ms, "mib": mib}


def measure(lines: Mapping[str, Sequence[str]], rounds: int) -> dict[str, dict[str, float]]:
    """Run all of them in turn, in random order in each round; return medians."""
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in lines}
    order, names = random.Random(0), list(lines)
    for name in names:
        run(lines[name])
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            taken[name].append(run(lines[name]))
    return {name: {key: median(row[key] for row in rows) for key in rows[0]} for name, rows in taken.items()}


def wheel_bytes() -> int:
    """Return the size of the slim wheel."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            folder,
            str(ROOT / "runtime"),
        ]
        subprocess.run(command, check=True, capture_output=True)
        return next(Path(folder).glob("*.whl")).stat().st_size


def main() -> None:
    parser = options(str(__doc__), rounds=7)
    parser.add_argument("--model", default="mobilenet_v3_small", help="a torchvision classifier")
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.model)
    image = CACHE / "image.jpg"
    image.write_bytes(jpegs(640, 480, 1)[0])
    imports = measure({name: [sys.executable, "-c", code] for name, code in IMPORTS.items()}, arguments.rounds)
    cold = measure(
        {
            "krl-runtime classify": [
                sys.executable, "-m", "krl_runtime", "classify", str(bundle.path), str(image), "--require", "cpu",
                "--threads", "1",
            ],
            "bare onnxruntime": [sys.executable, "-c", BARE, str(bundle.path), str(image)],
            "torch, torchvision": [sys.executable, "-c", TORCH, arguments.model, str(image)],
        },
        arguments.rounds,
    )  # fmt: skip
    base, size = imports["numpy, PIL.Image"], wheel_bytes()
    lines = ["import: ms, of the CPU, MiB; times numpy and PIL by both clocks"]
    for name, row in imports.items():
        both = row["ms"] / base["ms"], row["cpu_ms"] / base["cpu_ms"]
        lines.append(f"  {name:24}" + "".join(f"{value:9.2f}" for value in (*row.values(), *both)))
    lines += ["from a cold shell to the answer: ms, of the CPU, MiB"]
    lines += [f"  {name:24}" + "".join(f"{value:9.1f}" for value in row.values()) for name, row in cold.items()]
    lines += [f"the wheel krl-runtime: {size} bytes"]
    result = {
        "machine": machine(),
        "import": imports,
        "import_ratio": imports["krl_runtime"]["ms"] / base["ms"],
        "import_ratio_cpu": imports["krl_runtime"]["cpu_ms"] / base["cpu_ms"],
        "cold": cold,
        "wheel_bytes": size,
    }
    report(result, lines, as_json=arguments.json)


if __name__ == "__main__":
    main()
