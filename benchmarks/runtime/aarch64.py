"""The slim runtime on a board's processor, without the board: aarch64 Linux under QEMU's user-mode emulation.

::

    apt-get install qemu-user-static mmdebstrap
    python benchmarks/runtime/aarch64.py WORK --bundle classify=digits.krl --bundle generate=gan.krl \
        --bundle restore=sr.krl --images classify=digits/val --images restore=set5 --onnxruntime 1.20.1 1.23.2

Makes a root file system of Debian 12 (Python 3.11), builds the slim wheel of this checkout, and installs it there with
its dependencies from the package index, once for each version of ONNX Runtime. Then ``selftest``, ``evaluate`` and the
task's own command run under emulation, and again natively: the answers have to be the same. Speed means nothing here.

Exit code 1 where a command fails that should not, or answers otherwise than natively.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from krl_runtime.cli.tables import table

_ROOT = Path(__file__).parents[2]
_DEBIAN, _PYTHON = "bookworm", "3.11"  # the newest release whose Python ONNX Runtime 1.20 has wheels for
_PACKAGES = "python3-minimal,python3,libpython3.11-stdlib,libstdc++6,libgomp1"
_GLIBC = range(17, 37)  # versions of glibc up to that of Debian 12, each with a platform tag of its own
_TOLERANCE = 1.0  # levels of 255 that two images of the same model may differ by: sums in another order, then rounding


def main() -> int:
    """Run the commands and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder for the root file system and the wheels")
    parser.add_argument("--bundle", action="append", required=True, metavar="COMMAND=NAME.krl")
    parser.add_argument("--images", action="append", default=[], metavar="COMMAND=FOLDER")
    parser.add_argument("--onnxruntime", nargs="+", required=True, metavar="VERSION")
    options = parser.parse_args()
    work = options.work.resolve()
    bundles, images = (
        {name: Path(path).resolve() for name, path in (item.split("=", 1) for item in given)}
        for given in (options.bundle, options.images)
    )
    root = make_root(work / "root")
    wheel = build_wheel(work)
    rows, good = [], True
    for version in options.onnxruntime:
        site = install(work, wheel, version)
        for command, arguments in commands(bundles, images, work):
            state, seconds = run(root, site, arguments)
            good &= state == "as on this machine"
            rows.append((version, command, state, f"{seconds:.0f}"))
    print(table(("ONNX Runtime", "command", "under QEMU", "seconds"), rows))
    return 0 if good else 1


def make_root(root: Path) -> Path:
    """Make a root file system of aarch64 with Python, without running anything in it."""
    if not (root / "usr" / "bin" / f"python{_PYTHON}").exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        command = ["mmdebstrap", "-q", "--variant=extract", "--architectures=arm64", f"--include={_PACKAGES}"]
        subprocess.run([*command, _DEBIAN, str(root)], check=True)
    return root


def build_wheel(work: Path) -> Path:
    """Build the slim wheel of this checkout."""
    out = work / "wheel"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(_ROOT / "runtime")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (found,) = out.glob("*.whl")
    return found


def install(work: Path, wheel: Path, onnxruntime: str) -> Path:
    """Unpack the slim wheel and its dependencies for aarch64 into a folder of their own."""
    site, wheels = work / f"site-{onnxruntime}", work / f"wheels-{onnxruntime}"
    shutil.rmtree(site, ignore_errors=True)
    tags = [f"--platform=manylinux_2_{minor}_aarch64" for minor in _GLIBC] + ["--platform=manylinux2014_aarch64"]
    command = [sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", "-d", str(wheels)]
    command += [f"--python-version={_PYTHON}", "--implementation=cp", *tags, str(wheel), f"onnxruntime=={onnxruntime}"]
    subprocess.run(command, check=True)
    for file in wheels.glob("*.whl"):
        with zipfile.ZipFile(file) as archive:
            archive.extractall(site)
    return site


def commands(bundles: Mapping[str, Path], images: Mapping[str, Path], work: Path) -> list[tuple[str, list[str]]]:
    """Return the names and the arguments of the commands."""
    found = []
    for name, bundle in bundles.items():
        folder = [str(images[name])] if name in images else []
        found.append((f"selftest {bundle.name}", ["selftest", str(bundle), "--require", "cpu", "--json"]))
        found.append(
            (
                f"evaluate {bundle.name}",
                ["evaluate", str(bundle), *folder, "--backend", "cpu", "--limit", "20", "--json"],
            )
        )
        if name == "classify":
            first = sorted(images[name].rglob("*.*g"))[0]
            found.append((f"classify {bundle.name}", ["classify", str(bundle), str(first), "--json"]))
        if name == "generate":
            found.append(("generate", ["generate", str(bundle), "--seed", "1", "-n", "4", "-o", str(work / "made")]))
        if name == "restore":
            first = sorted(images[name].rglob("*.*g"))[0]
            found.append(("restore", ["restore", str(bundle), str(first), "-o", str(work / "made")]))
    return found


def run(root: Path, site: Path, arguments: Sequence[str]) -> tuple[str, float]:
    """Run a command under QEMU and natively; return how they compare, and the seconds under QEMU."""
    python = ["qemu-aarch64-static", "-cpu", "max", "-L", str(root), str(root / "usr" / "bin" / f"python{_PYTHON}")]
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    begin = time.monotonic()
    emulated = _answer([*python, "-m", "krl_runtime", *arguments], arguments, environment)
    seconds = time.monotonic() - begin
    if isinstance(emulated, str):
        return emulated, seconds
    here = {**os.environ, "PYTHONPATH": str(_ROOT / "runtime")}
    native = _answer([sys.executable, "-m", "krl_runtime", *arguments], arguments, here)
    if isinstance(native, str):
        return f"natively: {native}", seconds
    return ("as on this machine" if _alike(emulated, native) else "another answer than on this machine"), seconds


def _answer(command: Sequence[str], arguments: Sequence[str], environment: Mapping[str, str]) -> Any:
    """Return what a command printed or wrote; a text where it failed."""
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode < 0 or "uncaught target signal" in done.stderr:
        return "crashed at a signal"
    if done.returncode:
        return f"exit code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"
    if "--json" in arguments:
        return json.loads(done.stdout)
    from PIL import Image

    out = Path(arguments[-1])
    images = [list(Image.open(file).convert("RGB").tobytes()) for file in sorted(out.glob("*.png"))]
    shutil.rmtree(out)
    return images


def _alike(one: Any, other: Any) -> bool:
    """Return whether two answers say the same: counts, classes and images; times and sizes of errors may differ."""
    if isinstance(one, list):
        pairs = [(a, b) for first, second in zip(one, other, strict=True) for a, b in zip(first, second, strict=True)]
        return bool(max(abs(a - b) for a, b in pairs) <= _TOLERANCE)
    if "replays" in one:
        return bool(one["passed"] and other["passed"])
    if "results" in one:
        return bool([item["label"] for item in one["results"]] == [item["label"] for item in other["results"]])
    keys = ("count", "correct", "confusion")
    rows = [[[row["metrics"].get(key) for key in keys] for row in each["rows"]] for each in (one, other)]
    psnr = [[row["metrics"].get("psnr") or 0.0 for row in each["rows"]] for each in (one, other)]
    # A hundredth of a dB: INT8 sums in another order round some pixels to the next level.
    return rows[0] == rows[1] and all(abs(a - b) <= 0.01 for a, b in zip(*psnr, strict=True))


if __name__ == "__main__":
    raise SystemExit(main())
