"""Golden inputs and outputs, which test a bundle on any device."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from krl_runtime.errors import BackendError, BundleError

from .bundle import Bundle
from .tensors import check_inputs

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["golden_arrays"]


def golden_arrays(bundle: Bundle) -> dict[str, npt.NDArray[Any]]:
    """Return a bundle's golden inputs and outputs, under their names, each ``[N, ...]`` with the same ``N``.

    Raises:
        BundleError: There are none, the file is damaged, or an array has not the dtype and shape of the manifest.
    """
    golden = bundle.golden()
    # Any number of them, for any batch size of the graph.
    graph = (*bundle.manifest.inputs, *bundle.manifest.outputs)
    try:
        check_inputs([replace(spec, shape=("N", *spec.shape[1:])) for spec in graph], golden)
    except BackendError as error:
        raise BundleError(f"bundle {bundle.path}: golden file: {error}; export the bundle again") from error
    if len({len(array) for array in golden.values()}) != 1:
        raise BundleError(f"bundle {bundle.path}: the golden file's arrays differ in length; export the bundle again")
    return golden
