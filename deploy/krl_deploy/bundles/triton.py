"""Write a bundle as a model repository of NVIDIA's Triton Inference Server.

Layout and configuration as Triton's documentation has them (``model_repository.md``, ``model_configuration.md``)::

    REPOSITORY/NAME/config.pbtxt     batching, tensors, where it runs
                    labels.txt       class names, for Triton's classification extension
                    labels-2.txt     those of a second output
                    1/model.onnx     or model.plan, a TensorRT engine
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from krl_runtime.backends.select import Kind, choose_variant
from krl_runtime.bundle import Bundle, Engine, TensorSpec
from krl_runtime.bundle.heads import further_heads
from krl_runtime.errors import BundleError, UsageError
from krl_runtime.files import atomic_folder
from krl_runtime.serve.protocol import DATATYPES

__all__ = ["PackageConfig", "package"]

_log = logging.getLogger("krl")

_LABELS = "labels.txt"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class PackageConfig:
    """Options of ``krl-deploy package``."""

    bundle: tyro.conf.Positional[Path]
    """The bundle NAME.krl."""
    to: Literal["triton"] | None = None
    """Server to write for: triton, a model repository of the Triton Inference Server."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = tyro.MISSING
    """With --to triton: the repository, a folder; the model becomes a folder in it. With --slim: the file NAME.tar."""
    slim: bool = False
    """Write one file with only those parts of the bundle that a --target loads."""
    target: str | None = None
    """With --slim: jetpack-6.2, tensorrt-10.3, rtx, cuda, onnxruntime-cpu, openvino; the board's name is no target."""
    key: Path | None = None
    """With --slim: private key to sign the thinned bundle with; a signed bundle needs it, for the old signature does
    not hold for fewer files."""
    backend: Literal["auto", "tensorrt", "cuda", "cpu"] = "auto"
    """A TensorRT engine of the bundle, or ONNX Runtime on CUDA or the CPU; auto: an engine if there is one."""
    variant: str | None = None
    """fp32, fp16 or int8; left out: the bundle's default for the backend."""
    engine: str | None = None
    """Key of the engine, as krl-deploy inspect-engine lists them; needed where several match."""
    name: str | None = None
    """Name of the model in the repository; left out: the bundle's file name without .krl."""
    max_batch: int = 16
    """Images that Triton runs at once at most; an engine's profile may allow fewer."""
    max_delay_us: int = 1000
    """Microseconds that Triton may wait for more images before it runs a batch."""
    instances: int = 1
    """Copies of the model that run side by side."""
    overwrite: bool = False
    """Replace a model of this name in the repository, or the file."""
    json: bool = False
    """Print the result as one JSON object."""

    def __post_init__(self) -> None:
        """Check the ranges, and that one kind of package is asked for."""
        if self.out is tyro.MISSING:
            raise UsageError("out is missing")
        if self.slim == (self.to is not None):
            raise UsageError("give --to triton, or --slim with --target; one of them")
        if self.slim != (self.target is not None):
            raise UsageError("--slim and --target belong together; give both, or neither of them")
        if self.slim:
            self._refuse_others()
        elif self.key is not None:
            raise UsageError("--key is for --slim; a Triton repository is not signed")
        for option, value, least in (
            ("--max-batch", self.max_batch, 1),
            ("--max-delay-us", self.max_delay_us, 0),
            ("--instances", self.instances, 1),
        ):
            if value < least:
                raise UsageError(f"{option} is {value}; accepted: {least} or more")

    def _refuse_others(self) -> None:
        """Refuse options of a Triton repository."""
        for item in fields(self):
            if item.name in _TRITON_ALONE and getattr(self, item.name) != item.default:
                raise UsageError(f"--{item.name.replace('_', '-')} is for --to triton; leave it out with --slim")


_TRITON_ALONE = ("backend", "engine", "name", "max_batch", "max_delay_us", "instances")


@dataclass(frozen=True)
class _Packaged:
    """The packaged model: its file and bytes, its name in the repository, the largest batch (0: it takes none)."""

    kind: Kind
    variant: str
    file: str
    content: bytes
    target: str
    max_batch: int


