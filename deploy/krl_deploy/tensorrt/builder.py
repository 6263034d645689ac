"""From a typed ONNX file to an engine: of TensorRT on the device that is to run it, of TensorRT-RTX anywhere.

The tests build with the real TensorRT-RTX. Not measured: no engine of TensorRT 10 or 11 has been built yet. For them
the logic runs in tests against fakes whose calls are bound to the signatures of the real bindings.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from krl_runtime.backends.cuda import Gpu
from krl_runtime.backends.tensorrt.calls import attempt, check, tensorrt_logger
from krl_runtime.backends.tensorrt.library import Library
from krl_runtime.errors import BackendError, ModelError, UsageError

from . import api
from .network import layer_types, layers
from .options import BuildOptions
from .profiles import add_profiles
from .progress import BuildProgress, run_cancellable

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["BuiltPlan", "build_plan", "parse"]

_log = logging.getLogger("krl")

_SHARED_PART = 0.5
"""Part of the free memory that the workspace may take where the CPU shares it. Weights, the builder's copies of them
and the application live there, too, and Linux ends a process when it is full. A choice, not measured."""


@dataclass(frozen=True)
class BuiltPlan:
    """A finished engine.

    Attributes:
        plan: The engine's bytes as the library made them.
        timing_cache: Measurements of the build, which make the next build on this device faster; empty for
            TensorRT-RTX, which measures nothing.
        seconds: Duration of the build.
        layers: Number of layers of the network.
        on_gpu: Of those, the names of the ones that the DLA core does not take; empty without DLA.
        layer_types: Number of layers by kind and type, as ``{"CONVOLUTION HALF": 20}``.
    """

    plan: bytes
    timing_cache: bytes
    seconds: float
    layers: int
    on_gpu: tuple[str, ...]
    layer_types: Mapping[str, int] = field(default_factory=dict)


def build_plan(
    onnx: bytes, options: BuildOptions, library: Library, *, gpu: Gpu | None = None, timing_cache: bytes = b""
) -> BuiltPlan:
    """Build an engine.

    Args:
        onnx: The ONNX file, with all its weights.
        options: How to build.
        library: The library that builds.
        gpu: The GPU, whose free memory the workspace may take at most; ``None`` without one.
        timing_cache: That of an earlier build; one of another device is set aside with a warning.

    Raises:
        ModelError: The parser refuses the ONNX file; the message has node and operator.
        UsageError: An option is not for this library or this network.
        BackendError: The build failed, with the reason from the library's log, or took longer than its limit.
        KeyboardInterrupt: Ctrl-C was pressed; the build has been stopped.
    """
    if TYPE_CHECKING:
        import tensorrt as trt
    trt = library.module
    start = time.monotonic()
    with attempt("building the engine"):
        builder = trt.Builder(tensorrt_logger(library))
        network = parse(onnx, builder, library)
        config = check(builder.create_builder_config(), "no configuration can be made")
        _configure(config, options, library, gpu)
        add_profiles(builder, network, config, options)
        cached = api.has_timing_cache(library)
        if cached:
            _use_timing_cache(config, timing_cache)
        on_gpu = () if options.dla_core is None else _use_dla(builder, network, config, options.dla_core, library)
        with BuildProgress(options.time_limit) as progress:
            config.progress_monitor = progress.monitor(library)
            plan = run_cancellable(lambda: builder.build_serialized_network(network, config), progress)
        if progress.canceled:
            raise BackendError(f"the engine was not built: {progress.canceled}")
        data = bytes(check(plan, "TensorRT could not do it"))
        times = _timing_cache(config) if cached else b""
        types = layer_types(network)
        return BuiltPlan(data, times, time.monotonic() - start, network.num_layers, on_gpu, types)


def parse(onnx: bytes, builder: trt.Builder, library: Library) -> trt.INetworkDefinition:
    """Return the network that the library's parser makes of an ONNX file.

    Raises:
        ModelError: It refuses the file; the message has node and operator.
    """
    if TYPE_CHECKING:
        import tensorrt as trt
    trt = library.module
    network = check(builder.create_network(api.network_flags(library)), "no network can be made")
    parser = trt.OnnxParser(network, tensorrt_logger(library))
    if not parser.parse(onnx):
        raise _parser_error(parser, library)
    return network


def _parser_error(parser: trt.OnnxParser, library: Library) -> Exception:
    """Return the parser's complaints as one error that names the nodes."""
    faults = []
    for index in range(parser.num_errors):
        error = check(parser.get_error(index), "the parser has lost its error")
        node = f"node {error.node_name()!r} ({error.node_operator()}): " if error.node_operator() else ""
        faults.append(f"\n  {node}{error.desc()}")
    if not faults:
        check(False, "TensorRT's parser refuses the ONNX file")
    return ModelError(f"{library.title} does not take this ONNX file:{''.join(faults)}")


def _workspace(options: BuildOptions, gpu: Gpu | None) -> int | None:
    """Return the bytes of the workspace; ``None`` leaves them to the library."""
    asked = options.workspace_bytes
    if gpu is None:
        return asked
    if asked is not None and asked > gpu.free_bytes:
        _log.warning("workspace: %d MiB of the %d asked for, more is not free", gpu.free_bytes >> 20, asked >> 20)
        return gpu.free_bytes
    return asked or int(gpu.free_bytes * (_SHARED_PART if gpu.shares_memory else 1))


def _configure(config: trt.IBuilderConfig, options: BuildOptions, library: Library, gpu: Gpu | None) -> None:
    if TYPE_CHECKING:
        import tensorrt as trt
    trt = library.module
    workspace = _workspace(options, None if library.rtx else gpu)
    if workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    config.builder_optimization_level = options.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # layers keep their types, for inspect-engine
    api.set_hardware_compatibility(library, config, options.hardware_compatibility)
    if library.rtx:
        api.set_compute_capabilities(library, config, options.compute_capabilities)
    flags = (
        (trt.BuilderFlag.VERSION_COMPATIBLE, options.version_compatible),
        (trt.BuilderFlag.REFIT, options.refit or (library.rtx and options.strip_weights)),
        (trt.BuilderFlag.STRIP_PLAN, options.strip_weights),
        (trt.BuilderFlag.GPU_FALLBACK, options.dla_core is not None),
        (trt.BuilderFlag.SPARSE_WEIGHTS, options.sparse_weights),
    )
    for flag, wanted_flag in flags:
        if wanted_flag:
            config.set_flag(flag)
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)


def _use_timing_cache(config: trt.IBuilderConfig, data: bytes) -> None:
    for content in (data, b"") if data else (b"",):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return
        if content:
            _log.warning("the timing cache is of another GPU or TensorRT; a new one is started")
    check(None, "no timing cache can be used")


def _timing_cache(config: trt.IBuilderConfig) -> bytes:
    cache = check(config.get_timing_cache(), "the timing cache is gone")
    return bytes(check(cache.serialize(), "the timing cache cannot be serialized"))


def _use_dla(
    builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig, core: int, library: Library
) -> tuple[str, ...]:
    """Put the network on a DLA core, and return the names of the layers that it does not take."""
    if TYPE_CHECKING:
        import tensorrt as trt
    trt = library.module
    if core >= builder.num_DLA_cores:
        raise UsageError(
            f"--dla-core is {core}, but this machine and TensorRT offer {builder.num_DLA_cores} DLA cores; Orin has "
            "them with JetPack 6, and with TensorRT 11.4.1 on JetPack 7.2.2; Thor and desktop GPUs have none"
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    return tuple(layer.name for layer in layers(network) if not config.can_run_on_DLA(layer))
