"""ONNX graphs: reading, editing and cleaning them, operator sets, image inputs, and which operators INT8 is for.

A pass takes a model and returns a new one, checked and with its types inferred anew.
"""

__all__ = ["IMAGES", "LOGITS", "PIXELS", "RESTORED"]

PIXELS, LOGITS = "pixels", "logits"
"""Names of the input and the output of every classifier's graph; restorers take ``PIXELS`` as well."""

RESTORED, IMAGES = "restored", "images"
"""Names of the output of restorers and of generators; the inputs of these are named by ``krl_runtime.pipelines``."""
