"""The manifest of a bundle: the content of ``manifest.json``, its only valid bytes, and the checks on them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from krl_runtime.errors import BundleError, KrlError
from krl_runtime.files import dump_digested
from krl_runtime.images.preprocessing import Preprocessing

__all__ = [
    "PACKAGED_FOR",
    "SCHEMA_VERSION",
    "Engine",
    "FileEntry",
    "Manifest",
    "TensorSpec",
    "Variant",
    "parse_engines",
]

SCHEMA_VERSION = 3  # rises with each change of the format; an older bundle is exported again

PACKAGED_FOR = "packaged_for"
"""Key of a manifest's ``source``: the one target that a bundle was thinned for. Such a bundle may have no FP32."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of the graph.

    Attributes:
        name: Name of the tensor.
        dtype: Name of its numpy dtype.
        shape: Its dimensions: a number, or a name such as ``"batch"`` for any size.

    Example:
        >>> TensorSpec("pixels", "uint8", ("batch", 3, 224, 224)).shape
        ('batch', 3, 224, 224)
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Variant:
    """One precision of the model.

    Attributes:
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        file: The strongly typed ONNX file that TensorRT builds from and that ONNX Runtime runs on a GPU.
        cpu_file: The variant's graph for ONNX Runtime's CPU provider, if it differs from ``file``.
        fp32_file: The variant's graph with FP32 in place of FP16, for OpenVINO, if it differs from ``file``.
        tolerance: Largest absolute difference from the golden outputs that the self-test accepts.
        agreement: Smallest share, 0 to 1, of golden inputs with the golden top-1, or whose golden embedding is the
            nearest, that the self-test accepts.
        psnr: For outputs that are images, instead of ``agreement``: smallest PSNR in dB to the golden ones, the mean
            over images, that the self-test accepts.
        tf32: Of FP32, ``tolerance`` and ``agreement`` or ``psnr`` where a GPU multiplies in TF32, which was simulated
            when the bundle was made; none if that was not possible.
    """

    precision: str
    file: str
    cpu_file: str | None = None
    fp32_file: str | None = None
    tolerance: float = 1e-3
    agreement: float = 1.0
    psnr: float | None = None
    tf32: Mapping[str, float] = field(default_factory=dict)

    @property
    def files(self) -> tuple[str, ...]:
        """Return the names of its files."""
        return tuple(name for name in (self.file, self.cpu_file, self.fp32_file) if name is not None)


