"""Classifiers with several inputs: the options, what the training data says of them, and the network's arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from krl_runtime.bundle.further_inputs import INPUTS, FurtherInput
from krl_runtime.errors import UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import FitConfig, FurtherInputsConfig
from krl_train.custom import is_custom
from krl_train.data import Source
from krl_train.data.further import FITTED, fit_inputs
from krl_train.models.fusion import Fusion
from krl_train.models.spec import FUSION

__all__ = ["check_further", "fusion_arguments", "refuse_mixing", "with_further"]


def check_further(config: FitConfig) -> None:
    """Refuse options that several inputs do not go with.

    Raises:
        UsageError: There is one.
    """
    if not config.further.asked:
        return
    for name, given in (
        ("--from", config.transfer.from_ is not None),
        ("--augment-from", config.synthetic.augment_from is not None),
        ("--compile", config.loop.compile),
    ):
        if given:
            raise UsageError(f"{name} is for classifiers of the image alone; leave it out, or the other inputs")
    if is_custom(config.model):
        raise UsageError(f"--model {config.model}: your own network takes the image alone; give one by name")
    refuse_mixing(config.augment.mixes)


def refuse_mixing(mixes: bool) -> None:
    """Refuse mixed images, for which there is nothing beside them.

    Raises:
        UsageError: Images are mixed.
    """
    if mixes:
        raise UsageError("--mixup and --cutmix mix images, and what is beside them cannot be mixed; leave them out")


def with_further(source: Source, config: FurtherInputsConfig, preprocessing: Preprocessing) -> Source:
    """Return a data set that is read with the inputs that the options ask for.

    Args:
        source: The data set.
        config: The options.
        preprocessing: From an image to the network's input.

    Raises:
        UsageError: The data does not have a column that is asked for.
        DataError: The images or a value cannot be used.
    """
    if not config.asked:
        return source
    # Of the images to validate on as well: one just beyond the largest number of the others is no mistake.
    rows = [] if source.folder is None else [image.fields for image in source.folder.split("all")]
    found = fit_inputs(config, rows, preprocessing, lambda: source.read("train", preprocessing, limit=FITTED))
    return replace(source, further=tuple(found))


def fusion_arguments(further: Sequence[FurtherInput], fusion: Fusion) -> dict[str, Any]:
    """Return the arguments of a network that takes further inputs; none for an image alone."""
    return {INPUTS: [item.to_dict() for item in further], FUSION: fusion} if further else {}
