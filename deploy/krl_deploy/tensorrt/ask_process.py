"""The process that shows one ONNX file to NVIDIA's parser and builder, and that they may kill.

``python -m krl_deploy.tensorrt.ask_process MODEL RESULT LIBRARIES SECONDS [layers]`` writes one JSON object on each
line of RESULT, as soon as it knows something, so that the last line before a crash says what killed it. With
``layers`` it records the layers of the parsed network, and builds nothing.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from krl_runtime.backends.cuda import NoTensorRTError
from krl_runtime.backends.tensorrt.calls import attempt, check
from krl_runtime.backends.tensorrt.library import Library, rtx_library, tensorrt_library
from krl_runtime.errors import BackendError

from . import api
from .network import described

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["main"]

_LIBRARIES = {"tensorrt": tensorrt_library, "tensorrt-rtx": rtx_library}
_PARSING = re.compile(r"(?:Static check for parsing|Parsing) node: (.*) \[(\w+)\]$")


class _Record:
    """The lines of the result."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, **facts: Any) -> None:
        self._file.write(json.dumps(facts) + "\n")
        self._file.flush()  # a crash runs no exit handlers


def main(arguments: Sequence[str]) -> int:
    """Ask about one file, and return the exit code."""
    model, result, names, seconds, *listing = arguments
    _bound(float(seconds))
    with Path(result).open("w", encoding="utf-8") as file:
        record = _Record(file)
        try:
            with attempt("asking the parser"):
                library, builder, logger = _builder(names.split(","), record)
                _ask(Path(model).read_bytes(), library, builder, logger, record, layers="layers" in listing)
        except BackendError as error:
            record.write(failure=str(error), missing=isinstance(error, NoTensorRTError))
    return 0


def _bound(seconds: float) -> None:
    """End this process after some time, should its parent no longer be there to do so, and write no core dump."""
    if sys.platform != "win32":  # which has neither
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is expected, and a dump has the size of the model
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _builder(names: Sequence[str], record: _Record) -> tuple[Library, trt.Builder, Any]:
    """Return the first library that can make a builder here, with the builder and its logger.

    Raises:
        NoTensorRTError: None of them can; the message has the reason of each.
    """
    reasons = []
    for name in names:
        try:
            library = _LIBRARIES[name]()
            api.generation(library)
            with attempt(f"{library.title} makes no builder here"):
                logger = _logger(library, record)
                builder = library.module.Builder(logger)
        except BackendError as error:
            reasons.append(str(error))
        else:
            record.write(library=library.name, title=library.title, version=library.version, reasons=reasons)
            return library, builder, logger
    raise NoTensorRTError("; ".join(reasons))


def _logger(library: Library, record: _Record) -> Any:
    """Return a logger that keeps the errors, and records each node that the parser begins with."""
    if TYPE_CHECKING:
        import tensorrt as trt
    trt = library.module
    severe = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # the binding asks for this very call
            self.errors: list[str] = []

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity in severe:
                self.errors.append(msg)
            elif match := _PARSING.match(msg):
                record.write(node=match[1], op=match[2])

    return Log()


def _ask(
    onnx: bytes, library: Library, builder: trt.Builder, logger: Any, record: _Record, *, layers: bool = False
) -> None:
    """Record what the parser says of a file, and the builder, if only the batch is open."""
    if TYPE_CHECKING:
        import tensorrt as trt
    trt = library.module
    start = time.monotonic()
    network = check(builder.create_network(api.network_flags(library)), "no network can be made")
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx):
        errors = [check(parser.get_error(index), "the parser has lost its error") for index in range(parser.num_errors)]
        said = [{"node": each.node_name(), "op": each.node_operator(), "why": each.desc()} for each in errors]
        others = [{"node": "", "op": "", "why": line} for line in logger.errors]
        record.write(done=True, parsed=False, faults=said or others[:1], seconds=time.monotonic() - start)
        return
    record.write(parsed=True)
    if layers:
        record.write(done=True, layers=described(network), seconds=time.monotonic() - start)
        return
    config = check(builder.create_builder_config(), "no configuration can be made")
    if not library.rtx:
        config.builder_optimization_level = 0  # the graph's faults count here, not the speed of the engine
    if not _add_profile(builder, network, config):
        record.write(done=True, seconds=time.monotonic() - start)
        return
    record.write(building=True)
    logger.errors.clear()
    plan = builder.build_serialized_network(network, config)
    faults = [] if plan is not None else [{"node": "", "op": "", "why": line} for line in logger.errors[:1]]
    record.write(done=True, built=plan is not None, faults=faults, seconds=time.monotonic() - start)


def _add_profile(builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig) -> bool:
    """Set a batch of 1 where the batch is open, and return whether everything else is fixed.

    An input that other shapes are computed from is not: its values would need a range.
    """
    inputs = [check(network.get_input(index), "an input is missing") for index in range(network.num_inputs)]
    if any(-1 in tuple(tensor.shape)[1:] or tensor.is_shape_tensor for tensor in inputs):
        return False
    profile = check(builder.create_optimization_profile(), "no optimization profile can be made")
    for tensor in inputs:
        shape = tuple(tensor.shape)
        if -1 in shape:
            fixed = (1, *shape[1:])
            profile.set_shape(tensor.name, fixed, fixed, fixed)
    if any(-1 in tuple(tensor.shape) for tensor in inputs):
        check(config.add_optimization_profile(profile) >= 0, "the library refuses the optimization profile")
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
