"""Passes over ONNX graphs: each takes a model and returns a new one, checked and with its types inferred anew."""

__all__ = ["LOGITS", "PIXELS"]

PIXELS, LOGITS = "pixels", "logits"
"""Names of the input and the output of every classifier's graph."""
