"""The exported graph beside torch on real inputs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from krl_deploy.evaluation.comparison import outputs_of
from krl_deploy.graph import EMBEDDINGS
from krl_deploy.graph.session import open_cpu
from krl_runtime.errors import CheckFailedError, ModelError
from krl_runtime.evaluation.retrieval import agreement

from .conversion import EXPORT_BATCH
from .plan import ExportPlan

if TYPE_CHECKING:
    from torch import nn

__all__ = ["check_parity", "torch_outputs", "without_rounding"]

_FEW = 4
"""Inputs that are run one by one as well: a graph whose batch is open must not depend on it."""

_OF_ROUNDING = 4
"""Accepted difference from torch, in units of torch's own rounding, which is its float32 against its float64.
A judgment: it leaves room for the graph's own rounding and for other inputs."""

_BATCH = 16  # inputs that torch runs at once: bounds the memory of activations, and is fast enough for a few dozen


def check_parity(
    data: bytes, plan: ExportPlan, expected: npt.NDArray[np.float32], tolerance: float
) -> dict[str, float | int | list[int] | None]:
    """Compare the exported graph with torch: one by one, in a batch of another size, and with images of another size.

    Args:
        data: The graph.
        plan: Its network and inputs.
        expected: Torch's outputs: logits ``[N, classes]``, of several heads side by side, or images ``[N, C, H, W]`` of
            0 to 255.
        tolerance: Accepted difference of logits, or of images in the range 0 to 1.

    Raises:
        CheckFailedError: They differ by more, and by more than float32 rounding explains.
    """
    images = expected.ndim > 2
    accepted = 255 * tolerance if images else tolerance
    count, session = len(expected), open_cpu(data)
    batch = max(count, EXPORT_BATCH + 1)
    several = {name: np.resize(array, (batch, *array.shape[1:])) for name, array in plan.inputs.items()}
    few = {name: array[:_FEW] for name, array in plan.inputs.items()}
    made = outputs_of(session, several, batch=batch)[:count]
    errors = [np.abs(made - expected).max(), np.abs(outputs_of(session, few, batch=1) - expected[:_FEW]).max()]
    if plan.further is not None:
        other = torch_outputs(plan.network, plan.further)
        errors.append(np.abs(outputs_of(session, plan.further, batch=1) - other).max())
    worst = float(max(errors))
    rounding = None if worst <= accepted else _rounding(plan, expected)
    if rounding is not None and not worst <= max(accepted, _OF_ROUNDING * rounding):
        unit = " of 255" if images else f" (the largest is {np.abs(expected).max():.3g})"
        raise CheckFailedError(
            f"the exported graph's {'images' if images else plan.output} differ from torch's by {worst:.3g} on {count} "
            f"real inputs; accepted: {accepted:g}{unit}; float32 rounds by {rounding:.2g}. Nothing was written. "
            "Give a higher --tolerance if you can accept that"
        )
    return {
        "max_abs_error": worst,
        "inputs": count,
        "batches": [1, batch],
        **({} if images else {"agreement": _agreement(plan, made, expected)}),
        "tolerance": accepted,
        "float32_rounding": rounding,
    }


def _agreement(plan: ExportPlan, made: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """Return the share of inputs with torch's prediction, the smallest of all heads; of embeddings ``agreement``."""
    if plan.output == EMBEDDINGS:
        return float(agreement(made, expected).mean())
    pairs = zip(plan.apart(made).values(), plan.apart(expected).values(), strict=True)
    return min(float((mine.argmax(1) == theirs.argmax(1)).mean()) for mine, theirs in pairs)


def torch_outputs(
    network: nn.Module, inputs: Mapping[str, npt.NDArray[Any]], *, exact: bool = False
) -> npt.NDArray[Any]:
    """Return the outputs of torch, computed in batches, float32 ``[N, ...]``, or float64 if it is to be exact.

    Those of several heads are side by side.

    Raises:
        ModelError: That is not finite.
    """
    import torch

    tensors = [torch.tensor(array) for array in inputs.values()]
    if exact:
        network = copy.deepcopy(network).double()
        tensors = [tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors]
    with torch.inference_mode():
        parts = [
            network(*(tensor[start : start + _BATCH] for tensor in tensors))
            for start in range(0, len(tensors[0]), _BATCH)
        ]
    whole = [torch.cat(part, dim=1) if isinstance(part, tuple) else part for part in parts]
    made: npt.NDArray[Any] = torch.cat(whole).numpy()
    if not np.isfinite(made).all():
        raise ModelError("the network's outputs for real inputs have numbers that are not finite; train it again")
    return made


@contextmanager
def without_rounding(network: nn.Module) -> Iterator[None]:
    """Let a network that was trained as its INT8 graph computes give its float outputs."""
    from krl_train.models import FakeQuantized

    backbone = network.get_submodule("backbone")
    if not isinstance(backbone, FakeQuantized):
        yield
        return
    with backbone.computing("float"):
        yield


def _rounding(plan: ExportPlan, expected: npt.NDArray[np.float32]) -> float:
    """Return the difference of torch's float32 outputs from its float64 ones. Some networks amplify rounding a lot."""
    return float(np.abs(torch_outputs(plan.network, plan.inputs, exact=True) - expected).max())
