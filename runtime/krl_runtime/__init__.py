"""Runs krl bundles: pictures in, answers out, on TensorRT or ONNX Runtime.

::

    import krl_runtime

    with krl_runtime.load("flowers.krl") as model:
        print(model.backend.reason)
        answer = model("rose.jpg")
        print(answer.label, answer.score)

Importing this loads numpy and Pillow; a backend's library is imported when a bundle is loaded onto it.
"""

from ._version import __version__
from .bundle import Bundle
from .errors import (
    BackendError,
    BundleError,
    CheckFailedError,
    DataError,
    ImageError,
    KrlError,
    MissingExtraError,
    ModelError,
    RunError,
    TrainingError,
    UsageError,
)
from .pipelines import load
from .pipelines.classifier import Classification, Classifier
from .preprocess import Preprocessing

__all__ = [
    "BackendError",
    "Bundle",
    "BundleError",
    "CheckFailedError",
    "Classification",
    "Classifier",
    "DataError",
    "ImageError",
    "KrlError",
    "MissingExtraError",
    "ModelError",
    "Preprocessing",
    "RunError",
    "TrainingError",
    "UsageError",
    "__version__",
    "load",
]