def package(config: PackageConfig) -> dict[str, Any]:
    """Write the model into the repository, whole or not at all.

    Returns:
        Plain JSON types: the path and the facts of the repository.

    Raises:
        BundleError: The bundle or one of its files is missing, damaged or forged.
        UsageError: The bundle has no such variant or engine, Triton cannot run it, or the name is taken or not
            acceptable.
    """
    bundle = Bundle.open(config.bundle)
    manifest = bundle.manifest
    if manifest.task != "classification":
        raise UsageError(
            f"bundle {bundle.path} is for the task {manifest.task!r}; accepted: classification, whose images Triton "
            "takes as they are; restorers and generators need krl_runtime around them"
        )
    name = config.name or bundle.stem
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be a model's name in Triton; accepted with --name: letters, digits, _ . -")
    labels = _labels(bundle)
    if any("\n" in label or "\r" in label for _, several in labels.values() for label in several):
        raise UsageError("a label has a line break, and Triton reads one label from each line; export with others")
    source = _choose(bundle, config)
    folder = config.out / name
    if folder.exists() and not config.overwrite:
        raise UsageError(f"{folder} exists already; give another --name, or --overwrite to replace it")
    if folder.exists() and not (folder / "config.pbtxt").is_file():
        raise UsageError(f"{folder} is not a model of a Triton repository, so it is not replaced; give another --name")
    with atomic_folder(folder, replace=config.overwrite) as temporary:
        (temporary / "1").mkdir()
        (temporary / "1" / source.target).write_bytes(source.content)
        for file, several in labels.values():
            (temporary / file).write_text("".join(f"{label}\n" for label in several), encoding="utf-8")
        (temporary / "config.pbtxt").write_text(_configuration(bundle, source, name, config), encoding="utf-8")
    return {
        "model": str(folder),
        "name": name,
        "variant": source.variant,
        "file": source.file,
        "backend": source.kind,
        "max_batch": source.max_batch,
    }


def _labels(bundle: Bundle) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return for each output the name of the file of its labels, and these.

    Raises:
        BundleError: The manifest's labels do not fit its outputs.
    """
    manifest = bundle.manifest
    try:
        heads = further_heads(manifest)
    except ValueError as error:
        raise BundleError(f"bundle {bundle.path} is no classifier: {error}; export it again") from error
    further = {head.output: (f"labels-{place}.txt", head.labels) for place, head in enumerate(heads, start=2)}
    first = {manifest.outputs[0].name: (_LABELS, manifest.labels)} if manifest.labels else {}
    return {**first, **further}


def _choose(bundle: Bundle, config: PackageConfig) -> _Packaged:
    manifest = bundle.manifest
    kind: Kind = "cuda" if config.backend == "auto" else config.backend
    if config.engine is not None or (config.backend == "auto" and _tensorrt_engines(bundle)):
        kind = "tensorrt"
    if config.engine is not None and config.backend not in ("auto", "tensorrt"):
        raise UsageError(f"--engine is for the backend tensorrt, not {config.backend}; leave one of them out")
    if config.variant is not None and config.variant not in manifest.variants:
        raise UsageError(f"the bundle has no variant {config.variant!r}; it has: {', '.join(manifest.variants)}")
    if kind == "tensorrt":
        return _engine(bundle, config)
    variant = config.variant or choose_variant(bundle, kind)[0]
    chosen = manifest.variants[variant]
    # Triton leaves all optimizers of ONNX Runtime on, and one of them computes INT8 with FP16 around it wrongly.
    file = (chosen.cpu_file if kind == "cpu" else chosen.fp32_file) or chosen.file
    batched = not isinstance(manifest.inputs[0].shape[0], int)
    return _Packaged(kind, variant, file, bundle.read(file), "model.onnx", config.max_batch if batched else 0)


def _engine(bundle: Bundle, config: PackageConfig) -> _Packaged:
    """Return the one engine that fits."""
    chosen = bundle.engines.get(config.engine or "")
    if chosen is not None and chosen.library != "tensorrt":
        raise UsageError(
            f"engine {config.engine} is one of TensorRT-RTX, which Triton does not run; choose one of TensorRT, or "
            "leave --engine out"
        )
    engines = _tensorrt_engines(bundle)
    if not engines:
        raise UsageError("the bundle has no TensorRT engine; krl-deploy build-engine adds one, on the device")
    matching = {
        key: engine
        for key, engine in engines.items()
        if key == (config.engine or key) and engine.variant == (config.variant or engine.variant)
    }
    if len(matching) != 1:
        listed = "; ".join(
            f"{key} ({engine.variant}, TensorRT {engine.version}, {engine.gpu})" for key, engine in engines.items()
        )
        raise UsageError(f"{len(matching)} engines match; choose one with --engine; the bundle has: {listed}")
    ((key, engine),) = matching.items()
    _check_engine(key, engine)
    batched = not isinstance(bundle.manifest.inputs[0].shape[0], int)
    largest = min(config.max_batch, engine.batches[1]) if batched else 0
    return _Packaged("tensorrt", engine.variant, engine.file, bundle.engine_bytes(key), "model.plan", largest)


def _tensorrt_engines(bundle: Bundle) -> dict[str, Engine]:
    """Return the engines that Triton's backend ``tensorrt`` loads; those of TensorRT-RTX are others."""
    return {key: engine for key, engine in bundle.engines.items() if engine.library == "tensorrt"}