@dataclass(frozen=True)
class Engine:
    """A plan of TensorRT or TensorRT-RTX, with its device and model; it runs only if all of these match.

    Attributes:
        file: Path in the bundle.
        variant: The variant that it was built from.
        onnx_sha256: Hash of the ONNX file that it was built from.
        version: Version of the library, as ``"10.3.0.30"``.
        compute_capabilities: Of the GPUs that it is for, as ``("8.7",)``: one with TensorRT; with TensorRT-RTX several,
            or none, which is 8.6 and all later ones.
        gpu: Name of the GPU that it was built on; empty for TensorRT-RTX, which needs none.
        platform: As ``"linux-aarch64"``; empty for TensorRT-RTX, whose engines run on each.
        profiles: Smallest, best and largest batch size of each optimization profile, one or more.
        library: ``"tensorrt"`` or ``"tensorrt-rtx"``.
        height: Smallest, best and largest height of images; ``None`` if the graph has a fixed one.
        width: The same for the width.
        version_compatible: Whether newer TensorRT runs it as well, of the same major version or 11 one of 10; it
            carries its own runtime then.
        hardware_compatibility: ``"none"``, ``"ampere-plus"`` (any GPU from compute capability 8.0 on, no Jetson) or
            ``"same-compute-capability"``.
        dla_core: The DLA core that it was built for, if any.
        stripped: Whether its weights were left out; they are taken from the variant's ONNX file when it is loaded.
        tf32: Whether layers in FP32 may multiply in TF32.
        refittable: Whether new weights can be put into it.
    """

    file: str
    variant: str
    onnx_sha256: str
    version: str
    compute_capabilities: tuple[str, ...]
    gpu: str
    platform: str
    profiles: tuple[tuple[int, int, int], ...]
    library: str = "tensorrt"
    height: tuple[int, int, int] | None = None
    width: tuple[int, int, int] | None = None
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    dla_core: int | None = None
    stripped: bool = False
    tf32: bool = True
    refittable: bool = False

    @property
    def batches(self) -> tuple[int, int]:
        """Return the smallest and the largest batch of all profiles."""
        return min(low for low, _, _ in self.profiles), max(high for _, _, high in self.profiles)


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 of one file of the bundle."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """All that a bundle says of itself.

    Attributes:
        task: ``"classification"``, ``"embedding"``, ``"restoration"`` or ``"generation"``; it decides which pipeline
            loads the bundle.
        name: Name of the model, for people.
        inputs: The graph's inputs.
        outputs: The graph's outputs.
        preprocessing: From an image to the first input; of a generator, the size of the images that it makes.
        labels: Class names in the order of the logits; empty where the task has none.
        variants: By name: ``"fp32"``, and ``"fp16"`` and ``"int8"`` once they are made.
        default_variants: For a kind of device (``"cpu"``, ``"cuda"``) the variant that measured best there.
        engines: TensorRT plans by key.
        golden: File with real inputs and the outputs that torch computed for them.
        calibration: File with the identity and ranges of the INT8 calibration.
        evidence: Measurements of accuracy, parity and latency, each with its method and data.
        source: Where the model comes from: the run's and the weights' hashes, versions.
        files: Size and hash of every file but the manifest.
        digest: SHA-256 of the manifest without this field.
        settings: Further settings of the task's pipeline, as plain JSON types. The pipeline checks them.
        schema_version: Version of this format.
    """

    task: str
    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    variants: Mapping[str, Variant]
    default_variants: Mapping[str, str] = field(default_factory=dict)
    engines: Mapping[str, Engine] = field(default_factory=dict)
    golden: str | None = None
    calibration: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    schema_version: int = SCHEMA_VERSION

    def to_bytes(self) -> bytes:
        """Return the manifest file's only valid bytes for this content."""
        return dump_digested({**asdict(self), "preprocessing": self.preprocessing.to_dict()})

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Manifest:
        """Parse and check a manifest file.

        Args:
            data: The file's bytes.
            where: Its path, for messages.

        Raises:
            BundleError: It is not a manifest, of another schema version, or changed after it was written.
        """
        try:
            values = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{where} is not valid JSON ({error}); the bundle is damaged, export it again") from error
        if not isinstance(values, dict) or "schema_version" not in values:
            raise BundleError(f"{where} is not a krl manifest: it has no schema_version")
        if values["schema_version"] != SCHEMA_VERSION:
            raise BundleError(
                f"{where} has schema version {values['schema_version']}; this krl reads version {SCHEMA_VERSION}; "
                "export the bundle again, or use the krl that made it"
            )
        try:
            manifest = cls._build(values)
            unchanged = manifest.to_bytes() == data
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError, KrlError) as error:
            raise BundleError(f"{where} is not a krl manifest: {type(error).__name__}: {error}") from error
        if not unchanged:
            raise BundleError(f"{where} was changed after krl wrote it (its digest differs); export the bundle again")
        return manifest

    @classmethod
    def _build(cls, values: dict[str, Any]) -> Manifest:
        unknown = sorted(set(values) - {item.name for item in fields(cls)})
        if unknown:
            raise ValueError(f"unknown keys {unknown}")
        manifest = cls(
            **{
                **values,
                "inputs": tuple(_tensor(item) for item in values["inputs"]),
                "outputs": tuple(_tensor(item) for item in values["outputs"]),
                "preprocessing": Preprocessing.from_dict(values["preprocessing"]),
                "labels": tuple(values["labels"]),
                "variants": {name: Variant(**item) for name, item in values["variants"].items()},
                "engines": {name: _engine(item) for name, item in values["engines"].items()},
                "files": {name: FileEntry(**item) for name, item in values["files"].items()},
            }
        )
        parts = (manifest.variants, manifest.engines, manifest.files)
        for item in (
            manifest,
            *manifest.inputs,
            *manifest.outputs,
            *(item for part in parts for item in part.values()),
        ):
            _check_types(item)
        return manifest

    def with_files(self, files: Mapping[str, FileEntry]) -> Manifest:
        """Return the manifest with these files, in the order of their names."""
        return replace(self, files=dict(sorted(files.items())))

    def without_files(self, names: Collection[str]) -> Manifest:
        """Return the manifest without these files and their dependents."""
        variants = {
            key: variant for key, variant in self.variants.items() if not any(file in names for file in variant.files)
        }
        return replace(
            self,
            variants=variants,
            default_variants={kind: name for kind, name in self.default_variants.items() if name in variants},
            engines={
                key: engine
                for key, engine in self.engines.items()
                if engine.file not in names and engine.variant in variants
            },
            golden=None if self.golden in names else self.golden,
            calibration=None if self.calibration in names else self.calibration,
            files={name: entry for name, entry in self.files.items() if name not in names},
        )


