"""Hostile inputs, each in a process of its own: bytes in, the memory and the time that they cost, and the response.

``python benchmarks/runtime/attacks.py`` prints the table of docs/security.md. To add an attack, add an ``Attack`` to
``ATTACKS``: its input is made first, and only its response is measured.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import re
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image

from krl_runtime import KrlError, Preprocessing
from krl_runtime.bundle import TensorSpec
from krl_runtime.serve import protocol
from krl_runtime.serve.encoding import unpack

MIB = 2**20
UPLOAD = 16 * MIB  # the largest body that the server accepts by default


@dataclass(frozen=True)
class Attack:
    """One hostile input.

    Attributes:
        group: Which part of krl it is given to; a heading of the table.
        name: What it is.
        make: Makes the input; not measured.
        respond: Gives the input to krl; returns the response, or raises ``KrlError``.
    """

    group: str
    name: str
    make: Callable[[], Any]
    respond: Callable[[Any], str]


# Images


def decode(data: bytes) -> str:
    """Decode an image as a classifier does."""
    return f"decoded to {Preprocessing(224, 224)(data).shape}"


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))


def png(
    width: int, height: int, before: bytes = b"", *, interlaced: bool = False, part: int = 0, rows: int = 0
) -> bytes:
    """Return a black gray PNG, or some rows of it, with chunks before the pixels, and these in chunks of some bytes."""
    packer, left, packed = zlib.compressobj(9), (width + 1) * (rows or height), []
    while left > 0:
        packed.append(packer.compress(bytes(min(left, MIB))))
        left -= MIB
    data = b"".join(packed) + packer.flush()
    part = part or len(data)
    pixels = b"".join(chunk(b"IDAT", data[start : start + part]) for start in range(0, len(data), part))
    head = chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, 8, 0, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + head + before + pixels + chunk(b"IEND", b"")


def jpeg_of_scans(width: int, height: int, scans: int) -> bytes:
    """Return a progressive gray JPEG whose last scan is repeated."""
    data = encoded(Image.new("L", (width, height), 128), "JPEG", progressive=True)
    last = [found.start() for found in re.finditer(b"\xff\xda", data)][-1]
    end = data.rindex(b"\xff\xd9")
    return data[:end] + data[last:end] * scans + data[end:]


def jpeg_with(segments: bytes) -> bytes:
    data = encoded(Image.new("L", (64, 64)), "JPEG")
    return data[:2] + segments + data[2:]


def overlapping_tags(size: int, tags: int) -> bytes:
    """Return TIFF tags that all have the same bytes, of which there are ``size``."""
    entries = b"".join(struct.pack("<HHLL", 1000 + tag, 7, size, 8) for tag in range(tags))
    return b"II*\0" + struct.pack("<L", 8 + size) + bytes(size) + struct.pack("<H", tags) + entries + bytes(4)


def tiff(width: int, height: int, *, tags: dict[int, tuple[int, ...]], data: bytes, compression: int = 8) -> bytes:
    """Return a gray TIFF with such tags besides; ``data`` begins at byte 8."""
    tags = {256: (width,), 257: (height,), 258: (8,), 259: (compression,), 262: (1,), 277: (1,), **tags}
    entries, values, place = b"", b"", 8 + len(data) + 6 + 12 * len(tags)
    for tag, numbers in sorted(tags.items()):
        packed = struct.pack(f"<{len(numbers)}L", *numbers)
        where = packed if len(numbers) == 1 else struct.pack("<L", place + len(values))
        values += packed if len(numbers) > 1 else b""
        entries += struct.pack("<HHL", tag, 4, len(numbers)) + where
    return (
        b"II*\0" + struct.pack("<L", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4) + values
    )


def frames(kind: str, count: int) -> bytes:
    """Return an animation of many small frames."""
    one, other = Image.new("RGB", (16, 16)), Image.new("RGB", (16, 16), "red")
    return encoded(one, kind, save_all=True, append_images=[other, one] * (count // 2), duration=40)


def webp_canvas(width: int, height: int) -> bytes:
    """Return an animation that says it has a canvas of this size."""
    data = bytearray(frames("WEBP", 4))
    data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def bmp_rle(width: int) -> bytes:
    """Return a run-length coded BMP that skips 255 rows of a wide image."""
    data = bytearray(encoded(Image.new("P", (4, 4)), "BMP"))
    struct.pack_into("<ll", data, 18, width, 1)
    struct.pack_into("<L", data, 30, 1)
    return bytes(data[: struct.unpack_from("<L", data, 10)[0]]) + b"\0\2\xff\xff" * 64 + b"\0\1"


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"
SIDE = 11_500  # of the largest square image

IMAGES: dict[str, Callable[[], bytes]] = {
    "EPS, which starts Ghostscript": lambda: EPS,
    "PDF": lambda: b"%PDF-1.7\n" + bytes(100),
    "PNG that says 60,000 x 60,000": lambda: png(60_000, 60_000, rows=1),
    "PNG of 132 megapixels (accepted)": lambda: png(SIDE, SIDE),
    "PNG of 132 megapixels, interlaced (accepted, its end is missing)": lambda: png(SIDE, SIDE, interlaced=True),
    "PNG with 1.3 million empty chunks": lambda: png(8, 8, chunk(b"prIv", b"") * (UPLOAD // 12)),
    "PNG with pixels in chunks of 1 byte": lambda: png(SIDE, SIDE, part=1),
    "PNG with a text of 300 MiB": lambda: png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(300 * MIB), 9))),
    "PNG with a profile of 300 MiB": lambda: png(8, 8, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(300 * MIB), 9))),
    "PNG whose EXIF tags overlap": lambda: png(8, 8, chunk(b"eXIf", overlapping_tags(8 * MIB, 4000))),
    "JPEG of 4,000 x 3,000 with 18,000 scans": lambda: jpeg_of_scans(4000, 3000, 18_000),
    "JPEG of 4,000 x 3,000 with 100 scans (accepted)": lambda: jpeg_of_scans(4000, 3000, 94),
    "JPEG with 4 million segments": lambda: jpeg_with(segment(0xFE, b"") * (UPLOAD // 4)),
    "JPEG with 16 MiB of fill bytes": lambda: jpeg_with(b"\xff" * UPLOAD),
    "JPEG whose EXIF tags overlap": lambda: jpeg_with(segment(0xE1, b"Exif\0\0" + overlapping_tags(30_000, 2800))),
    "JPEG whose index of images overlaps": lambda: jpeg_with(segment(0xE2, b"MPF\0" + overlapping_tags(30_000, 2800))),
    "GIF with 8 million comment blocks": lambda: (
        encoded(Image.new("L", (8, 8)), "GIF")[:13] + b"!\xfe" + b"\1a" * (UPLOAD // 2) + b"\0;"
    ),
    "GIF of 10,000 frames (accepted)": lambda: frames("GIF", 10_000),
    "WebP of 10,000 frames (accepted)": lambda: frames("WEBP", 10_000),
    "WebP that says 16,384 x 16,384": lambda: webp_canvas(16_384, 16_384),
    "TIFF whose tags overlap": lambda: overlapping_tags(8 * MIB, 4000),
    "TIFF of 8 x 8 in one tile of 60,000 x 60,000": lambda: tiff(
        8, 8, tags={322: (60_000,), 323: (60_000,), 324: (8,), 325: (9,)}, data=zlib.compress(b"")
    ),
    "TIFF with 1 million strips": lambda: tiff(
        8, 8, tags={273: (8,) * 10**6, 279: (1,) * 10**6, 278: (1,)}, data=b"a", compression=1
    ),
    "TIFF whose strips are one JPEG with 5,000 scans": lambda: (
        lambda data: tiff(
            1000, 10_000, tags={273: (8,) * 10, 279: (len(data),) * 10, 278: (1000,)}, data=data, compression=7
        )
    )(jpeg_of_scans(1000, 1000, 5000)),
    "BMP that is run-length coded": lambda: bmp_rle(100_000_000),
    "PPM in text with 500,000 comments": lambda: b"P2\n8 8\n255\n" + b"#\n" * 500_000,
    "PGM with 100 levels": lambda: b"P5\n4000 4000\n100\n" + bytes(4000 * 4000),
    "JPEG with 1.3 million parts of Photoshop's": lambda: jpeg_with(
        segment(0xED, b"Photoshop 3.0\0" + (b"8BIM" + bytes(8)) * 5400) * 256
    ),
    "PGM with a comment of 16 MiB": lambda: b"P5\n#" + b"a" * UPLOAD + b"\n8 8\n255\n" + bytes(64),
}

# Bundles


def load_model(data: bytes) -> str:
    """Open an ONNX file as a bundle's."""
    from krl_runtime.backends.onnxruntime import open_session

    open_session(data, cuda=False, threads=1)
    return "loaded"


