"""Further inputs of a classifier, beside its first image: attributes, further images, descriptors.

A run and a bundle's manifest state them by the same JSON, in the order of the graph's inputs after the first one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from krl_runtime.attributes import AttributeInput
from krl_runtime.errors import ImageError, UsageError, accepted
from krl_runtime.images.descriptors import DescriptorInput
from krl_runtime.images.preprocessing import Preprocessing

from .manifest import Manifest, TensorSpec

__all__ = [
    "IMAGE",
    "INPUTS",
    "PIXELS",
    "FurtherInput",
    "ImageInput",
    "column_names",
    "example_sample",
    "further_inputs",
    "inputs_of",
    "sample_arrays",
    "tensor_spec",
]

INPUTS: Final = "inputs"
"""Name of the further inputs among a manifest's settings; where it is absent the first image is the only input."""

IMAGE: Final = "image"
"""Name of the first image in a sample."""

PIXELS: Final = "pixels"
"""Name of the graph's first input, where it has others."""


@dataclass(frozen=True)
class ImageInput:
    """A classifier's input of a further image, with the preprocessing of the first one: uint8.

    Attributes:
        name: Name of the image in a sample, and of the column in a list.
        input: Name of the graph's input.
        shape: Shape of one sample's array, ``(channels, height, width)``.
    """

    name: str
    input: str
    shape: tuple[int, int, int]
    kind: ClassVar[str] = "image"

    @property
    def names(self) -> tuple[str, ...]:
        """Names that a sample has to give."""
        return (self.name,)

    @classmethod
    def of(cls, name: str, preprocessing: Preprocessing) -> ImageInput:
        """Return the input for a column of images."""
        return cls(name, "pixels_" + re.sub(r"\W", "_", name, flags=re.ASCII), preprocessing.shape)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, as settings have them."""
        return {"kind": self.kind, "input": self.input, "name": self.name}


FurtherInput: TypeAlias = "AttributeInput | ImageInput | DescriptorInput"


def further_inputs(settings: Sequence[Mapping[str, Any]], preprocessing: Preprocessing) -> tuple[FurtherInput, ...]:
    """Return the further inputs that a run or a manifest states.

    Args:
        settings: ``RunRecord.inputs``, or what a manifest's settings have under ``INPUTS``.
        preprocessing: Of the images.

    Raises:
        ValueError: The settings are not well formed.
    """
    if not isinstance(settings, list | tuple) or not all(isinstance(each, Mapping) for each in settings):
        raise ValueError(f"{INPUTS} are {settings!r}; accepted: a list of objects")
    found = tuple(_further_input(each, preprocessing) for each in settings)
    tensors = [each.input for each in found]
    names = [IMAGE, *(name for each in found for name in each.names)]
    for what, given in (("tensors", tensors), ("names", names)):
        if len(set(given)) < len(given):
            raise ValueError(f"{INPUTS} have the {what} {given}; accepted: each once, and {IMAGE!r} is the first image")
    return found


def inputs_of(manifest: Manifest) -> tuple[FurtherInput, ...]:
    """Return the further inputs of a classifier's manifest.

    Raises:
        ValueError: The settings are not well formed, or do not fit the graph's inputs.
    """
    found = further_inputs(manifest.settings.get(INPUTS, ()), manifest.preprocessing)
    stated = [tensor_spec(each) for each in found]
    given = list(manifest.inputs[1:])
    shapes = [[(spec.name, spec.dtype, spec.shape[1:]) for spec in each] for each in (stated, given)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{INPUTS} are for {_shown(stated)}, and the inputs after the first are {_shown(given)}")
    first = manifest.inputs[0].name
    if found and (first != PIXELS or len({spec.shape[0] for spec in manifest.inputs}) > 1):
        raise ValueError(f"with {INPUTS} the first input is {first!r}; accepted: {PIXELS!r}, and one batch size")
    return found


def tensor_spec(given: FurtherInput, batch: int | str = "batch") -> TensorSpec:
    """Return the graph's input of a further input."""
    return TensorSpec(given.input, "uint8" if isinstance(given, ImageInput) else "float32", (batch, *given.shape))


