"""The ONNX file that an engine is built from, and the facts and checks that need no TensorRT."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from krl_runtime.bundle import TensorSpec
from krl_runtime.errors import ModelError
from krl_runtime.files import sha256_bytes

if TYPE_CHECKING:
    import onnx

    from krl_deploy.rules.targets import Target

__all__ = ["OnnxFile", "read_source"]

_log = logging.getLogger("krl")


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file that TensorRT can be given.

    Attributes:
        path: Path of the file.
        data: Its bytes; all weights are in it.
        sha256: Their hash.
        inputs: The graph's inputs; a dynamic batch is ``"batch"``.
        ignored: Errors of the check that the user chose to ignore, one line for each.
    """

    path: Path
    data: bytes
    sha256: str
    inputs: tuple[TensorSpec, ...]
    ignored: tuple[str, ...] = ()


def read_source(path: Path, target: Target, *, beside: bool = False, ignore_errors: bool = False) -> OnnxFile:
    """Read an ONNX file and check it for a target, as ``krl-deploy check`` does; warnings are logged.

    Args:
        path: The file.
        target: The target.
        beside: Whether its weights may be in other files of its folder.
        ignore_errors: Whether errors of the check are logged and recorded, and do not stop the build.

    Raises:
        ModelError: The file is not a model, or the check finds errors; the message names each node.
    """
    from krl_deploy.graph.files import one_file, read_model
    from krl_deploy.rules.report import grouped, named
    from krl_deploy.rules.run import findings_of

    model = read_model(path, beside=beside)
    errors = []
    for finding, nodes in grouped(findings_of(model, target)):
        line = f"{named(finding, nodes)}: {finding.why}"
        if finding.severity == "error":
            errors.append(line)
        elif finding.severity == "warning":
            _log.warning("%s: %s; %s [%s]", path.name, line, finding.do, finding.source)
    if errors and ignore_errors:
        for line in errors:
            _log.warning("%s: error ignored, as asked: %s", path.name, line)
    elif errors:
        shown = "".join(f"\n  {line}" for line in errors[:20])
        command = f"krl-deploy check {path} --target {target.name}"
        raise ModelError(
            f"{path} is not ready for {target.name}:{shown}\nwhat to do: {command}; --ignore-errors tries the build "
            "nevertheless, and records them"
        )
    data = one_file(path) or path.read_bytes()
    return OnnxFile(path, data, sha256_bytes(data), tuple(_spec(value) for value in model.graph.input), tuple(errors))


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    from onnx import helper

    tensor = value.type.tensor_type
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") else ("batch" if axis == 0 else dim.dim_param or "?")
        for axis, dim in enumerate(tensor.shape.dim)
    )
    return TensorSpec(value.name, helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape)
