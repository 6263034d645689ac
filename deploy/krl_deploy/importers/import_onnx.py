"""``krl-deploy import``: from a third-party ONNX file to a bundle, for any task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx

from krl_deploy.bundles.reference import Reference, check_target, make_reference
from krl_deploy.config import ImportConfig
from krl_deploy.graph.files import opset_of, read_model, to_bytes
from krl_deploy.graph.infinities import check_numbers
from krl_deploy.graph.session import open_cpu
from krl_runtime import load
from krl_runtime.bundle import Bundle
from krl_runtime.errors import CheckFailedError, KrlError
from krl_runtime.files import sha256_file

from .classifier import import_classifier
from .generator import import_generator
from .restorer import import_restorer
from .rewritten import Rewritten

__all__ = ["import_onnx"]

_IMPORTERS: dict[str, Callable[[ImportConfig, onnx.ModelProto], Rewritten]] = {
    "classification": import_classifier,
    "restoration": import_restorer,
    "generation": import_generator,
}


def import_onnx(config: ImportConfig) -> dict[str, Any]:
    """Rewrite a third-party model for the runtime, check that its outputs stay the same, measure it, write the bundle.

    Returns:
        Facts of the bundle and its measurements, as plain JSON types.

    Raises:
        ModelError: The file is not an ONNX model of the task that krl can take.
        UsageError: An option does not fit it.
        CheckFailedError: The outputs of the rewritten graph, or the predictions of the bundle, differ from the file's.
            Or the float model of a quantized file is another one.
        DataError: The images cannot be used.
        BundleError: ``out`` exists, and ``overwrite`` is off.
    """
    check_target(config.out, overwrite=config.overwrite)
    original = read_model(config.model, beside=True)
    check_numbers(original)
    rewritten = _IMPORTERS[config.task](config, original)
    check_numbers(rewritten.model)
    data, changes = to_bytes(rewritten.model), list(rewritten.changes)
    reference = make_reference(
        data,
        rewritten.inputs,
        rewritten.outputs,
        name=config.model.stem,
        preprocessing=rewritten.preprocessing,
        source={"kind": "onnx", "file": config.model.name, "sha256": sha256_file(config.model), "changes": changes},
        task=config.task,
        labels=rewritten.labels,
        settings=rewritten.settings,
        brought=rewritten.brought,
    )
    _verify(reference, rewritten)
    evidence = {
        **rewritten.measure(Bundle(config.out, reference.manifest), open_cpu(data)),
        "file_bytes": len(data),
        "opset": opset_of(rewritten.model),
    }
    bundle = reference.write(config.out, evidence, overwrite=config.overwrite)
    (given,) = bundle.manifest.inputs
    shown = f"{given.dtype} [{', '.join(map(str, given.shape))}]"
    return {"bundle": str(bundle.path), "input": shown, "changes": changes, **evidence}


def _verify(reference: Reference, rewritten: Rewritten) -> None:
    """Load the bundle as a device does, from a temporary folder, and compare it with the file.

    Raises:
        CheckFailedError: The runtime refuses it, or its predictions differ from the file's.
    """
    with TemporaryDirectory() as folder:
        trial = reference.write(Path(folder, "trial.krl"), {}, overwrite=False)
        try:
            with load(trial.path, require="cpu") as pipeline:
                rewritten.verify(pipeline)
        except CheckFailedError as error:
            raise CheckFailedError(f"the bundle is not written: {error}") from error
        except KrlError as error:
            raise CheckFailedError(f"the bundle is not written, krl-runtime cannot run it: {error}") from error
