"""The first bytes of an engine ("plan"): the library and the version that built it, read without that library.

The layout is that of NVIDIA/TensorRT, ``samples/common/sampleEngines.cpp`` (``printPlanVersion``). Bytes 0 to 3 are
``ftrt``. A little-endian integer at 4 is the version of the format. In format 0 the bytes 24 to 27 are the four numbers
of TensorRT's version. Engines of TensorRT-RTX begin with ``vtrt`` and are alike otherwise (seen in 1.7.1).
"""

from __future__ import annotations

import struct
from pathlib import Path

from krl_runtime.backends.tensorrt.library import LibraryName
from krl_runtime.errors import UsageError

__all__ = ["plan_version", "version_of"]

_TAGS: dict[bytes, LibraryName] = {b"ftrt": "tensorrt", b"vtrt": "tensorrt-rtx"}
_SIZE = 28  # bytes: the tag at 0, the format at 4, the version of TensorRT at 24


def plan_version(path: Path) -> tuple[LibraryName, str]:
    """Return the library that built an engine file and its version, as ``("tensorrt", "10.3.0.30")``.

    Raises:
        UsageError: The file is not an engine, or of a format that is not known.
    """
    try:
        with path.open("rb") as file:
            return version_of(file.read(_SIZE), str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def version_of(plan: bytes, name: str) -> tuple[LibraryName, str]:
    """Return the same for an engine's bytes.

    Args:
        plan: The engine, or its first 28 bytes.
        name: Of the engine, for messages.

    Raises:
        UsageError: They are not an engine's, or of a format that is not known.
    """
    header = plan[:_SIZE]
    library = _TAGS.get(header[:4])
    if len(header) < _SIZE or library is None:
        hint = "; its first bytes are metadata of another tool" if header[4:5] == b"{" else ""
        raise UsageError(f"{name} is not a TensorRT engine: it does not begin with ftrt or vtrt{hint}")
    (layout,) = struct.unpack_from("<I", header, 4)
    if layout != 0:
        raise UsageError(f"{name} is a TensorRT engine of format {layout}; this krl reads format 0")
    return library, ".".join(str(number) for number in header[24:28])
