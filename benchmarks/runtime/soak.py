"""Many inferences, and many loads and closes: does memory grow, do handles or threads stay behind?"""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import psutil
from _common import machine, open_bundle, options, report

import krl_runtime


def state(process: psutil.Process) -> dict[str, float]:
    """Return resident memory, file descriptors and threads of this process."""
    gc.collect()
    return {
        "mib": process.memory_info().rss / 2**20,
        "handles": process.num_fds(),
        "threads": process.num_threads(),
    }


def main() -> None:
    parser = options(str(__doc__), inferences=2_000, loads=50, points=8)
    parser.add_argument("--model", default="mobilenet_v3_small", help="a torchvision classifier")
    parser.add_argument("--require", default="cpu", help="kind of backend")
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.model)
    process = psutil.Process()
    image = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    result: dict[str, Any] = {"machine": machine(), "require": arguments.require}
    lines = []

    def follow(what: str, count: int, work: Any) -> None:
        """Do the work, a first tenth uncounted since pools fill up then; note the state at points on the way."""
        for _ in range(max(1, count // 10)):
            work()
        points = [state(process)]
        for part in range(arguments.points):
            for _ in range(count * (part + 1) // arguments.points - count * part // arguments.points):
                work()
            points.append(state(process))
        result[what] = {"count": count, "points": points}
        grown = {key: points[-1][key] - points[0][key] for key in points[0]}
        late = points[-1]["mib"] - points[len(points) // 2]["mib"]
        lines.append(
            f"{count} {what}: {points[0]['mib']:.1f} MiB at first, {grown['mib']:+.1f} at last "
            f"({late:+.1f} in the second half); {grown['handles']:+.0f} handles, {grown['threads']:+.0f} threads"
        )

    with krl_runtime.load(bundle.path, require=arguments.require, threads=1) as model:
        follow("inferences", arguments.inferences, lambda: model(image))

    def load_and_close() -> None:
        with krl_runtime.load(bundle.path, require=arguments.require, threads=1) as loaded:
            loaded(image)

    follow("loads", arguments.loads, load_and_close)
    report(result, lines, as_json=arguments.json)


if __name__ == "__main__":
    main()
