"""``calibration.json``: the ranges, and what they are true of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias

from krl_runtime.errors import BundleError, CheckFailedError

__all__ = ["Calibration", "Identity", "Method"]

_SCHEMA_VERSION = 1

Method: TypeAlias = Literal["minmax", "percentile"]
"""``"minmax"``: all values; ``"percentile"``: all but a small part at both ends."""


@dataclass(frozen=True)
class Identity:
    """What ranges depend on; they are used again only where all of it is the same.

    Attributes:
        graph_sha256: Hash of the float32 ONNX file: operators, weights and normalisation.
        preprocessing: From a picture to the input.
        pictures: Hash of the decoded pictures.
        count: Number of pictures.
        method: How a range follows from the values, as ``"minmax"`` or ``"percentile 99.999"``.
    """

    graph_sha256: str
    preprocessing: Mapping[str, Any]
    pictures: str
    count: int
    method: str


@dataclass(frozen=True)
class Calibration:
    """Ranges of tensors, and their identity."""

    identity: Identity
    ranges: Mapping[str, tuple[float, float]]

    def to_bytes(self) -> bytes:
        """Return the content of ``calibration.json``."""
        values = {"schema_version": _SCHEMA_VERSION, "identity": asdict(self.identity), "ranges": dict(self.ranges)}
        return json.dumps(values, indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Calibration:
        """Parse ``calibration.json``.

        Raises:
            BundleError: It is not such a file, or of another schema version.
        """
        try:
            values = json.loads(data)
            if values["schema_version"] != _SCHEMA_VERSION:
                raise ValueError(f"schema version {values['schema_version']}, not {_SCHEMA_VERSION}")
            ranges = {name: (float(low), float(high)) for name, (low, high) in values["ranges"].items()}
            return cls(Identity(**values["identity"]), ranges)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BundleError(f"calibration.json cannot be used ({error}); calibrate again") from error

    def check(self, identity: Identity) -> None:
        """Refuse to be used for anything else than what the ranges are true of.

        Raises:
            CheckFailedError: They are stale; names each item that differs.
        """
        pairs = [
            (item.name, getattr(self.identity, item.name), getattr(identity, item.name)) for item in fields(Identity)
        ]
        differing = [f"{name} is {_short(old)} there and {_short(new)} now" for name, old, new in pairs if old != new]
        if differing:
            raise CheckFailedError(
                f"the calibration in the bundle is stale: {'; '.join(differing)}. Run it without --reuse-calibration"
            )


def _short(value: object) -> str:
    text = json.dumps(value) if isinstance(value, Mapping) else str(value)
    return text if len(text) <= 40 or isinstance(value, Mapping) else f"{text[:12]}…"