def onnx_of(operator: str, *inputs: list[int]) -> bytes:
    """Return an ONNX file of one node that makes a tensor of constants."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    names = [f"i{index}" for index in range(len(inputs))]
    node = helper.make_node(operator, names, ["y"])
    constants = [numpy_helper.from_array(np.asarray(v, np.int64), name) for name, v in zip(names, inputs, strict=True)]
    total = helper.make_node("ReduceSum", ["y"], ["z"])
    output = helper.make_tensor_value_info("z", TensorProto.UNDEFINED, None)
    graph = helper.make_graph([node, total], "g", [], [output], constants)
    kind = TensorProto.FLOAT if operator == "ConstantOfShape" else TensorProto.INT64
    graph.output[0].type.tensor_type.elem_type = kind
    model = helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def onnx_outside() -> bytes:
    """Return an ONNX file with weights in another file."""
    from onnx import TensorProto, load_from_string

    model = load_from_string(onnx_of("Identity", [1]))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return bytes(model.SerializeToString())


MODELS: dict[str, Callable[[], bytes]] = {
    "ONNX: ConstantOfShape of 4 GiB": lambda: onnx_of("ConstantOfShape", [2**30]),
    "ONNX: Expand to 8 GiB": lambda: onnx_of("Expand", [1], [2**15, 2**15]),
    "ONNX: Tile to 8 GiB": lambda: onnx_of("Tile", [1], [2**30]),
    "ONNX: weights in /etc/passwd": onnx_outside,
    "ONNX: 16 MiB of empty fields": lambda: b"\x0a\x00" * (UPLOAD // 2),
}

# Requests of the server's protocol, parsed as the server does


def tensors(**changes: Any) -> bytes:
    """Return a request of one image; changes to its tensor, or to the request if they are ``outputs``."""
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": [1, 3, 32, 32], "data": [0] * 3072}
    outputs = changes.pop("outputs", [])
    return json.dumps({"inputs": [{**tensor, **changes}], "outputs": outputs}).encode()


def parse_request(body: bytes) -> str:
    """Unpack a body where it is compressed, and read it."""
    inputs, outputs = [TensorSpec("pixels", "uint8", ("n", 3, 32, 32))], [TensorSpec("logits", "float32", ("n", 10))]
    encoding = "gzip" if body.startswith(b"\x1f\x8b") else "identity"
    request = protocol.parse(unpack(body, encoding, UPLOAD), None, inputs, outputs)
    return f"read, {len(request.inputs)} inputs"


def nested(text: bytes) -> bytes:
    """Return a request that is filled up with parts."""
    return b'{"inputs": [' + text * ((UPLOAD - 100) // len(text)) + text.rstrip(b",") + b"]}"


REQUESTS: dict[str, Callable[[], bytes]] = {
    "strings in data, padded by NumPy to 380 MiB": lambda: tensors(
        shape=[1, 10_001], data=["a" * 10_000] + ["b"] * 10_000
    ),
    "one output 6,000 times": lambda: tensors(outputs=[{"name": "logits"}] * 6000),
    "shape of 70 dimensions": lambda: tensors(shape=[1] * 70),
    "shape with a product of 2^248": lambda: tensors(shape=[2**31 - 1] * 8),
    "number of 4,000 digits": lambda: tensors(data=[10**4000] + [0] * 3071),
    "16 MiB of empty lists": lambda: nested(b"[],"),
    "16 MiB of empty objects": lambda: nested(b"{},"),
    "16 MiB of short strings": lambda: nested(b'"ab",'),
    "16 MiB of numbers (accepted JSON)": lambda: nested(b"999,"),
    "100,000 open brackets": lambda: b"[" * 100_000,
    "gzip bomb of 1 GiB": lambda: gzip.compress(bytes(2**30), 6),
    "gzip of 100 layers": lambda: layers(100),
}


def layers(count: int) -> bytes:
    """Return a body that is compressed so many times."""
    body = tensors()
    for _ in range(count):
        body = gzip.compress(body)
    return body


ATTACKS = [
    *(Attack("image", name, make, decode) for name, make in IMAGES.items()),
    *(Attack("bundle", name, make, load_model) for name, make in MODELS.items()),
    *(Attack("request", name, make, parse_request) for name, make in REQUESTS.items()),
]


# Measuring


def peak_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


def measure(attack: Attack) -> dict[str, Any]:
    """Return bytes, MiB more at the peak, seconds, and the response, in this process."""
    given = attack.make()
    warm_up(attack)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins again
    before, begin = peak_mib(), perf_counter()
    try:
        response = attack.respond(given)
    except KrlError as error:
        response = f"{type(error).__name__}: {error}"
    return {
        "group": attack.group,
        "name": attack.name,
        "bytes": len(given) if isinstance(given, bytes) else None,
        "seconds": perf_counter() - begin,
        "mib": peak_mib() - before,
        "response": response,
    }


def warm_up(attack: Attack) -> None:
    """Import what the response needs, so that imports are not measured."""
    if attack.group == "image":
        decode(encoded(Image.new("L", (8, 8)), "PNG"))
    elif attack.group == "bundle":
        load_model(onnx_of("Identity", [1]))
    else:
        parse_request(tensors())


def shortened(text: str, most: int = 90) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most].rpartition(' ')[0]} …"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of names; by default all attacks")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument("--here", type=int, help=argparse.SUPPRESS)  # the attack of a child process
    arguments = parser.parse_args()
    if arguments.here is not None:
        print(json.dumps(measure(ATTACKS[arguments.here])))
        return
    if not arguments.json:
        print("| | input | bytes in | MiB more | seconds | response |\n|---|---|---|---|---|---|")
    for index, attack in enumerate(ATTACKS):
        if arguments.names and not any(
            name in (attack.name, attack.group) or name in attack.name for name in arguments.names
        ):
            continue
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(Path(__file__).resolve()), "--here", str(index)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if done.returncode:
            print(f"| {attack.group} | {attack.name} | | | | **exit code {done.returncode}** {done.stderr[-200:]} |")
            continue
        found = json.loads(done.stdout)
        if arguments.json:
            print(json.dumps(found))
            continue
        size = "" if found["bytes"] is None else f"{found['bytes']:,}"
        row = (found["group"], found["name"], size, f"{found['mib']:.0f}", f"{found['seconds']:.2f}", found["response"])
        print("| " + " | ".join(shortened(text) for text in row) + " |", flush=True)


if __name__ == "__main__":
    main()
