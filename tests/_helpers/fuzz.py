"""Mutated images, manifests and ONNX files, given to the runtime in a process of its own.

``run`` starts the process with limits on memory and time; it answers with what happened to each mutant. A native
crash, a hang and a memory limit that is hit end the process, and are seen as such.
"""

from __future__ import annotations

import copy
import faulthandler
import io
import json
import os
import random
import re
import struct
import subprocess
import sys
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

ADDRESS_SPACE = 6 * 2**30


def run(kind: str, folder: Path, *, count: int, seed: int, seconds: int = 20) -> dict[str, Any]:
    """Try ``count`` mutants in a process of its own, each for at most ``seconds``.

    Returns:
        ``outcomes`` (how many gave which), ``failures`` (what is neither an answer nor a clean error), ``slowest`` in
        seconds, ``peak_mib`` of the process' memory.
    """
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "_helpers.fuzz", kind, str(folder), str(count), str(seed), str(seconds)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        timeout=500,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout[-1000:]}\n{done.stderr[-4000:]}"
    return json.loads(done.stdout.splitlines()[-1])


# Mutants


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Change a few places of some bytes, or cut, repeat or move some."""
    values = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        place = rng.randrange(len(values))
        # Headers, where a change does most, get as many as all that follows.
        if rng.random() < 0.5:
            place = rng.randrange(min(len(values), 200))
        length = rng.choice((1, 2, 4, 8, 64))
        match rng.randrange(7):
            case 0:
                values[place] ^= 1 << rng.randrange(8)
            case 1:
                values[place] = rng.randrange(256)
            case 2:
                edge = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80"))
                values[place : place + length] = edge * len(values[place : place + length])
            case 3:
                del values[place : place + length]
            case 4:
                values[place:place] = values[place : place + length]
            case 5:
                values[place:place] = rng.randbytes(length)
            case _:
                del values[max(place, 1) :]
        if not values:
            break
    return bytes(values)


def with_right_sums(png: bytes) -> bytes:
    """Correct the checksums of a PNG's chunks, so that a mutant gets past them."""
    parts, place = [png[:8]], 8
    while place + 12 <= len(png):
        (length,) = struct.unpack_from(">I", png, place)
        if place + 12 + length > len(png):
            break
        content = png[place + 4 : place + 8 + length]
        parts.append(png[place : place + 4] + content + struct.pack(">I", zlib.crc32(content)))
        place += 12 + length
    return b"".join(parts) + png[place:]


