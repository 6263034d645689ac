"""Running a model on files one by one, for the commands that give a result for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from krl_runtime.errors import DataError, ImageError, KrlError
from krl_runtime.images.folders import OnBadImage, report_bad
from krl_runtime.pipelines.image import ImagePipeline
from krl_runtime.progress import progress

__all__ = ["run_files"]

_Result = TypeVar("_Result")


def run_files(
    model: ImagePipeline[_Result], files: Sequence[Path], description: str, on_bad: OnBadImage, *, top_k: int = 1
) -> tuple[dict[Path, _Result], dict[Path, str]]:
    """Run a model on files; return the results, and the causes for files that cannot be read.

    The first file that is unreadable and refused makes the results worthless: the rest is only looked through, so that
    all unreadable files can be named.

    Raises:
        DataError: A file cannot be read and is refused, or none can be read.
    """
    results: dict[Path, _Result] = {}
    bad: dict[Path, str] = {}
    for file in progress(files, description):
        try:
            pixels = model.preprocessing(file)
        except ImageError as error:
            bad[file] = str(error)
            continue
        if on_bad == "skip" or not bad:
            (result,) = model.run_batch(pixels[None], [top_k])
            if isinstance(result, KrlError):
                raise result
            results[file] = result
    report_bad(list(bad.values()), on_bad)
    if not results:
        raise DataError("no image is left: none of the files can be decoded")
    return results, bad
