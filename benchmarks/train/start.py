"""The first and the second start on many small files: listing, hashing, checking and decoding them.

::

    python benchmarks/train/start.py --count 100000

JPEG files of 32 x 32 pixels are written into a temporary folder. Each start is a process of its own, and reads both
splits as training does. Images fit in memory, are kept in a file, or are decoded in each epoch, which a start checks
alone. CPU seconds are those of all threads; they say more than the time where other work loads the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

SIDE = 32
LIMITS = {"in memory": (4096, 32768), "in a file": (0, 32768), "decoded": (0, 0)}  # MiB of memory and of disk
DISTINCT = 1000  # images that are encoded; the others differ from them in a comment alone


def main() -> None:
    """Measure, and print a line for each start and its values as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--start", nargs=3, metavar=("DATA", "MEMORY", "DISK"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.start:
        print(json.dumps(start(arguments.start[0], *map(int, arguments.start[1:]))))
        return
    found = []
    with TemporaryDirectory() as folder:
        write(Path(folder) / "data", arguments.count)
        for name, limits in LIMITS.items():
            environment = {**os.environ, "KRL_CACHE_DIR": str(Path(folder) / f"cache {name}")}
            for number in ("first", "second"):
                command = [sys.executable, __file__, "--start", str(Path(folder) / "data"), *map(str, limits)]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                values = json.loads(done.stdout)
                found.append({"images": name, "start": number, **values})
                print(
                    f"{name:<10} {number:<7} {values['seconds']:7.1f} s  {values['cpu_seconds']:7.1f} s of CPU",
                    flush=True,
                )
    print(json.dumps(found))


def write(folder: Path, count: int) -> None:
    """Write ``CLASS/*.jpg`` in ten classes."""
    from io import BytesIO

    random = np.random.default_rng(0)
    encoded = []
    for _ in range(min(count, DISTINCT)):
        coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
        file = BytesIO()
        coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        encoded.append(file.getvalue())
    for label in range(10):
        (folder / f"class{label}").mkdir(parents=True)
    for number in range(count):
        data = encoded[number % len(encoded)]
        comment = f"\xff\xfe\x00\x0a{number:08d}".encode("latin-1")  # a segment of 10 bytes with its length
        (folder / f"class{number % 10}" / f"{number:07d}.jpg").write_bytes(data[:2] + comment + data[2:])


def start(data: str, memory: int, disk: int) -> dict[str, float]:
    """Return the seconds, and those of the CPU, until both splits are there."""
    from krl_runtime.images.preprocessing import Preprocessing
    from krl_train.config import DataConfig
    from krl_train.data import open_source

    begin, cpu = time.perf_counter(), time.process_time()
    source = open_source(DataConfig(data=data, memory_limit_mb=memory, disk_cache_mb=disk))
    sets = {split: source.read(split, Preprocessing(SIDE, SIDE)) for split in ("train", "val")}
    source.describe(sets)
    return {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu}


if __name__ == "__main__":
    main()
