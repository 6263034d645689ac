"""Run krl bundles on TensorRT or ONNX Runtime: classify, embed, restore or generate images.

::

    import krl_runtime

    with krl_runtime.load("flowers.krl") as model:
        print(model.backend.reason)
        prediction = model("rose.jpg")
        print(prediction.label, prediction.score)

    with krl_runtime.load("products.krl") as model:
        index = krl_runtime.index(model, "products/")
        print(index.search(model("photo.jpg"))[0].neighbors)

    with krl_runtime.load("super-resolution.krl") as model:
        model("small.png").save("large.png")

    with krl_runtime.load("gan.krl") as model:
        for number, image in enumerate(model.generate(4, seed=1)):
            image.save(f"{number}.png")

Importing this loads numpy and Pillow. The pipelines are imported on first use, and a backend's library when a bundle is
loaded onto it.
"""

from typing import TYPE_CHECKING, Any

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
    NotAvailableError,
    RunError,
    TrainingError,
    UsageError,
)
from .images.preprocessing import Preprocessing
from .lazy import attribute

if TYPE_CHECKING:
    from .device.bench import bench
    from .device.doctor import doctor
    from .device.evaluate import evaluate
    from .device.occlusion import Occlusion, explain
    from .device.recording import record
    from .device.selftest import selftest
    from .device.tune import tune
    from .pipelines import Classification, Classifier, Embedder, Embedding, Generator, Raster, Restorer, grid, load
    from .retrieval.building import index
    from .retrieval.gallery import Index, Neighbor, SearchResult

__all__ = [
    "BackendError",
    "Bundle",
    "BundleError",
    "CheckFailedError",
    "Classification",
    "Classifier",
    "DataError",
    "Embedder",
    "Embedding",
    "Generator",
    "ImageError",
    "Index",
    "KrlError",
    "MissingExtraError",
    "ModelError",
    "Neighbor",
    "NotAvailableError",
    "Occlusion",
    "Preprocessing",
    "Raster",
    "Restorer",
    "RunError",
    "SearchResult",
    "TrainingError",
    "UsageError",
    "__version__",
    "bench",
    "doctor",
    "evaluate",
    "explain",
    "grid",
    "index",
    "load",
    "record",
    "selftest",
    "tune",
]

_MODULES = {
    ".pipelines": (
        "Classification",
        "Classifier",
        "Embedder",
        "Embedding",
        "Generator",
        "Raster",
        "Restorer",
        "grid",
        "load",
    ),
    ".retrieval.building": ("index",),
    ".retrieval.gallery": ("Index", "Neighbor", "SearchResult"),
    ".device.selftest": ("selftest",),
    ".device.tune": ("tune",),
    ".device.bench": ("bench",),
    ".device.doctor": ("doctor",),
    ".device.evaluate": ("evaluate",),
    ".device.occlusion": ("Occlusion", "explain"),
    ".device.recording": ("record",),
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for."""
    return attribute(__name__, _MODULES, name)
