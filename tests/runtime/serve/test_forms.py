from __future__ import annotations

import random
import uuid

import pytest

from krl_runtime.errors import UsageError
from krl_runtime.serve.forms import parse_form

TYPE = "multipart/form-data; boundary=b"


def encoded(parts: dict[str, bytes], boundary: str = "b") -> bytes:
    """Return a form as curl sends it."""
    lines = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="a.png"\r\n'
        f"Content-Type: image/png\r\n\r\n".encode()
        + content
        + b"\r\n"
        for name, content in parts.items()
    )
    return lines + f"--{boundary}--\r\n".encode()


@pytest.mark.parametrize("seed", range(20))
def test_any_bytes_come_back(seed: int):
    rng = random.Random(seed)
    boundary = uuid.UUID(int=rng.getrandbits(128)).hex
    pieces = [b"\r\n", b"--", b"\r\n--", b"\n", b"\0", rng.randbytes(30), boundary[:-1].encode()]
    parts = {f"part {number}": b"".join(rng.choices(pieces, k=rng.randrange(9))) for number in range(4)}
    assert parse_form(encoded(parts, boundary), f'multipart/form-data; boundary="{boundary}"') == parts


def test_other_spellings_of_a_header_are_read():
    body = b"before\r\n--b  \r\n" + b"content-type: text/plain\r\ncontent-disposition: FORM-DATA; name=size\r\n\r\n"
    assert parse_form(body + b"3.5\r\n--b--", TYPE) == {"size": b"3.5"}


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (encoded({"a": b"x"}), "multipart/form-data", "boundary is ''"),
        (encoded({"a": b"x"}), f"multipart/form-data; boundary={'b' * 71}", "accepted: 1 to 70"),
        (encoded({"a": b"x"})[:-5], TYPE, "no end"),
        (b"", TYPE, "no end"),
        (b"--b\r\nno header\r\n--b--", TYPE, "has no header"),
        (b"--bad\r\n\r\n\r\n--b--", TYPE, "has no header"),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--", TYPE, "name=NAME"),
        (b"--b\r\nContent-Disposition: attachment; name=a\r\n\r\nx\r\n--b--", TYPE, "name=NAME"),
        (b"--b\r\nX: " + b"y" * 5000 + b"\r\n\r\nx\r\n--b--", TYPE, "has no header"),
        (encoded({"a": b"x"})[:-7] + b"\r\n" + encoded({"a": b"y"}), TYPE, "'a' twice"),
        (encoded({str(number): b"" for number in range(1200)}), TYPE, "more than 1100 parts"),
        (
            b"--b\r\nContent-Disposition: form-data; name=a\r\nContent-Transfer-Encoding: base64\r\n\r\nx\r\n--b--",
            TYPE,
            "send its bytes as they are",
        ),
    ],
)
def test_other_forms_are_refused(body: bytes, content_type: str, message: str):
    with pytest.raises(UsageError, match=message):
        parse_form(body, content_type)


def test_random_damage_is_an_error_or_a_form():
    rng = random.Random(1)
    whole = encoded({"a": b"x" * 20, "b": b"y"})
    for _ in range(3000):
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            found = parse_form(bytes(damaged[: rng.randrange(len(damaged) + 1)]), TYPE)
        except UsageError:
            continue
        assert all(isinstance(name, str) and isinstance(content, bytes) for name, content in found.items())