_TYPES: dict[str, type | tuple[type, ...]] = {
    "bool": bool,
    "float": (float, int),
    "float | None": (float, int, type(None)),
    "int": int,
    "int | None": (int, type(None)),
    "str": str,
    "str | None": (str, type(None)),
    "Mapping[str, Any]": dict,
    "Mapping[str, float]": dict,
    "Mapping[str, str]": dict,
}
_ITEM_TYPES: dict[str, type | tuple[type, ...]] = {
    "Mapping[str, float]": (float, int),
    "Mapping[str, str]": str,
    "tuple[int, int, int] | None": int,
    "tuple[int | str, ...]": (int, str),
    "tuple[str, ...]": str,
}


def _check_types(item: Any) -> None:
    """Check the values of a dataclass that was built from JSON: a forged manifest must not raise later, elsewhere."""
    for entry in fields(item):
        value, declared = getattr(item, entry.name), str(entry.type)
        wrong = declared in _TYPES and not isinstance(value, _TYPES[declared])
        if value is None and declared.endswith("| None"):
            continue
        if not wrong and declared in _ITEM_TYPES:
            items = value.values() if isinstance(value, dict) else value
            wrong = isinstance(value, str) or not isinstance(items, Iterable)
            wrong = wrong or not all(isinstance(part, _ITEM_TYPES[declared]) for part in items)
        if wrong or (declared.startswith(_THREE) and len(value) != 3):
            raise TypeError(f"{entry.name} is {value!r}; accepted: {declared}")


_THREE = "tuple[int, int, int]"
_ENGINE_TUPLES = ("compute_capabilities", "height", "width")


def parse_engines(
    engines: Mapping[str, dict[str, Any]], files: Mapping[str, dict[str, Any]]
) -> tuple[dict[str, Engine], dict[str, FileEntry]]:
    """Return engines by key and their files by name, from JSON.

    Raises:
        ValueError: A value is not accepted.
        TypeError: A field is missing, unknown or of another type.
    """
    made = {key: _engine(dict(item)) for key, item in engines.items()}
    entries = {name: FileEntry(**item) for name, item in files.items()}
    for item in (*made.values(), *entries.values()):
        _check_types(item)
    return made, entries


def _engine(values: dict[str, Any]) -> Engine:
    """Return an engine; JSON's lists become tuples."""
    if values.get("library") not in ("tensorrt", "tensorrt-rtx"):
        raise ValueError(f"library is {values.get('library')!r}; accepted: tensorrt, tensorrt-rtx")
    lists: dict[str, Any] = {name: tuple(values[name]) for name in _ENGINE_TUPLES if isinstance(values.get(name), list)}
    profiles = values.get("profiles")
    if not isinstance(profiles, list) or not profiles or not all(map(_is_range, profiles)):
        raise TypeError(f"profiles is {profiles!r}; accepted: a list of [smallest, best, largest batch]")
    return Engine(**{**values, **lists, "profiles": tuple(map(tuple, profiles))})


def _is_range(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(isinstance(size, int) for size in value)


def _tensor(values: dict[str, Any]) -> TensorSpec:
    return TensorSpec(**{**values, "shape": tuple(values["shape"])})
