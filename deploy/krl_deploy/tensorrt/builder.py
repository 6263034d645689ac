"""From a typed ONNX file to a TensorRT engine, on the device that is to run it.

Not measured: no engine has been built on a GPU yet. The logic runs in tests against fakes whose calls are bound to
the signatures of the real bindings, 10.3, 10.16 and 11.4.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from krl_runtime.backends.tensorrt_calls import attempt, check, tensorrt_logger
from krl_runtime.errors import BackendError, ModelError, UsageError

from . import api
from .progress import BuildProgress, run_cancellable

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["BuildOptions", "BuiltPlan", "build_plan"]

_log = logging.getLogger("krl")


@dataclass(frozen=True)
class BuildOptions:
    """How to build; the types of the network are not among it, they stand in the ONNX file.

    Attributes:
        profile: Smallest, best and largest batch.
        workspace_bytes: Memory that a layer may use for itself while it runs.
        optimization_level: 0 (quick to build) to 5 (quick to run).
        dla_core: DLA core for the layers that it supports; the rest run on the GPU.
        version_compatible: Make an engine that newer TensorRT of the same major version runs as well.
        hardware_compatibility: ``"none"``, ``"ampere-plus"`` or ``"same-compute-capability"``.
        refit: Allow new weights to be put into the engine later.
        strip_weights: Leave the weights out; they are put in from the ONNX file when the engine is loaded.
        time_limit: Seconds after which to give up.
    """

    profile: tuple[int, int, int] = (1, 1, 1)
    workspace_bytes: int | None = None
    optimization_level: int = 3
    dla_core: int | None = None
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    refit: bool = False
    strip_weights: bool = False
    time_limit: float | None = None

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            UsageError: One is out of its range, or two contradict each other.
        """
        low, best, high = self.profile
        if not 1 <= low <= best <= high:
            raise UsageError(f"--profile is {low},{best},{high}; accepted: 1 <= MIN <= OPT <= MAX")
        if not 0 <= self.optimization_level <= 5:
            raise UsageError(f"--optimization-level is {self.optimization_level}; accepted: 0 to 5")
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise UsageError("--workspace-mb is too small; accepted: 1 or more")
        if self.time_limit is not None and not self.time_limit > 0:
            raise UsageError(f"--time-limit is {self.time_limit:g}; accepted: seconds, more than 0")
        if self.dla_core is not None and self.dla_core < 0:
            raise UsageError(f"--dla-core is {self.dla_core}; accepted: 0 or more")
        if self.dla_core is not None and low != high:
            raise UsageError(f"--dla-core needs one fixed batch, as in --profile {best},{best},{best}")

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of the key that distinguish the engine from one that was built without options."""
        return tuple(
            name
            for name, given in (
                (f"dla{self.dla_core}", self.dla_core is not None),
                ("vc", self.version_compatible),
                (self.hardware_compatibility, self.hardware_compatibility != "none"),
                ("refit", self.refit),
                ("stripped", self.strip_weights),
            )
            if given
        )


@dataclass(frozen=True)
class BuiltPlan:
    """A finished engine.

    Attributes:
        plan: The engine's bytes as TensorRT made them.
        timing_cache: Measurements of the build, which make the next build on this device faster.
        seconds: Duration of the build.
        layers: Number of layers of the network.
        on_gpu: Of those, the names of the ones that the DLA core does not take; empty without DLA.
    """

    plan: bytes
    timing_cache: bytes
    seconds: float
    layers: int
    on_gpu: tuple[str, ...]


def build_plan(
    onnx: bytes, options: BuildOptions, *, version: str, free_bytes: int, timing_cache: bytes = b""
) -> BuiltPlan:
    """Build an engine with the TensorRT and for the GPU of this machine.

    Args:
        onnx: The ONNX file, with all its weights.
        options: How to build.
        version: TensorRT's version here.
        free_bytes: Free memory of the GPU; the workspace is no larger.
        timing_cache: That of an earlier build; one of another device is set aside with a warning.

    Raises:
        ModelError: TensorRT's parser refuses the ONNX file; the message has node and operator.
        UsageError: An option is not for this TensorRT or this network.
        BackendError: The build failed, with the reason from TensorRT's log, or took longer than its limit.
        KeyboardInterrupt: Ctrl-C was pressed; the build has been stopped.
    """
    import tensorrt as trt

    start = time.monotonic()
    with attempt("building the engine"):
        builder = trt.Builder(tensorrt_logger())
        network = check(builder.create_network(api.network_flags(version)), "no network can be made")
        parser = trt.OnnxParser(network, tensorrt_logger())
        if not parser.parse(onnx):
            raise _parser_error(parser, version)
        config = check(builder.create_builder_config(), "no configuration can be made")
        _configure(config, options, version, free_bytes)
        _add_profile(builder, network, config, options.profile)
        _use_timing_cache(config, timing_cache)
        on_gpu = () if options.dla_core is None else _use_dla(builder, network, config, options.dla_core)
        with BuildProgress(options.time_limit) as progress:
            config.progress_monitor = progress.monitor()
            plan = run_cancellable(lambda: builder.build_serialized_network(network, config), progress)
        if progress.canceled:
            raise BackendError(f"the engine was not built: {progress.canceled}")
        data = bytes(check(plan, "TensorRT could not do it"))
        cache = check(config.get_timing_cache(), "the timing cache is gone")
        cache_data = bytes(check(cache.serialize(), "the timing cache cannot be serialized"))
        return BuiltPlan(data, cache_data, time.monotonic() - start, network.num_layers, on_gpu)


def _parser_error(parser: trt.OnnxParser, version: str) -> Exception:
    """Return the parser's complaints as one error that names the nodes."""
    faults = []
    for index in range(parser.num_errors):
        error = check(parser.get_error(index), "the parser has lost its error")
        node = f"node {error.node_name()!r} ({error.node_operator()}): " if error.node_operator() else ""
        faults.append(f"\n  {node}{error.desc()}")
    if not faults:
        check(False, "TensorRT's parser refuses the ONNX file")
    return ModelError(f"TensorRT {version} does not take this ONNX file:{''.join(faults)}")


