"""``krl-deploy package --slim``: one file with only those parts of a bundle that a target loads."""

from __future__ import annotations

import io
import logging
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from krl_deploy.rules.targets import ONNXRUNTIME_CPU, RTX, parse_target
from krl_runtime.backends.cuda import version_tuple
from krl_runtime.backends.select import Kind, choose_variant
from krl_runtime.backends.tensorrt.engines import reads
from krl_runtime.bundle import MANIFEST, PACKAGED_FOR, Bundle, Engine, Manifest, Variant
from krl_runtime.bundle.names import SIGNATURE
from krl_runtime.bundle.signature import is_signed, sign_manifest
from krl_runtime.errors import BundleError, UsageError
from krl_runtime.files import atomic_path

from .sign import key_password
from .triton import PackageConfig

__all__ = ["package_slim"]

_log = logging.getLogger("krl")

_CAPABILITIES = {"Xavier": ("7.2",), "Orin": ("8.7",), "AGX Orin": ("8.7",), "Thor": ("10.1", "11.0")}
"""Compute capabilities of Jetson boards: NVIDIA's table of CUDA GPUs; Thor's was 10.1 before CUDA 13."""

_ONNX_RUNTIME = {"cpu": "cpu", ONNXRUNTIME_CPU: "cpu", "cuda": "cuda", "openvino": "openvino"}
"""Targets that run an ONNX file, beside those of ``parse_target``."""

_READABLE = 0o644  # a file that all may read


@dataclass(frozen=True)
class _Target:
    """A target: the kind of backend that it loads, and the version and boards of its engines."""

    name: str
    kind: Kind
    tensorrt: tuple[int, ...] = ()
    boards: tuple[str, ...] = ()

    def runs(self, engine: Engine) -> bool:
        """Return whether an engine is one for this target."""
        if engine.library != self.kind:
            return False
        if self.kind == "tensorrt-rtx":
            return True
        version = version_tuple(engine.version)
        accepted = [capability for board in self.boards for capability in _CAPABILITIES[board]]
        fits = not accepted or any(capability in accepted for capability in engine.compute_capabilities)
        return fits and (version[: len(self.tensorrt)] == self.tensorrt or reads(engine, self.tensorrt))


def package_slim(config: PackageConfig) -> dict[str, Any]:
    """Write the file, whole or not at all.

    The bundle in it has one variant, under its own name, with the one graph that the target loads; engines for the
    target; and the golden inputs. The same bundle makes the same bytes.

    Returns:
        Plain JSON types: the file, the target, the variant, the engines, and the sizes.

    Raises:
        BundleError: The bundle or one of its files is missing, damaged or forged.
        UsageError: There is no such target or variant, the file exists, or a signed bundle is to lose its signature.
    """
    bundle, target = Bundle.open(config.bundle), _target(str(config.target))
    if config.out.exists() and not config.overwrite:
        raise UsageError(f"{config.out} exists already; give another name to -o, or --overwrite to replace it")
    if config.out.is_dir():
        raise UsageError(f"{config.out} is a folder; give a file NAME.tar to -o")
    if is_signed(bundle.path) and config.key is None:
        raise UsageError(
            f"bundle {bundle.path} is signed, and its signature does not hold for fewer files; give --key KEY to sign "
            "the packaged bundle"
        )
    earlier = bundle.manifest.source.get(PACKAGED_FOR)
    if earlier not in (None, target.name):
        raise BundleError(
            f"bundle {bundle.path} was packaged for {earlier} alone, and lacks what {target.name} loads; package the "
            "whole bundle"
        )
    manifest = _thinned(bundle, target, config.variant)
    if target.kind in ("tensorrt", "tensorrt-rtx") and not manifest.engines:
        _log.warning(
            "bundle %s has no engine of variant %s for %s, so there is none in the file; build it on the device, with "
            "krl-deploy build-engine",
            bundle.path,
            next(iter(manifest.variants)),
            target.name,
        )
    name = f"{bundle.stem}.krl"
    with tempfile.TemporaryDirectory() as folder:
        contents = {file: bundle.file(file) for file in manifest.files}
        made = Bundle.create(Path(folder, name), manifest, contents)
        public = None if config.key is None else sign_manifest(made.path, config.key, key_password())
        names = [MANIFEST, *([SIGNATURE] if public else []), *made.manifest.files]
        with atomic_path(config.out) as temporary:
            _write_tar(temporary, name, {file: made.path / file for file in sorted(names)})
    before = sum(entry.size for entry in bundle.manifest.files.values())
    after = sum(entry.size for entry in made.manifest.files.values())
    return {
        "file": str(config.out),
        "bundle": name,
        "target": target.name,
        "variant": next(iter(made.manifest.variants)),
        "engines": sorted(made.manifest.engines),
        "files": sorted(made.manifest.files),
        "bytes": after,
        "bytes_of_the_whole": before,
        "share": round(after / before, 4),
        "public_key": public,
    }


def _target(name: str) -> _Target:
    """Return a target by its name; see ``krl_deploy.rules.targets`` for those with TensorRT."""
    kind = _ONNX_RUNTIME.get(name)
    if kind is not None:
        return _Target(name, kind)  # type: ignore[arg-type]
    try:
        found = parse_target(name)
    except UsageError as error:
        raise UsageError(
            f"{error}, {', '.join(other for other in _ONNX_RUNTIME if other != ONNXRUNTIME_CPU)}"
        ) from error
    return _Target(name, "tensorrt-rtx" if found is RTX else "tensorrt", found.tensorrt, found.boards)


def _thinned(bundle: Bundle, target: _Target, asked: str | None) -> Manifest:
    """Return the manifest with one variant, the target's engines of it, and the golden inputs."""
    manifest = bundle.manifest
    if asked is not None and asked not in manifest.variants:
        raise UsageError(f"the bundle has no variant {asked!r}; it has: {', '.join(manifest.variants)}")
    name = asked or choose_variant(bundle, target.kind)[0]
    engines = {
        key: engine for key, engine in manifest.engines.items() if engine.variant == name and target.runs(engine)
    }
    if asked is None and target.tensorrt and not engines:
        engines = {key: engine for key, engine in manifest.engines.items() if target.runs(engine)}
        name = next(iter(sorted({engine.variant for engine in engines.values()})), name)
        engines = {key: engine for key, engine in engines.items() if engine.variant == name}
    variant = manifest.variants[name]
    file = _file(variant, target.kind)
    kept = {file, *(engine.file for engine in engines.values()), *([manifest.golden] if manifest.golden else [])}
    dropped = [other for other in manifest.files if other not in kept]
    thin = manifest.without_files(dropped)
    return replace(
        thin,
        variants={name: replace(variant, file=file, cpu_file=None, fp32_file=None)},
        default_variants={"cpu": name, "cuda": name},
        engines=engines,
        source={**manifest.source, PACKAGED_FOR: target.name, "packaged_from": manifest.digest},
        digest="",
    )


def _file(variant: Variant, kind: Kind) -> str:
    """Return the one graph of a variant that a kind of backend loads."""
    other = {"cpu": variant.cpu_file, "openvino": variant.fp32_file}.get(kind)
    return other or variant.file


def _write_tar(path: Path, folder: str, files: Mapping[str, Path]) -> None:
    """Write an archive that depends on the content alone: no times, no users, names in order."""
    with path.open("wb") as written, tarfile.open(fileobj=written, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, file in files.items():
            data = file.read_bytes()
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mode = len(data), _READABLE
            archive.addfile(entry, io.BytesIO(data))