def png(width: int, height: int, *, bits: int = 8, color: int = 0, extra: bytes = b"", rows: int = -1) -> bytes:
    """Return a black PNG, small as a file whatever its size; nothing of it is ever held unpacked.

    Args:
        width: In pixels.
        height: In pixels.
        bits: For each channel.
        color: 0 gray, 2 RGB, 6 RGBA.
        extra: Further chunks.
        rows: Bytes of packed rows, if others than the size says.
    """
    left = ((width * {0: 1, 2: 3, 6: 4}[color] * bits + 7) // 8 + 1) * height if rows < 0 else rows
    packer, parts = zlib.compressobj(9), []
    while left > 0:
        parts.append(packer.compress(bytes(min(left, 1 << 20))))
        left -= 1 << 20
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    data = chunk(b"IDAT", b"".join(parts) + packer.flush())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + data + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return one chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def jpeg_that_says(width: int, height: int) -> bytes:
    """Return a small JPEG whose header has another size."""
    data = bytearray(seeds()[0])
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def gif_that_says(width: int, height: int) -> bytes:
    """Return a small GIF whose screen has another size."""
    file = io.BytesIO()
    Image.new("L", (30, 30)).save(file, "GIF")
    data = bytearray(file.getvalue())
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def packed_chunk(kind: bytes, head: bytes) -> bytes:
    """Return a chunk of a PNG that unpacks to 300 MiB."""
    return chunk(kind, head + zlib.compress(bytes(300 * 2**20), 9))


BOMBS: dict[str, Callable[[], bytes]] = {
    "3.6 gigapixels": lambda: png(60_000, 60_000, rows=10),
    "largest gray": lambda: png(11_500, 11_500),
    "largest RGBA": lambda: png(11_500, 11_500, color=6),
    "largest 16 bits": lambda: png(11_500, 11_500, bits=16),
    "largest 1 bit": lambda: png(11_500, 11_500, bits=1),
    "text": lambda: png(20, 20, extra=packed_chunk(b"zTXt", b"a\0\0")),
    "color profile": lambda: png(20, 20, extra=packed_chunk(b"iCCP", b"a\0\0")),
    "international text": lambda: png(20, 20, extra=packed_chunk(b"iTXt", b"a\0\1\0\0\0")),
    "more rows than the size says": lambda: png(20, 20, rows=1_000_000_000),
    "many chunks": lambda: png(20, 20, extra=chunk(b"tEXt", b"a\0b") * 100_000),
    "JPEG of 4.3 gigapixels": lambda: jpeg_that_says(65_500, 65_500),
    "GIF of 4.3 gigapixels": lambda: gif_that_says(65_535, 65_535),
}
"""Small files that ask for much memory or time."""


def explode(folder: Path) -> Callable[[random.Random], str]:
    """Classify one bomb after the other; of those that are accepted, the network sees black."""
    from _helpers.bundles import TinyNet, write_bundle
    from krl_runtime import Preprocessing, load

    spec = Preprocessing(12, 10)
    model, net = load(write_bundle(folder / "a.krl", preprocessing=spec).path, threads=1), TinyNet.random(spec, 4)
    expected = net.logits(np.zeros((1, *spec.shape), np.uint8))[0]
    left = list(BOMBS.items())

    def attempt(rng: random.Random) -> str:
        name, make = left.pop(0)
        np.testing.assert_allclose(model(make()).logits, expected, atol=1e-4, err_msg=name)
        return name

    return attempt


def seeds() -> list[bytes]:
    """Images of many kinds, JPEG and PNG."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((40, 30), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    deep = Image.fromarray(rng.integers(0, 65536, (20, 20), dtype=np.uint16))
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (coarse, "JPEG", {"quality": 90}),
        (coarse, "JPEG", {"progressive": True, "exif": exif}),
        (coarse, "JPEG", {"subsampling": 2, "optimize": True, "comment": b"a comment"}),
        (coarse.convert("L"), "JPEG", {}),
        (coarse.convert("CMYK"), "JPEG", {}),
        (coarse, "PNG", {}),
        (coarse.convert("RGBA"), "PNG", {"exif": exif}),
        (coarse.convert("P"), "PNG", {"transparency": 3}),
        (coarse.convert("1"), "PNG", {}),
        (deep, "PNG", {"icc_profile": b"not a profile" * 5}),
    ]
    encoded = []
    for image, form, options in kinds:
        file = io.BytesIO()
        image.save(file, form, **options)
        encoded.append(file.getvalue())
    return encoded


ODD = (
    None, True, False, 0, -1, 1, 2, 16384, 2**31, 2**63, 10**400, 0.0, -0.5, 1e308, "", "x", "fp32", "batch", "../x",
    "/etc/passwd", "a\0b", "model.fp32.onnx", "manifest.json", "\ud800", [], {}, [[]], [None], {"": None},
    [3, 12, 10], [10**9] * 4, "9" * 5000,
)  # fmt: skip


def mutate_json(values: Any, rng: random.Random) -> Any:
    """Change one to three nodes of a tree: another value, a missing or doubled one, another key, two exchanged."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(values))
        holder, key = rng.choice(places)
        match rng.randrange(6):
            case 0 if isinstance(holder, dict):
                holder[rng.choice(("x", "", "name", "file", "sha256"))] = holder.pop(key)
            case 1:
                del holder[key]
            case 2:
                other, name = rng.choice(places)
                if name in other if isinstance(other, dict) else name < len(other):
                    holder[key] = copy.deepcopy(other[name])
            case 3 if isinstance(holder, list):
                holder.insert(key, holder[key])
            case _:
                holder[key] = copy.deepcopy(rng.choice(ODD))
        if not values:
            break
    return values


def _places(values: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(values) if isinstance(values, dict) else range(len(values)):
        yield values, key
        if isinstance(values[key], dict | list):
            yield from _places(values[key])


# What a mutant must do: return a word for a right answer, raise KrlError for a clean refusal


def images(folder: Path) -> Callable[[random.Random], str]:
    """Decode and classify; the pixels and logits must be those of Pillow's decoder and of numpy's network."""
    from _helpers.bundles import TinyNet, write_bundle
    from krl_runtime import Preprocessing, load

    spec = Preprocessing(12, 10)
    model, net = load(write_bundle(folder / "a.krl", preprocessing=spec).path, threads=1), TinyNet.random(spec, 4)
    originals = seeds()

    def attempt(rng: random.Random) -> str:
        data = mutate(rng.choice(originals), rng)
        if data.startswith(b"\x89PNG") and rng.random() < 0.7:
            data = with_right_sums(data)
        answer = model(data)
        image = Image.open(io.BytesIO(data))
        if not image.mode.startswith("I"):  # those are scaled, which Pillow does not do
            image.load()
            pixels = spec(np.asarray(ImageOps.exif_transpose(image).convert("RGB")))
            np.testing.assert_allclose(answer.logits, net.logits(pixels[None])[0], atol=1e-3)
        assert abs(sum(score for _, score in answer.top) - 1) < 1e-9
        return "answered"

    return attempt


def manifests(folder: Path) -> Callable[[random.Random], str]:
    """Forge manifests whose digest is right; whatever loads must compute what it says."""
    from _helpers.bundles import TinyNet, write_bundle
    from krl_runtime import load
    from krl_runtime.files import sha256_bytes

    bundle = write_bundle(folder / "a.krl", variants=("fp32", "fp16", "int8"), default_variants={"cpu": "int8"})
    file = bundle.path / "manifest.json"
    original = file.read_bytes()
    net = TinyNet.random(bundle.manifest.preprocessing, 4)
    image = seeds()[0]

    def attempt(rng: random.Random) -> str:
        if rng.random() < 0.1:
            file.write_bytes(mutate(original, rng))
        else:
            values = mutate_json(json.loads(original), rng)
            if "digest" in values:
                values["digest"] = ""
                text = json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
                values["digest"] = sha256_bytes(text + b"\n")
            text = json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
            file.write_bytes(text + b"\n")
        with load(bundle.path, threads=1) as model:
            answer = model(image)
            expected = net.logits(model.preprocessing(image)[None])[0]
        np.testing.assert_allclose(answer.logits, expected, atol=0.03)  # the variants differ by 0.02
        assert answer.label == model.labels[int(expected.argmax())]
        return "answered"

    return attempt


def onnx(folder: Path, *, forged: bool) -> Callable[[random.Random], str]:
    """Change an ONNX file; ``forged``: and the manifest with it, so that its hash is right."""
    from _helpers.bundles import write_bundle
    from krl_runtime import Bundle, load
    from krl_runtime.bundle import FileEntry
    from krl_runtime.files import sha256_bytes

    bundle = write_bundle(folder / "a.krl")
    file = bundle.path / "model.fp32.onnx"
    original = file.read_bytes()
    image = seeds()[0]

    def attempt(rng: random.Random) -> str:
        data = mutate(original, rng)
        while data == original:
            data = mutate(original, rng)
        file.write_bytes(data)
        if forged:
            entry = FileEntry(sha256_bytes(data), len(data))
            manifest = replace(bundle.manifest, files={**bundle.manifest.files, file.name: entry})
            (bundle.path / "manifest.json").write_bytes(manifest.to_bytes())
        with load(Bundle.open(bundle.path).path, threads=1) as model:
            model(image)  # which answer is right only the file could say
        return "answered"

    return attempt


KINDS: dict[str, Callable[[Path], Callable[[random.Random], str]]] = {
    "images": images,
    "manifests": manifests,
    "onnx": lambda folder: onnx(folder, forged=False),
    "bombs": explode,
    "forged-onnx": lambda folder: onnx(folder, forged=True),
    # what must not happen
    "error": lambda folder: lambda rng: str(1 // 0),
    "crash": lambda folder: lambda rng: os.abort(),
    "hang": lambda folder: lambda rng: str(time.sleep(60)),
    "memory": lambda folder: lambda rng: str(len(bytes(ADDRESS_SPACE))),
}


def main(kind: str, folder: Path, count: int, seed: int, seconds: int) -> None:
    import resource

    from krl_runtime import KrlError
    from krl_runtime.device.bench import peak_memory_mib

    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    attempt = KINDS[kind](folder)
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    slowest = 0.0
    for number in range(count):
        rng = random.Random(seed * 1_000_000 + number)
        (folder / "current").write_text(str(number))
        faulthandler.dump_traceback_later(seconds, exit=True)
        begin = time.monotonic()
        try:
            outcome = attempt(rng)
        except KrlError as error:
            outcome = type(error).__name__
            if "MemoryError" in str(error) or not re.search(r"\w", str(error)):
                failures.append(f"mutant {number}: {error}")
        except Exception:
            outcome = "failed"
            failures.append(f"mutant {number}: {traceback.format_exc()[-1500:]}")
        slowest = max(slowest, time.monotonic() - begin)
        faulthandler.cancel_dump_traceback_later()
        outcomes[outcome] += 1
    peak = peak_memory_mib()
    print(json.dumps({"outcomes": outcomes, "failures": failures[:20], "slowest": slowest, "peak_mib": peak}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
