"""A loaded model as an HTTP server: the Open Inference Protocol, image upload, metrics, and a page to try it.

``protocol`` reads and writes the protocol's messages, ``service`` runs the model in a bounded pool, ``app`` is the
HTTP around it, and ``server`` listens. Only ``app``, ``metrics`` and ``server`` need the extra ``serve``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from krl_runtime.errors import UsageError, require

from .config import ServeConfig

if TYPE_CHECKING:
    from krl_runtime.pipelines.image import ImagePipeline
    from krl_runtime.retrieval.gallery import Index

__all__ = ["serve"]


def serve(
    model: ImagePipeline[Any],
    config: ServeConfig,
    *,
    index: Index | None = None,
    started: Callable[[str], None] = lambda _: None,
) -> bool:
    """Serve requests until the process is asked to stop (SIGINT or SIGTERM). Requests under way are finished.

    Args:
        model: The loaded model; it is not closed.
        config: Where to listen, and the limits.
        index: What an embedding network searches in; ``None`` for one that only embeds.
        started: Called with the server's address once it listens.

    Returns:
        Whether all requests have ended; after ``config.grace_seconds`` they are given up, and their threads run on.

    Raises:
        UsageError: The address cannot be listened on, or a classifier gets an index.
        BackendError: The model does not run.
        MissingExtraError: The extra ``serve`` is not installed.
    """
    if index is not None and model.bundle.manifest.task != "embedding":
        raise UsageError(f"bundle {model.bundle.path} searches in no index; give one with an embedding network alone")
    for library in ("starlette", "uvicorn", "prometheus_client"):
        require(library, extra="serve", purpose="serving a model over HTTP")
    from .server import run

    return run(model, config, started, index)
