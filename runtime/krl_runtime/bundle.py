"""The bundle: the folder ``NAME.krl/`` that deployment makes and the runtime loads. This module owns its format.

``manifest.json`` names every other file with its size and SHA-256, and carries a digest of itself. A file is
hashed before it is used; a path that leaves the folder is refused; an engine, which is code, is only ever
loaded from a bundle whose manifest vouches for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._files import atomic_folder, atomic_path, inside, sha256_bytes, sha256_file
from .errors import BundleError, KrlError
from .preprocess import Preprocessing

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["MANIFEST", "SCHEMA_VERSION", "Bundle", "Engine", "FileEntry", "Manifest", "TensorSpec", "Variant"]

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 16 * 1024 * 1024
_MAX_GOLDEN_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of the graph: its name, numpy dtype name, and shape (``"batch"`` where dynamic)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Variant:
    """One precision of the model.

    Attributes:
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        file: The typed ONNX file that TensorRT builds from and that ONNX Runtime runs on a GPU.
        cpu_file: The form of the same that ONNX Runtime's CPU provider runs fast, where it differs from ``file``.
        tolerance: Largest absolute difference from the golden outputs that the self-test accepts.
        agreement: Smallest share, 0 to 1, of golden inputs with the golden top-1 that the self-test accepts.
    """

    precision: str
    file: str
    cpu_file: str | None = None
    tolerance: float = 1e-3
    agreement: float = 1.0


@dataclass(frozen=True)
class Engine:
    """A TensorRT plan and what it was built for; it runs only where all of these match.

    Attributes:
        file: Path in the bundle.
        variant: The variant that it was built from.
        onnx_sha256: Hash of the ONNX file that it was built from.
        tensorrt: Version of TensorRT, as ``"10.3.0.30"``.
        compute_capability: Of the GPU, as ``"8.7"``.
        gpu: The GPU's name.
        platform: As ``"linux-aarch64"``.
        profile: Smallest, best and largest batch size.
        version_compatible: Whether newer TensorRT of the same major version runs it as well; it carries its own
            runtime then.
        hardware_compatibility: ``"none"``, ``"ampere-plus"`` (any GPU from compute capability 8.0 on, no Jetson) or
            ``"same-compute-capability"``.
        dla_core: The DLA core that it was built for, if any.
        stripped: Whether its weights were left out; they are taken from the variant's ONNX file when it is loaded.
    """

    file: str
    variant: str
    onnx_sha256: str
    tensorrt: str
    compute_capability: str
    gpu: str
    platform: str
    profile: tuple[int, int, int]
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    dla_core: int | None = None
    stripped: bool = False


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 of one file of the bundle."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """All that a bundle says of itself.

    Attributes:
        task: ``"classification"``.
        name: Name of the model, for people.
        inputs: The graph's inputs.
        outputs: The graph's outputs.
        preprocessing: From a picture to the first input.
        labels: Class names in the order of the logits.
        variants: By name: ``"fp32"``, and ``"fp16"`` and ``"int8"`` once they are made.
        default_variants: For a kind of device (``"cpu"``, ``"cuda"``) the variant that measured best there.
        engines: TensorRT plans by key.
        golden: File with real inputs and the outputs that torch computed for them.
        calibration: File with the identity and ranges of the INT8 calibration.
        evidence: What was measured: accuracy, parity, latency, each with how and on what.
        source: Where the model comes from: the run's and the weights' hashes, versions.
        files: Size and hash of every file but the manifest.
        digest: SHA-256 of the manifest without this field.
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
    digest: str = ""
    schema_version: int = SCHEMA_VERSION

    def to_bytes(self) -> bytes:
        """Return the manifest file's only valid bytes for this content."""
        values = {**asdict(self), "preprocessing": self.preprocessing.to_dict(), "digest": ""}
        values["digest"] = sha256_bytes(_dump(values))
        return _dump(values)

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
        except (KeyError, TypeError, ValueError, AttributeError, KrlError) as error:
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
                "engines": {
                    name: Engine(**{**item, "profile": tuple(item["profile"])})
                    for name, item in values["engines"].items()
                },
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


_TYPES: dict[str, type | tuple[type, ...]] = {
    "bool": bool,
    "float": (float, int),
    "int": int,
    "int | None": (int, type(None)),
    "str": str,
    "str | None": (str, type(None)),
    "Mapping[str, Any]": dict,
    "Mapping[str, str]": dict,
}
_ITEM_TYPES: dict[str, type | tuple[type, ...]] = {
    "Mapping[str, str]": str,
    "tuple[int, int, int]": int,
    "tuple[int | str, ...]": (int, str),
    "tuple[str, ...]": str,
}


