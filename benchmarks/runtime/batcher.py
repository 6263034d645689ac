"""The micro-batcher beside plain calls, at rising load: requests come at random times, from many threads.

A request is an array of the network's size, so that decoding does not hide what is compared. What is measured is the
time from when a request was due to its answer: a queue that grows shows in it.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import numpy as np
from _common import machine, open_bundle, options, report

import krl_runtime

CLIENTS = 16


def offered(answer: Callable[[Any], object], image: Any, rate: float, seconds: float, seed: int) -> dict[str, float]:
    """Offer requests at this rate (per second, exponential gaps); return the achieved rate, p50 and p99 in ms."""
    rng, due, at = random.Random(seed), [], 0.0
    while at < seconds:
        at += rng.expovariate(rate)
        due.append(at)
    begin = time.perf_counter() + 0.05

    def one(moment: float) -> float:
        time.sleep(max(0.0, begin + moment - time.perf_counter()))
        answer(image)
        return time.perf_counter() - begin - moment

    with ThreadPoolExecutor(CLIENTS) as pool:
        times = list(pool.map(one, due))
    spent = time.perf_counter() - begin
    p50, p99 = np.percentile(times, (50, 99)) * 1e3
    return {"offered": rate, "achieved": len(due) / spent, "p50_ms": float(p50), "p99_ms": float(p99)}


def capacity(answer: Callable[[Any], object], image: Any) -> float:
    """Return how many requests per second one caller gets answered."""
    calls, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < 0.5:
        answer(image)
        calls += 1
    return calls / (time.perf_counter() - begin)


def busy(count: int) -> Sequence[subprocess.Popen[bytes]]:
    """Start processes that keep cores busy."""
    return [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]


def main() -> None:
    parser = options(str(__doc__), rounds=3, seconds=1, busy=0, threads=1, workers=2, max_batch=4)
    parser.add_argument("--model", default="mobilenet_v3_small", help="a torchvision classifier")
    parser.add_argument("--loads", nargs="+", type=float, default=[0.3, 0.6, 0.9, 1.2], help="shares of the capacity")
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.model)
    others = busy(arguments.busy)
    rows: dict[str, list[dict[str, float]]] = {}
    try:
        with krl_runtime.load(bundle.path, require="cpu", threads=arguments.threads) as model:
            image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
            limit = capacity(model, image)
            for share in arguments.loads:
                for turn in range(arguments.rounds):
                    rate = limit * share
                    plain = offered(model, image, rate, arguments.seconds, turn)
                    rows.setdefault(f"{share:g} plain", []).append(plain)
                    settings = {"max_batch": arguments.max_batch, "workers": arguments.workers}
                    with model.batched(max_delay=0.002, **settings) as batcher:
                        batched = offered(batcher, image, rate, arguments.seconds, turn)
                    rows.setdefault(f"{share:g} batched", []).append(batched)
    finally:
        for process in others:
            process.kill()
    result = {name: {key: median(row[key] for row in runs) for key in runs[0]} for name, runs in rows.items()}
    lines = [f"capacity of one caller: {limit:.0f}/s; load, way: offered/s, achieved/s, p50 ms, p99 ms"]
    lines += [f"  {name:14}" + "".join(f"{value:10.1f}" for value in row.values()) for name, row in result.items()]
    whole = {"machine": machine(), "capacity": limit, "busy_processes": arguments.busy, "loads": result}
    report(whole, lines, as_json=arguments.json)


if __name__ == "__main__":
    main()
