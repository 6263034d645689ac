"""A server under many clients for a long time: is each response that of its request, does memory grow?

``python benchmarks/runtime/soak_server.py --minutes 10``: 8 threads with ``tritonclient`` send tensors, images, and
requests that must be refused. Each response is compared with ONNX Runtime's output for the same pixels.
"""

from __future__ import annotations

import argparse
import http.client
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psutil
import tritonclient.http as triton
from _common import machine, open_bundle
from tritonclient.utils import InferenceServerException

TENSORS = 32  # different requests; each has its own expected output
# Of ten requests: seven good ones, three that are refused. Each names its status.
BAD = ((b"abc", {}, 400), (b"abc", {"Content-Encoding": "br"}, 415), (b"{}", {"Content-Type": "multipart/x"}, 415))


class Load:
    """The requests of all threads, and what became of them."""

    def __init__(self, address: str, name: str, pixels: Any, expected: Any, end: float) -> None:
        self.address, self.name, self.pixels, self.expected, self.end = address, name, pixels, expected, end
        self.input_name = self.output_name = ""
        self.seconds: list[float] = []
        self.refused = 0
        self.wrong: list[str] = []

    def work(self, seed: int) -> None:
        """Send requests until the end."""
        rng = np.random.default_rng(seed)
        client = triton.InferenceServerClient(self.address)
        while time.monotonic() < self.end:
            kind = int(rng.integers(10))
            try:
                if kind < 7:
                    self.good(client, int(rng.integers(TENSORS)), binary=bool(rng.integers(2)))
                else:
                    self.bad(*BAD[kind - 7])
            except (InferenceServerException, OSError, http.client.HTTPException) as error:
                self.wrong.append(f"{type(error).__name__}: {error}")

    def good(self, client: Any, index: int, *, binary: bool) -> None:
        """Send a tensor, and compare the response with its own expected output."""
        tensor = triton.InferInput(self.input_name, [1, *self.pixels.shape[1:]], "UINT8")
        tensor.set_data_from_numpy(self.pixels[index : index + 1], binary_data=binary)
        begin = time.perf_counter()
        result = client.infer(self.name, [tensor], request_id=str(index))
        self.seconds.append(time.perf_counter() - begin)
        logits = result.as_numpy(self.output_name)[0]
        if result.get_response()["id"] != str(index) or not np.allclose(logits, self.expected[index], atol=1e-3):
            self.wrong.append(f"request {index} has the response of another")

    def bad(self, body: bytes, headers: dict[str, str], status: int) -> None:
        """Send what must be refused."""
        connection = http.client.HTTPConnection(self.address, timeout=60)
        connection.request("POST", "/classify", body, headers)
        found = connection.getresponse()
        found.read()
        connection.close()
        self.refused += 1
        if found.status != status:
            self.wrong.append(f"{headers} has status {found.status}, not {status}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--max-batch", type=int, default=1)
    parser.add_argument("--model", default="mobilenet_v3_small", help="a torchvision classifier")
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.model)
    manifest = bundle.manifest
    pixels = np.random.default_rng(0).integers(0, 256, (TENSORS, *manifest.preprocessing.shape), dtype=np.uint8)
    session = onnxruntime.InferenceSession(str(bundle.path / "model.fp32.onnx"), providers=["CPUExecutionProvider"])
    expected = np.concatenate([session.run(None, {manifest.inputs[0].name: row[None]})[0] for row in pixels])
    command = [sys.executable, "-m", "krl_runtime", "serve", str(bundle.path), "--port", "0", "--require", "cpu"]
    command += ["--variant", "fp32", "--max-batch", str(arguments.max_batch)]
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            while not (found := re.search(r"listening on http://(\S+)", Path(f"/dev/fd/{log.fileno()}").read_text())):
                time.sleep(0.1)
            load = Load(found[1], bundle.stem, pixels, expected, time.monotonic() + 60 * arguments.minutes)
            load.input_name, load.output_name = manifest.inputs[0].name, manifest.outputs[0].name
            threads = [threading.Thread(target=load.work, args=(seed,)) for seed in range(arguments.threads)]
            for thread in threads:
                thread.start()
            server, points = psutil.Process(process.pid), []
            while time.monotonic() < load.end:
                time.sleep(min(60 * arguments.minutes / 8, max(0.1, load.end - time.monotonic())))
                points.append((server.memory_info().rss / 2**20, server.num_fds(), server.num_threads()))
            for thread in threads:
                thread.join()
        finally:
            process.terminate()
    p50, p99 = np.percentile(load.seconds, [50, 99]) * 1e3
    print(machine())
    print(f"{len(load.seconds)} good requests, {load.refused} refused, {len(load.wrong)} wrong: {load.wrong[:3]}")
    print(f"p50 {p50:.1f} ms, p99 {p99:.1f} ms; exit code {process.returncode}")
    for mib, handles, count in points:
        print(f"{mib:.1f} MiB, {handles} handles, {count} threads")
    sys.exit(1 if load.wrong or process.returncode else 0)


if __name__ == "__main__":
    main()
