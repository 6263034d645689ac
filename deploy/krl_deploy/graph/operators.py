"""Sets of ONNX operators, each written once."""

from __future__ import annotations

__all__ = ["QUANTISED_OPS"]


QUANTISED_OPS = frozenset({"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger"})
"""Operators by which a quantised graph is known."""
