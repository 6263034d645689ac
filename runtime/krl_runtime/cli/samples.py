"""The samples of ``krl-runtime classify``: files, folders and lists of images, and further inputs of the options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from krl_runtime.bundle.further_inputs import IMAGE, FurtherInput, column_names
from krl_runtime.bundle.samples import sample_of
from krl_runtime.errors import UsageError, accepted
from krl_runtime.images.folders import OnBadImage, open_folder
from krl_runtime.images.lists import is_list

from .arguments import expand

__all__ = ["samples_of"]


def samples_of(
    inputs: Sequence[FurtherInput], paths: Sequence[Path], options: Sequence[str], on_bad: OnBadImage
) -> dict[Path, Any]:
    """Return the samples to classify, by file.

    Args:
        inputs: The model's further inputs.
        paths: Images, folders of them, and lists, whose columns have the further inputs that no option gives.
        options: Each ``NAME=VALUE``, for all images.
        on_bad: Action for files that are not images.

    Raises:
        UsageError: An option is not ``NAME=VALUE``, is given twice, names no input, or one is missing.
        DataError: A folder or list cannot be used.
    """
    given = _values(options)
    columns = column_names(inputs)
    names = [*columns[0], *columns[1]]
    unknown = [name for name in given if name not in names]
    if unknown:
        known = accepted(unknown[0], names) if names else "; it takes images alone"
        raise UsageError(f"--input {unknown[0]}: the model has no such input{known}")
    missing = [name for name in names if name not in given]
    samples: dict[Path, Any] = {}
    files = []
    for path in paths:
        if not is_list(path):
            files.append(path)
            continue
        attributes, images = ([name for name in each if name in missing] for each in columns)
        folder = open_folder(path, on_bad=on_bad, same_classes=False, attributes=attributes, images=images)
        samples |= {image.path: {**sample_of(image), **given} for image in folder.split("all")}
    if files and missing:
        raise UsageError(
            f"the model needs {', '.join(map(repr, missing))} beside the image; give --input {missing[0]}=VALUE, or a "
            f"list of images with the columns image, {', '.join(names)}"
        )
    for file in expand(files, on_bad):
        samples[file] = {IMAGE: file, **given} if given else file
    return samples


def _values(options: Sequence[str]) -> dict[str, str]:
    """Return the values of options by name."""
    values: dict[str, str] = {}
    for option in options:
        name, separator, value = option.partition("=")
        if not separator or not name or name in values:
            what = "is given twice" if name in values else "is not accepted"
            raise UsageError(f"--input {option!r} {what}; accepted: NAME=VALUE, each name once")
        values[name] = value
    return values