def column_names(inputs: Iterable[FurtherInput]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of attributes and of further images, as ``open_folder`` takes them."""
    attributes = [name for each in inputs if isinstance(each, AttributeInput) for name in each.names]
    images = [name for each in inputs if isinstance(each, ImageInput) for name in each.names]
    return tuple(attributes), tuple(images)


def example_sample(inputs: Iterable[FurtherInput], image: Any) -> Any:
    """Return a sample with values that are accepted: an image, used for all, and the first or mean values.

    Args:
        inputs: The further inputs.
        image: As ``Preprocessing`` takes it.
    """
    sample: dict[str, Any] = {IMAGE: image}
    for each in inputs:
        if isinstance(each, AttributeInput):
            sample |= {column.name: column.example for column in each.columns}
        else:
            sample |= dict.fromkeys(each.names, image)
    return sample if len(sample) > 1 else image


def sample_arrays(
    sample: Any,
    inputs: Sequence[FurtherInput],
    read: Callable[[Any], npt.NDArray[np.uint8]],
) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of one sample, one for each input of the graph.

    Args:
        sample: A mapping from names to images and values, ``"image"`` for the first image. An image alone will do
            where nothing else is needed.
        inputs: The further inputs.
        read: From an image to uint8 ``[channels, height, width]``.

    Returns:
        Arrays by the names of the graph's inputs, in their order, without a batch dimension.

    Raises:
        UsageError: A name is missing or unknown, or an attribute's value is not accepted.
        ImageError: An image cannot be read; the message names it.
    """
    values = sample if isinstance(sample, Mapping) else {IMAGE: sample}
    _check_names(values, inputs, bare=values is not sample)
    pixels = read(values[IMAGE])
    arrays: dict[str, npt.NDArray[Any]] = {PIXELS: pixels}
    for each in inputs:
        if isinstance(each, AttributeInput):
            arrays[each.input] = each.encode(values)
        elif isinstance(each, DescriptorInput):
            arrays[each.input] = each(pixels)
        else:
            try:
                arrays[each.input] = read(values[each.name])
            except ImageError as error:
                raise ImageError(f"input {each.name!r}: {error}") from error
    return arrays


def _check_names(values: Mapping[str, Any], inputs: Sequence[FurtherInput], *, bare: bool) -> None:
    """Check that a sample has all names that are needed, and no other."""
    needed = [IMAGE, *(name for each in inputs for name in each.names)]
    missing = [name for name in needed if name not in values]
    if missing:
        example = ", ".join(f'"{name}": …' for name in needed)
        given = "an image alone" if bare else "a sample"
        raise UsageError(f"{given} has no {', '.join(map(repr, missing))}, which the model needs; give {{{example}}}")
    unknown = [name for name in values if name not in needed]
    if unknown:
        raise UsageError(f"the model has no input {str(unknown[0])!r}{accepted(unknown[0], needed)}")


def _further_input(values: Mapping[str, Any], preprocessing: Preprocessing) -> FurtherInput:
    """Return a further input from plain JSON types."""
    kind, tensor = values.get("kind"), values.get("input")
    if not isinstance(tensor, str) or not tensor:
        raise ValueError(f"a further input has the tensor {tensor!r}; accepted: the name of an input of the graph")
    if kind == AttributeInput.kind:
        return AttributeInput.from_dict(values)
    if kind == DescriptorInput.kind:
        return DescriptorInput.from_dict(values, preprocessing.shape)
    if kind != ImageInput.kind or set(values) != {"kind", "input", "name"}:
        raise ValueError(f"a further input is {dict(values)!r}; accepted: kind attributes, image or descriptors")
    if not isinstance(values["name"], str) or not values["name"]:
        raise ValueError(f"a further image has the name {values['name']!r}; accepted: text")
    return ImageInput(values["name"], tensor, preprocessing.shape)


def _shown(specs: Iterable[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape[1:])}" for spec in specs) or "none"
