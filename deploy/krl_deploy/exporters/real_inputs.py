"""Real inputs of a run's network: of the images that the user gives, else of those that the run was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from krl_deploy.config import ExportConfig
from krl_deploy.data.folders import choose_any
from krl_deploy.graph import PIXELS
from krl_runtime.bundle.samples import decode_samples, open_samples
from krl_runtime.errors import KrlError

from .conversion import PARITY_INPUTS
from .plan import no_real_images

if TYPE_CHECKING:
    from krl_train.run import Run

__all__ = ["real_inputs", "validation_inputs"]

_Arrays = dict[str, npt.NDArray[Any]]


def real_inputs(config: ExportConfig, run: Run) -> _Arrays:
    """Return inputs by name ``[N, ...]``, images first: from ``--data``, else from the run's data set.

    Images of a class follow each other there. The first ones become golden inputs, so they are taken from all classes.

    Raises:
        DataError: The images cannot be used, or do not have what the network takes beside them.
    """
    inputs = _any_inputs(config, run)
    count = len(inputs[PIXELS])
    order = np.argsort(np.arange(count) % -(-count // config.golden), kind="stable")
    return {name: array[order] for name, array in inputs.items()}


def _any_inputs(config: ExportConfig, run: Run) -> _Arrays:
    count = max(config.golden, PARITY_INPUTS)
    if config.data is None:
        return validation_inputs(run, count)
    preprocessing = run.record.preprocessing
    further = run.record.model.further(preprocessing)
    folder = open_samples(config.data, further, on_bad=config.on_bad_image)
    inputs, _ = decode_samples(choose_any(folder, count), preprocessing, further, on_bad=config.on_bad_image)
    return dict(inputs) if isinstance(inputs, Mapping) else {PIXELS: inputs}


def validation_inputs(run: Run, limit: int) -> _Arrays:
    """Return inputs by name ``[N, ...]`` of the validation images of a run.

    Args:
        run: The run; its data set is read again.
        limit: Number of images at most, the same number of each class.

    Raises:
        DataError: The data is not where it was.
    """
    from krl_train.data import PixelSet
    from krl_train.data.sources import load_set

    try:
        part = load_set(run.record, "val", limit)
    except (KrlError, KeyError) as error:
        raise no_real_images(run, error) from error
    every = np.arange(len(part))
    names = [each.input for each in run.record.model.further(run.record.preprocessing)]
    further = {
        name: (each.pixels(every) if isinstance(each, PixelSet) else each).numpy()
        for name, each in zip(names, part.further, strict=True)
    }
    arrays = {PIXELS: part.pixels(every).numpy(), **further}
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}
