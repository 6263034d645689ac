"""Running a model on files one by one, for the commands that give a result for each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from krl_runtime.bundle.tensors import stacked
from krl_runtime.errors import DataError, ImageError, KrlError, UsageError
from krl_runtime.images.folders import OnBadImage, report_bad
from krl_runtime.pipelines.image import ImagePipeline
from krl_runtime.progress import progress

__all__ = ["run_samples"]

_Result = TypeVar("_Result")


def run_samples(
    model: ImagePipeline[_Result], samples: Mapping[Path, Any], description: str, on_bad: OnBadImage, *, top_k: int = 1
) -> tuple[dict[Path, _Result], dict[Path, str]]:
    """Run a model on files, or samples by their file; return the results, and the causes for those it cannot use.

    The first file that is unusable and refused makes the results worthless: the rest is only looked through, so that
    all unusable files can be named.

    Raises:
        DataError: A file cannot be used and is refused, or none can be used.
    """
    results: dict[Path, _Result] = {}
    bad: dict[Path, str] = {}
    for file, sample in progress(list(samples.items()), description):
        try:
            prepared = model.prepare(sample)
        except (ImageError, UsageError) as error:
            bad[file] = str(error) if isinstance(error, ImageError) else f"{file}: {error}"
            continue
        if on_bad == "skip" or not bad:
            (result,) = model.run_batch(stacked([prepared]), [top_k])
            if isinstance(result, KrlError):
                raise result
            results[file] = result
    report_bad(list(bad.values()), on_bad)
    if not results:
        raise DataError("no image is left: none of the files can be decoded")
    return results, bad
