"""A bundle on disk: opened, checked and written.

``manifest.json`` names every other file with its size and SHA-256, and has a digest of itself. A file is hashed before
it is used. A path that leaves the folder is refused. A signature of the manifest proves where the bundle comes from.
"""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from krl_runtime.errors import BundleError
from krl_runtime.files import atomic_folder, atomic_path, inside, sha256_bytes, sha256_file

from .manifest import PACKAGED_FOR, Engine, FileEntry, Manifest, Variant
from .names import MANIFEST, SIGNATURE
from .sidecar import DeviceEngines, read_engines
from .signature import check_signature, is_signed

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Bundle"]

_MAX_MANIFEST_BYTES = 16 * 1024 * 1024  # 100,000 labels take a few megabytes
# Unpacked; 16 inputs of 1024x1024 RGB with float32 outputs of their size take 252 MB.
_MAX_GOLDEN_BYTES = 512 * 1024 * 1024
_BATCH = 16  # on a CPU larger batches are no faster, and their activations take memory


class Bundle:
    """A bundle on disk, opened: its manifest is checked, its files are checked as they are asked for.

    Attributes:
        path: The folder.
        manifest: The manifest.
        trust: Public keys, by one of which the manifest is signed; empty if no signature was asked for.
    """

    def __init__(self, path: Path, manifest: Manifest, trust: Sequence[Path] = ()) -> None:
        """Hold a manifest that belongs to ``path``; call ``open`` or ``create`` instead."""
        self.path = path
        self.manifest = manifest
        self.trust = tuple(trust)

    @property
    def stem(self) -> str:
        """Return the name of the bundle's folder without ``.krl``."""
        return self.path.resolve().name.removesuffix(".krl")

    @classmethod
    def open(cls, path: str | Path, *, trust: Sequence[Path] = ()) -> Bundle:
        """Open a bundle and check its manifest.

        Args:
            path: The folder.
            trust: Files of Ed25519 public keys. If there are any, the bundle has to be signed by one of them.

        Raises:
            BundleError: There is no bundle at ``path``; its manifest is damaged, of another version, or not signed by a
                trusted key.
            UsageError: A key cannot be used.
            MissingExtraError: The library that checks signatures is not installed.
        """
        try:
            return cls._open(Path(path), trust)
        except (OSError, ValueError) as error:  # no permission, a name that is too long or that no file can have
            raise BundleError(f"bundle {path} cannot be read: {error}") from error

    @classmethod
    def _open(cls, folder: Path, trust: Sequence[Path]) -> Bundle:
        file = folder / MANIFEST
        if not folder.is_dir():
            what = "is a file, not a bundle" if folder.exists() else "does not exist"
            raise BundleError(f"bundle {folder} {what}; a bundle is the folder that krl-deploy export makes")
        if (folder / "run.json").is_file():
            raise BundleError(
                f"{folder} is a run, where a bundle is needed; make one with: krl-deploy export {folder} -o NAME.krl"
            )
        if not file.is_file() and not file.is_symlink():
            raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}; make one with krl-deploy export")
        data = _content(_safe(folder, MANIFEST), MANIFEST, _MAX_MANIFEST_BYTES)
        if len(data) > _MAX_MANIFEST_BYTES:
            raise BundleError(f"{file} has {file.stat().st_size} bytes; at most {_MAX_MANIFEST_BYTES} are accepted")
        if trust:
            check_signature(folder, data, trust)
        bundle = cls(folder, Manifest.from_bytes(data, str(file)), trust)
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
            cls(temporary, manifest.with_files(files))._check_references()
            (temporary / MANIFEST).write_bytes(manifest.with_files(files).to_bytes())
        return cls.open(folder)

    def update(self, contents: Mapping[str, Path | bytes], *, remove: Collection[str] = (), **changes: Any) -> Bundle:
        """Add or replace files and manifest fields, so that an interruption leaves a bundle that loads.

        All bytes are on disk before anything changes: a full disk leaves the old bundle. Replacing files takes two
        manifests, and the first one lacks the files to be replaced. Variants and engines that were made from a
        replaced file are dropped unless ``changes`` has new ones. A signature is removed, since it does not hold for
        the new manifest.

        Args:
            contents: For each path in the bundle its new bytes, or a file to copy.
            remove: Files to remove if they exist, together with those made from them.
            changes: New values of ``Manifest`` fields.

        Returns:
            The updated bundle.

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
            overwritten = {name for name in (*contents, *remove) if name in self.manifest.files}
            entries = {name: entry for name, entry in entries.items() if name not in remove}
            interim = self.manifest.without_files(overwritten)
            if "fp32" in self.manifest.variants and "fp32" not in interim.variants:
                raise BundleError(f"bundle {self.path}: the FP32 reference is not replaced; export a new bundle")
            manifest = replace(interim, **changes).with_files(entries)
            Bundle(self.path, manifest)._check_references()
            final.write_bytes(manifest.to_bytes())
            if is_signed(self.path):
                (self.path / SIGNATURE).unlink()
                _warn(f"{self.path} was changed, so its signature was removed; sign it again: krl-deploy sign")
            if overwritten:
                stack.enter_context(atomic_path(self.path / MANIFEST)).write_bytes(interim.to_bytes())
        for name in remove:
            _safe(self.path, name).unlink(missing_ok=True)
        return Bundle.open(self.path)

    def read(self, name: str) -> bytes:
        """Return the content of one file, after checking its size and hash. These very bytes are to be used.

        Raises:
            BundleError: The manifest does not list it, it is missing, cannot be read, or its size or hash differs.
        """
        path, entry = self._listed(name)
        data = _content(path, name, entry.size)
        if len(data) != entry.size or sha256_bytes(data) != entry.sha256:
            raise self._changed(name)
        return data

    def file(self, name: str) -> Path:
        """Return the path of one file after checking it as ``read`` does, for copies and messages.

        Raises:
            BundleError: See ``read``.
        """
        path, entry = self._listed(name)
        try:
            same = path.stat().st_size == entry.size and sha256_file(path) == entry.sha256
        except OSError as error:
            raise BundleError(f"bundle {self.path}: {name} cannot be read: {error}") from error
        if not same:
            raise self._changed(name)
        return path

    def _listed(self, name: str) -> tuple[Path, FileEntry]:
        """Return the path of a file that the manifest lists and that is there, and what the manifest says of it."""
        entry = self.manifest.files.get(name)
        if entry is None:
            raise BundleError(f"bundle {self.path}: the manifest does not list {name!r}")
        path = _safe(self.path, name)
        try:
            there = path.is_file()
        except OSError as error:  # a name that is too long
            raise BundleError(f"bundle {self.path}: {name} cannot be read: {error}") from error
        if not there:
            raise BundleError(f"bundle {self.path}: {name} is missing; copy the whole folder again, or export it again")
        return path, entry

    def _changed(self, name: str) -> BundleError:
        return BundleError(
            f"bundle {self.path}: {name} is damaged or was changed (its SHA-256 is not the manifest's); "
            "copy the whole folder again, or export it again"
        )

    def verify(self) -> None:
        """Check every file that the manifest lists.

        Raises:
            BundleError: One of them is missing, damaged or changed.
        """
        for name in self.manifest.files:
            self.file(name)

    @property
    def engines(self) -> Mapping[str, Engine]:
        """Return the engines by key: those in the bundle, and those that were built for it on this device."""
        return {**self.manifest.engines, **self._built_here.engines}

    def is_signed_engine(self, key: str) -> bool:
        """Return whether a trusted key has signed the manifest that has this engine's hash."""
        return bool(self.trust) and key not in self._built_here.engines

    @property
    def is_kept(self) -> bool:
        """Whether the bundle stays as it is, so that a device's engines lie beside it.

        It does if it is signed or not writable, or if ``KRL_KEEP_BUNDLES`` is set, as on a board that works on copies.
        """
        return bool(os.environ.get("KRL_KEEP_BUNDLES")) or is_signed(self.path) or not os.access(self.path, os.W_OK)

    def engine_entry(self, key: str) -> FileEntry:
        """Return the size of an engine, and the hash that its bytes have to have."""
        here = self._built_here
        engine = self.engines[key]
        return (here.files if key in here.engines else self.manifest.files)[engine.file]

    def engine_bytes(self, key: str) -> bytes:
        """Return an engine's bytes after checking their hash.

        Raises:
            BundleError: The file is missing, damaged or changed.
        """
        here = self._built_here
        return here.read(key) if key in here.engines else self.read(self.engines[key].file)

    @cached_property
    def _built_here(self) -> DeviceEngines:
        return read_engines(self.path)

    @property
    def reference(self) -> Variant:
        """Return the FP32 variant.

        Raises:
            BundleError: The bundle was thinned for one target, and has none.
        """
        found = self.manifest.variants.get("fp32")
        if found is None:
            target = self.manifest.source.get(PACKAGED_FOR)
            raise BundleError(
                f"bundle {self.path} was packaged for {target} alone and has no FP32 reference; use the whole bundle"
            )
        return found

    @property
    def batch_limit(self) -> int:
        """Number of inputs in one run: 1 if the graph takes no more, else a moderate number."""
        return 1 if self.manifest.inputs[0].shape[0] == 1 else _BATCH

    def golden(self) -> dict[str, npt.NDArray[Any]]:
        """Return the golden arrays: the inputs and outputs under their names in the graph.

        Raises:
            BundleError: There are none, or the file is damaged.
        """
        if self.manifest.golden is None:
            raise BundleError(f"bundle {self.path} has no golden inputs; export it again with real data")
        name = self.manifest.golden
        data = self.read(name)
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                if sum(member.file_size for member in arrays.zip.infolist()) > _MAX_GOLDEN_BYTES:
                    raise BundleError(f"bundle {self.path}: {name} unpacks to more than {_MAX_GOLDEN_BYTES} bytes")
                return {name: arrays[name] for name in arrays.files}
        except BundleError:
            raise
        except Exception as error:  # zip, zlib and numpy raise types of their own on damaged files
            raise BundleError(f"bundle {self.path}: {name} is not a readable npz file: {error}") from error

    def _check_references(self) -> None:
        """Refuse a manifest that names files outside the bundle or files that it does not list."""
        manifest = self.manifest
        for name in manifest.files:
            _safe(self.path, name)
        named: list[str | None] = [file for variant in manifest.variants.values() for file in variant.files]
        named += [engine.file for engine in manifest.engines.values()]
        named += [manifest.golden, manifest.calibration]
        missing = sorted({name for name in named if name is not None and name not in manifest.files})
        if missing:
            raise BundleError(f"bundle {self.path}: the manifest refers to {missing} but does not list them")
        unknown = sorted(set(manifest.default_variants.values()) - set(manifest.variants))
        thinned = bool(manifest.variants) and PACKAGED_FOR in manifest.source
        if unknown or ("fp32" not in manifest.variants and not thinned):
            raise BundleError(f"bundle {self.path}: the manifest has no variant {unknown or 'fp32'}")


def _warn(message: str) -> None:
    import logging  # importing krl_runtime does not wait for it

    logging.getLogger("krl").warning("%s", message)


def _safe(folder: Path, name: str) -> Path:
    try:
        return inside(folder, name)
    except ValueError as error:
        raise BundleError(f"bundle {folder}: {error}; such a bundle is refused") from error


def _content(path: Path, name: str, size: int) -> bytes:
    """Return the content of a bundle's file; of one that is larger than expected, one byte more than ``size``."""
    try:
        if not path.is_file():  # a pipe would block
            raise BundleError(f"bundle {path.parent}: {name} is missing; copy the whole folder again")
        with path.open("rb") as file:
            there = path.stat().st_size  # a manifest may expect more bytes than there is memory
            return file.read(min(max(0, size) + 1, there + 1))
    except OSError as error:
        raise BundleError(f"bundle {path.parent}: {name} cannot be read: {error}; copy the folder again") from error


def _store(path: Path, content: Path | bytes) -> FileEntry:
    data = content if isinstance(content, bytes) else content.read_bytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return FileEntry(sha256_bytes(data), len(data))
