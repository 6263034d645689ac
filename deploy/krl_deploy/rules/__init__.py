"""What can be said of an ONNX file before the device has seen it: findings for each node, each with its source."""

from __future__ import annotations

__all__: list[str] = []