def _configure(config: trt.IBuilderConfig, options: BuildOptions, version: str, free_bytes: int) -> None:
    import tensorrt as trt

    wanted = options.workspace_bytes or free_bytes
    if wanted > free_bytes:
        _log.warning("workspace: %d MiB of the %d asked for, more is not free", free_bytes >> 20, wanted >> 20)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, min(wanted, free_bytes))
    config.builder_optimization_level = options.optimization_level
    level = api.hardware_compatibility_level(options.hardware_compatibility, version)
    config.hardware_compatibility_level = level
    flags = (
        (trt.BuilderFlag.VERSION_COMPATIBLE, options.version_compatible),
        (trt.BuilderFlag.REFIT, options.refit),
        (trt.BuilderFlag.STRIP_PLAN, options.strip_weights),
        (trt.BuilderFlag.GPU_FALLBACK, options.dla_core is not None),
    )
    for flag, wanted_flag in flags:
        if wanted_flag:
            config.set_flag(flag)


def _add_profile(
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    config: trt.IBuilderConfig,
    batches: tuple[int, int, int],
) -> None:
    """Set the batches of the engine; a graph with a fixed batch takes only that one."""
    profile = check(builder.create_optimization_profile(), "no optimization profile can be made")
    inputs = [check(network.get_input(i), "an input is missing") for i in range(network.num_inputs)]
    for tensor in inputs:
        batch, *rest = tuple(tensor.shape)
        if batch == -1:
            profile.set_shape(tensor.name, *((size, *rest) for size in batches))
        elif batches != (batch, batch, batch):
            asked = ",".join(map(str, batches))
            raise UsageError(
                f"input {tensor.name!r} has a fixed batch of {batch}, --profile is {asked}; accepted: "
                f"--profile {batch},{batch},{batch}, or export the model with a dynamic batch"
            )
    if any(tensor.shape[0] == -1 for tensor in inputs):
        check(bool(profile), "TensorRT finds the optimization profile incomplete")
        check(config.add_optimization_profile(profile) >= 0, "TensorRT refuses the optimization profile")


def _use_timing_cache(config: trt.IBuilderConfig, data: bytes) -> None:
    for content in (data, b"") if data else (b"",):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return
        if content:
            _log.warning("the timing cache is of another GPU or TensorRT; a new one is started")
    check(None, "no timing cache can be used")


def _use_dla(
    builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig, core: int
) -> tuple[str, ...]:
    """Put the network on a DLA core, and return the names of the layers that it does not take."""
    import tensorrt as trt

    if core >= builder.num_DLA_cores:
        raise UsageError(
            f"--dla-core is {core}, but this machine and TensorRT offer {builder.num_DLA_cores} DLA cores; Orin has "
            "them with JetPack 6, and with TensorRT 11.4.1 on JetPack 7.2.2; Thor and desktop GPUs have none"
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    layers = [check(network.get_layer(index), "a layer is missing") for index in range(network.num_layers)]
    return tuple(layer.name for layer in layers if not config.can_run_on_DLA(layer))