def _check_types(item: Any) -> None:
    """Check the values of a dataclass that was built from JSON: a forged manifest must not raise later, elsewhere."""
    for entry in fields(item):
        value, declared = getattr(item, entry.name), str(entry.type)
        wrong = declared in _TYPES and not isinstance(value, _TYPES[declared])
        if not wrong and declared in _ITEM_TYPES:
            items = value.values() if isinstance(value, dict) else value
            wrong = not all(isinstance(part, _ITEM_TYPES[declared]) for part in items)
        if wrong or (declared == "tuple[int, int, int]" and len(value) != 3):
            raise TypeError(f"{entry.name} is {value!r}; accepted: {declared}")


def _tensor(values: dict[str, Any]) -> TensorSpec:
    return TensorSpec(**{**values, "shape": tuple(values["shape"])})


def _dump(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False).encode() + b"\n"


class Bundle:
    """A bundle on disk, opened: its manifest is checked, its files are checked as they are asked for."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Hold a manifest that belongs to ``path``; call ``open`` or ``create`` instead."""
        self.path = path
        self.manifest = manifest
        self._checked: dict[str, Path] = {}

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Open a bundle and check its manifest.

        Raises:
            BundleError: There is no bundle at ``path``, or its manifest is damaged, forged or of another version.
        """
        folder = Path(path)
        file = folder / MANIFEST
        if not folder.is_dir():
            what = "is a file, not a bundle" if folder.exists() else "does not exist"
            raise BundleError(f"bundle {folder} {what}; a bundle is the folder that krl-deploy export makes")
        if not file.is_file():
            raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}; make one with krl-deploy export")
        if file.stat().st_size > _MAX_MANIFEST_BYTES:
            raise BundleError(f"{file} has {file.stat().st_size} bytes; at most {_MAX_MANIFEST_BYTES} are accepted")
        manifest = Manifest.from_bytes(file.read_bytes(), str(file))
        bundle = cls(folder, manifest)
        bundle._check_references()
        return bundle

    @classmethod
    def create(
        cls, path: str | Path, manifest: Manifest, contents: Mapping[str, Path | bytes], *, replace: bool = False
    ) -> Bundle:
        """Write a new bundle, whole or not at all.

        Args:
            path: The folder to make, by custom ``NAME.krl``.
            manifest: Its ``files`` and ``digest`` are filled in here.
            contents: For each path in the bundle its bytes, or a file to copy.
            replace: Whether an existing bundle at ``path`` may be replaced.

        Raises:
            BundleError: ``path`` exists (and ``replace`` is false or it is not a bundle), or a path leaves the bundle.
        """
        folder = Path(path)
        if folder.exists() and not replace:
            raise BundleError(f"{folder} exists already; give another name, or --overwrite to replace it")
        if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
            raise BundleError(f"{folder} is not a bundle, so it is not replaced; give another name")
        with atomic_folder(folder, replace=replace) as temporary:
            files = {}
            for name, content in contents.items():
                files[name] = _store(_safe(temporary, name), content)
            cls(temporary, _with_files(manifest, files))._check_references()
            (temporary / MANIFEST).write_bytes(_with_files(manifest, files).to_bytes())
        return cls.open(folder)

    def update(self, contents: Mapping[str, Path | bytes], **changes: Any) -> Bundle:
        """Add or replace files and manifest fields, so that an interruption leaves a bundle that loads.

        All bytes are on disk before anything changes: a full disk leaves the old bundle. Replacing files takes
        two manifests: the first no longer vouches for what is about to be replaced. Variants and engines that
        were made from a replaced file are dropped unless ``changes`` gives them anew.

        Args:
            contents: For each path in the bundle its new bytes, or a file to copy.
            changes: New values of ``Manifest`` fields.

        Returns:
            The bundle as it now stands.

        Raises:
            BundleError: A path leaves the bundle, or a variant, engine or the like names a file that is not there.
        """
        with ExitStack() as stack:
            # Leaving the stack renames in reverse order: the interim manifest, the files, the final manifest.
            final = stack.enter_context(atomic_path(self.path / MANIFEST))
            entries = dict(self.manifest.files)
            for name, content in contents.items():
                target = _safe(self.path, name)
                entries[name] = _store(stack.enter_context(atomic_path(target)), content)
            overwritten = {name for name in contents if name in self.manifest.files}
            interim = _without(self.manifest, overwritten)
            if "fp32" not in interim.variants:
                raise BundleError(f"bundle {self.path}: the FP32 reference is not replaced; export a new bundle")
            manifest = _with_files(replace(interim, **changes), entries)
            Bundle(self.path, manifest)._check_references()
            final.write_bytes(manifest.to_bytes())
            if overwritten:
                stack.enter_context(atomic_path(self.path / MANIFEST)).write_bytes(interim.to_bytes())
        return Bundle.open(self.path)

    def file(self, name: str) -> Path:
        """Return the path of one file after checking that it is what the manifest says.

        Raises:
            BundleError: The manifest does not list it, it is missing, or its size or hash differs.
        """
        if name in self._checked:
            return self._checked[name]
        entry = self.manifest.files.get(name)
        if entry is None:
            raise BundleError(f"bundle {self.path}: the manifest does not list {name!r}")
        path = _safe(self.path, name)
        if not path.is_file():
            raise BundleError(f"bundle {self.path}: {name} is missing; copy the whole folder again, or export it again")
        if path.stat().st_size != entry.size or sha256_file(path) != entry.sha256:
            raise BundleError(
                f"bundle {self.path}: {name} is damaged or was changed (its SHA-256 is not the manifest's); "
                "copy the whole folder again, or export it again"
            )
        self._checked[name] = path
        return path

    def verify(self) -> None:
        """Check every file that the manifest lists.

        Raises:
            BundleError: One of them is missing, damaged or changed.
        """
        for name in self.manifest.files:
            self.file(name)

    def golden(self) -> dict[str, npt.NDArray[Any]]:
        """Return the golden arrays: the inputs and outputs under their names in the graph.

        Raises:
            BundleError: There are none, or the file is damaged.
        """
        if self.manifest.golden is None:
            raise BundleError(f"bundle {self.path} has no golden inputs; export it again with real data")
        path = self.file(self.manifest.golden)
        if path.stat().st_size > _MAX_GOLDEN_BYTES:
            raise BundleError(f"bundle {self.path}: {path.name} is larger than {_MAX_GOLDEN_BYTES} bytes")
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except Exception as error:  # zip, zlib and numpy raise types of their own on damaged files
            raise BundleError(f"bundle {self.path}: {path.name} is not a readable npz file: {error}") from error

    def _check_references(self) -> None:
        """Refuse a manifest that names files outside the bundle or files that it does not list."""
        manifest = self.manifest
        for name in manifest.files:
            _safe(self.path, name)
        named = [file for variant in manifest.variants.values() for file in (variant.file, variant.cpu_file)]
        named += [engine.file for engine in manifest.engines.values()]
        named += [manifest.golden, manifest.calibration]
        missing = sorted({name for name in named if name is not None and name not in manifest.files})
        if missing:
            raise BundleError(f"bundle {self.path}: the manifest refers to {missing} but does not list them")
        unknown = sorted(set(manifest.default_variants.values()) - set(manifest.variants))
        if unknown or "fp32" not in manifest.variants:
            raise BundleError(f"bundle {self.path}: the manifest has no variant {unknown or 'fp32'}")


def _safe(folder: Path, name: str) -> Path:
    try:
        return inside(folder, name)
    except ValueError as error:
        raise BundleError(f"bundle {folder}: {error}; such a bundle is refused") from error


def _store(path: Path, content: Path | bytes) -> FileEntry:
    data = content if isinstance(content, bytes) else content.read_bytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return FileEntry(sha256_bytes(data), len(data))


def _with_files(manifest: Manifest, files: Mapping[str, FileEntry]) -> Manifest:
    return replace(manifest, files=dict(sorted(files.items())))


def _without(manifest: Manifest, names: set[str]) -> Manifest:
    """Return the manifest without these files and without whatever depends on them."""
    variants = {
        key: variant
        for key, variant in manifest.variants.items()
        if variant.file not in names and variant.cpu_file not in names
    }
    return replace(
        manifest,
        variants=variants,
        default_variants={kind: name for kind, name in manifest.default_variants.items() if name in variants},
        engines={
            key: engine
            for key, engine in manifest.engines.items()
            if engine.file not in names and engine.variant in variants
        },
        golden=None if manifest.golden in names else manifest.golden,
        calibration=None if manifest.calibration in names else manifest.calibration,
        files={name: entry for name, entry in manifest.files.items() if name not in names},
    )
