"""ONNX graphs: reading, editing and cleaning them, operator sets, image inputs, and which operators INT8 is for.

A pass takes a model and returns a new one, checked and with its types inferred anew.
"""

__all__ = ["EMBEDDINGS", "IMAGES", "LOGITS", "PIXELS", "RESTORED", "SOURCE_LOGITS"]

PIXELS, LOGITS = "pixels", "logits"
"""Names of the input and the output of every classifier's graph; restorers take ``PIXELS`` as well."""

EMBEDDINGS = "embeddings"
"""Name of the output of a network of embeddings, which takes ``PIXELS``."""

SOURCE_LOGITS = "source_logits"
"""Name of the second output of a classifier with two heads, in the classes of the source that it was trained on."""

RESTORED, IMAGES = "restored", "images"
"""Names of the output of restorers and of generators; the inputs of these are named by ``krl_runtime.pipelines``."""
