"""Compressed bodies of requests, unpacked within a bound."""

from __future__ import annotations

import zlib

from krl_runtime.errors import KrlError, UsageError

__all__ = ["ENCODINGS", "TooLargeError", "check_encoding", "unpack"]

# zlib's wbits: 31 expects the header of gzip, 15 that of zlib, which HTTP calls deflate.
ENCODINGS = {"identity": 0, "gzip": 31, "x-gzip": 31, "deflate": 15}
"""Accepted values of the header Content-Encoding."""


class TooLargeError(KrlError):
    """A body or an image is larger than the server accepts."""


def check_encoding(header: str) -> str:
    """Return a Content-Encoding in lower case; ``"identity"`` for an empty one.

    Raises:
        UsageError: It is not accepted.
    """
    encoding = header.strip().lower() or "identity"
    if encoding not in ENCODINGS:
        raise UsageError(f"Content-Encoding is {encoding[:80]!r}; accepted: {', '.join(ENCODINGS)}, one of them")
    return encoding


def unpack(body: bytes, encoding: str, limit: int) -> bytes:
    """Return a body as it was before it was compressed.

    Args:
        body: The body.
        encoding: What ``check_encoding`` returned.
        limit: Most bytes of the result; not more than one byte beyond it is unpacked.

    Raises:
        TooLargeError: The result is larger.
        UsageError: The body is damaged, cut short, or something follows it.
    """
    bits = ENCODINGS[encoding]
    if not bits:
        return body
    if bits == ENCODINGS["deflate"] and not _has_zlib_header(body):
        bits = -bits  # some clients leave the header out
    unpacker = zlib.decompressobj(bits)
    try:
        result = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise UsageError(f"the body is not valid {encoding}: {error}") from error
    if len(result) > limit:
        raise TooLargeError(f"the body is larger than {limit} bytes when it is unpacked, which is the limit")
    if not unpacker.eof or unpacker.unused_data:
        what = "is cut short" if not unpacker.eof else "goes on behind its end"
        raise UsageError(f"the body is not valid {encoding}: it {what}; send one complete stream")
    return result


def _has_zlib_header(body: bytes) -> bool:
    """Return whether the first two bytes are zlib's: method 8, and a multiple of 31 (RFC 1950, section 2.2)."""
    return len(body) >= 2 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