def _check_engine(key: str, engine: Engine) -> None:
    if engine.stripped:
        raise UsageError(f"engine {key} was built without its weights, which Triton cannot put in; build one with them")
    smallest, largest = engine.batches
    if smallest > 1:
        raise UsageError(
            f"engine {key} takes batches from {smallest} on, and Triton sends single images too; build one with "
            f"--profile 1,{engine.profiles[0][1]},{largest}"
        )
    if len(engine.profiles) > 1:
        raise UsageError(
            f"engine {key} has {len(engine.profiles)} optimization profiles, of which Triton uses the first alone; "
            f"build one with --profile 1,{engine.profiles[0][1]},{largest}"
        )
    _log.info(
        "Triton must have TensorRT %s%s and a GPU like %s (compute capability %s)",
        engine.version,
        " or newer, started with --backend-config=tensorrt,version-compatible=true,"
        if engine.version_compatible
        else "",
        engine.gpu,
        ", ".join(engine.compute_capabilities),
    )


def _configuration(bundle: Bundle, source: _Packaged, name: str, config: PackageConfig) -> str:
    """Return ``config.pbtxt``: Triton's ``ModelConfig``, in protobuf's text format."""
    manifest = bundle.manifest
    labels = {name: f"label_filename: {_quoted(file)}" for name, (file, _) in _labels(bundle).items()}
    lines = [
        f"name: {_quoted(name)}",
        f"backend: {_quoted('tensorrt' if source.kind == 'tensorrt' else 'onnxruntime')}",
        f"max_batch_size: {source.max_batch}",
        *(_tensor("input", spec, source) for spec in manifest.inputs),
        *(_tensor("output", spec, source, labels.get(spec.name, "")) for spec in manifest.outputs),
        f"instance_group [ {{ count: {config.instances} kind: KIND_{'CPU' if source.kind == 'cpu' else 'GPU'} }} ]",
    ]
    if source.max_batch:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {config.max_delay_us} }}")
    # The first request does not wait for one-time work of the backend.
    zeros = " ".join(
        f"inputs {{ key: {_quoted(spec.name)} value {{ {_type(spec)} {_dims(spec, source)} zero_data: true }} }}"
        for spec in manifest.inputs
    )
    lines.append(f'model_warmup [ {{ name: "zeros" batch_size: 1 {zeros} }} ]')
    facts = {
        "krl_bundle_digest": manifest.digest,
        "krl_variant": source.variant,
        "krl_preprocessing": json.dumps(manifest.preprocessing.to_dict(), sort_keys=True),
    }
    lines += [
        f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"
        for key, value in facts.items()
    ]
    return "\n".join(lines) + "\n"


def _tensor(kind: str, spec: TensorSpec, source: _Packaged, more: str = "") -> str:
    parts = [f"name: {_quoted(spec.name)}", _type(spec), _dims(spec, source), more]
    return f"{kind} [ {{ {' '.join(part for part in parts if part)} }} ]"


def _type(spec: TensorSpec) -> str:
    return f"data_type: TYPE_{DATATYPES[spec.dtype]}"


def _dims(spec: TensorSpec, source: _Packaged) -> str:
    """Return the shape; where Triton batches, it adds the first dimension itself."""
    sizes = spec.shape[1:] if source.max_batch else spec.shape
    return f"dims: [ {', '.join(str(size if isinstance(size, int) else -1) for size in sizes)} ]"


def _quoted(text: str) -> str:
    """Return a string literal of protobuf's text format, in ASCII: other bytes as octal escapes."""
    escaped = "".join(
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\' else f"\\{byte:03o}" for byte in text.encode()
    )
    return f'"{escaped}"'
