"""Static checks of an ONNX file before the device has seen it: findings for each node, each with its source.

Targets, tables of operators, rules by family, and the run over a file or bundle with its report.
"""

from __future__ import annotations

__all__: list[str] = []
