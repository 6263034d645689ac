"""Static checks of an ONNX file without the device: findings for each node, each with its source.

Targets, tables of operators, rules by family, and the run over a file or bundle with its report.
"""

from __future__ import annotations

__all__: list[str] = []
