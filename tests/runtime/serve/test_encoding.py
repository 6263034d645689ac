"""Compressed bodies: read as they were, within the bound of plain ones."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib

import numpy as np
import pytest

from krl_runtime import UsageError
from krl_runtime.serve.encoding import TooLargeError, check_encoding, unpack

PIXELS = np.random.default_rng(3).integers(0, 256, (2, 3, 12, 10), dtype=np.uint8)
QUESTION = json.dumps(
    {"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": list(PIXELS.shape), "data": PIXELS.ravel().tolist()}]}
).encode()


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


PACKERS = [
    ("gzip", gzip.compress),
    ("GZIP", gzip.compress),
    ("x-gzip", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", lambda body: zlib.compress(body, 0)),
    ("deflate", raw_deflate),
    ("identity", bytes),
    ("", bytes),
]


@pytest.mark.parametrize(("header", "pack"), PACKERS)
def test_bodies_are_read_as_they_were(server, header, pack):
    plain = server.ask("POST", "/v2/models/tiny/infer", QUESTION).json()
    answer = server.ask("POST", "/v2/models/tiny/infer", pack(QUESTION), {"Content-Encoding": header})
    assert (answer.status, answer.json()) == (200, plain)


@pytest.mark.parametrize(("header", "pack"), PACKERS[:6])
def test_a_bomb_is_refused_before_it_is_unpacked(header, pack):
    bomb = pack(bytes(30 * 2**20))
    encoding = check_encoding(header)
    if len(bomb) > 2**20:  # stored, not compressed
        return
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError, match="larger than 1000 bytes when it is unpacked"):
            unpack(bomb, encoding, 1000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20
    assert unpack(pack(bytes(1000)), encoding, 1000) == bytes(1000)


@pytest.mark.parametrize(("header", "pack"), PACKERS[:4])
def test_a_bomb_is_413(start, header, pack):
    server = start(max_body_bytes=100_000)
    answer = server.ask("POST", "/classify", pack(bytes(5 * 2**20)), {"Content-Encoding": header})
    assert (answer.status, answer.json()["error"]) == (
        413,
        "the body is larger than 100000 bytes when it is unpacked, which is the limit",
    )


@pytest.mark.parametrize(
    ("body", "encoding", "message"),
    [
        (b"abc", "gzip", "not valid gzip"),
        (b"", "gzip", "is cut short"),
        (b"abc", "deflate", "not valid deflate"),
        (gzip.compress(b"abc", mtime=0)[:-1], "gzip", "is cut short"),
        (zlib.compress(b"abc")[:-1], "deflate", "is cut short"),
        (gzip.compress(b"abc", mtime=0) + b"x", "gzip", "goes on behind its end"),
        (gzip.compress(b"abc", mtime=0) * 2, "gzip", "goes on behind its end"),
        (gzip.compress(b"abc", mtime=0)[:-5] + b"12345", "gzip", "not valid gzip"),
        (zlib.compress(b"abc"), "gzip", "not valid gzip"),
    ],
)
def test_damaged_bodies(server, body, encoding, message):
    with pytest.raises(UsageError, match=message):
        unpack(body, encoding, 1000)
    answer = server.ask("POST", "/classify", body, {"Content-Encoding": encoding})
    assert answer.status == 400
    assert message in answer.json()["error"]
