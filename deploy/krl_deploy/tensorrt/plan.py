"""The first bytes of a TensorRT engine ("plan") and the version that built it, read without TensorRT.

The layout is that of NVIDIA/TensorRT, ``samples/common/sampleEngines.cpp`` (``printPlanVersion``). Bytes 0 to 3 are
``ftrt``. A little-endian integer at 4 is the version of the format. In format 0 the bytes 24 to 27 are the four numbers
of TensorRT's version.
"""

from __future__ import annotations

import struct
from pathlib import Path

from krl_runtime.errors import UsageError

__all__ = ["plan_version"]

_TAG = b"ftrt"
_SIZE = 28  # bytes: the tag at 0, the format at 4, the version of TensorRT at 24


def plan_version(path: Path) -> str:
    """Return the version of TensorRT that built an engine, as ``"10.3.0.30"``.

    Raises:
        UsageError: The file is not an engine, or of a format that is not known.
    """
    try:
        with path.open("rb") as file:
            header = file.read(_SIZE)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    if len(header) < _SIZE or not header.startswith(_TAG):
        hint = "; its first bytes are metadata of another tool" if header[4:5] == b"{" else ""
        raise UsageError(f"{path} is not a TensorRT engine: it does not begin with {_TAG.decode()}{hint}")
    (layout,) = struct.unpack_from("<I", header, 4)
    if layout != 0:
        raise UsageError(f"{path} is a TensorRT engine of format {layout}; this krl reads format 0")
    return ".".join(str(number) for number in header[24:28])
