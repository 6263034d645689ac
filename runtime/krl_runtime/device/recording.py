"""Measure bundles on this machine, and keep the results in a latency profile."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from krl_runtime.backends.select import Kind
from krl_runtime.bundle import Bundle
from krl_runtime.errors import BackendError, UsageError
from krl_runtime.pipelines import load
from krl_runtime.progress import progress
from krl_runtime.verbs import Result

from .bench import bench, golden_batch, golden_image, summary
from .profiles import Profile, ProfileEntry, machine_facts

__all__ = ["Recording", "record"]

_log = logging.getLogger("krl")


@dataclass(frozen=True)
class Recording(Result):
    """The entries that were added to a profile.

    Attributes:
        profile: The file.
        machine: Name of this machine in it.
        entries: The new entries, as plain JSON types.
        skipped: Reasons by bundle and variant, as ``"flowers fp16"``, for those that this machine cannot run.
    """

    profile: Path
    machine: str
    entries: tuple[Mapping[str, Any], ...]
    skipped: Mapping[str, str]


@dataclass(frozen=True)
class _Where:
    """Where the bundles run, as ``load`` takes it."""

    threads: int | None
    device: int
    trust: tuple[Path, ...]

    def options(self) -> dict[str, Any]:
        return {"threads": self.threads, "device": self.device, "trust": self.trust or None}


def record(
    bundles: Sequence[str | Path],
    profile: str | Path,
    *,
    image: bytes | None = None,
    variant: str | None = None,
    backend: Kind | Literal["auto"] | None = None,
    require: Kind | None = None,
    batch: int = 1,
    warmup: int = 10,
    iterations: int = 100,
    threads: int | None = None,
    device: int = 0,
    trust: Sequence[str | Path] = (),
) -> Recording:
    """Measure bundles as ``bench`` does, and add each result to a profile as soon as it is there.

    Args:
        bundles: The bundles; each name once.
        profile: The file; made if it is not there. An entry of the same bundle, variant, backend and batch is replaced.
        image: An encoded image for the whole pipeline; by default a golden input. Generators take none.
        variant: The only variant to measure; by default all that run on the backend that ``load`` chooses.
        backend: See ``load``.
        require: See ``load``.
        batch: Inputs of one run.
        warmup: Iterations that are not counted.
        iterations: Iterations that are.
        threads: CPU threads for one call; ``None`` means one for each physical core.
        device: Number of the GPU.
        trust: Public keys; see ``load``.

    Raises:
        UsageError: An argument is not accepted, or the profile was recorded on another machine.
        DataError: The file is not a usable profile.
        BundleError: A bundle is damaged, or has no golden inputs.
        BackendError: Nothing runs a bundle here.
    """
    file, paths = Path(profile), [Path(bundle) for bundle in bundles]
    names = Counter(path.resolve().name for path in paths)
    twice = [name for name, count in names.items() if count > 1]
    if twice or not paths:
        raise UsageError(f"bundles: {twice or 'none'} given; accepted: one or more, each name once in a command")
    where = _Where(threads, device, tuple(map(Path, trust)))
    machine = machine_facts(threads, device)
    _open(file, machine)
    made: list[ProfileEntry] = []
    skipped: dict[str, str] = {}
    for path in paths:
        with load(path, backend=backend, require=require, variant=variant, **where.options()) as model:
            kind: Any = model.backend.name.removeprefix("onnxruntime-")
            bundle = model.bundle
        found = False
        for name in bundle.manifest.variants if variant is None else (variant,):
            try:
                entry = _measured(path, name, kind, where, image, (batch, warmup, iterations))
            except BackendError as error:
                skipped[f"{bundle.stem} {name}"] = str(error)
                _log.warning("%s: variant %s is skipped: %s", bundle.stem, name, error)
                continue
            _open(file, machine).with_entry(entry).write(file)
            made.append(entry)
            found = True
        if not found:
            raise BackendError(f"bundle {path}: no variant runs on {kind} here; run krl-runtime doctor")
    return Recording(file, machine["name"], tuple(entry.to_dict() for entry in made), skipped)


def _open(file: Path, machine: Mapping[str, Any]) -> Profile:
    """Return the profile of this machine; an empty one if there is no file.

    Raises:
        UsageError: It is another machine's.
    """
    if not file.exists():
        return Profile(machine)
    profile = Profile.read(file)
    different = profile.differences(machine)
    if different:
        raise UsageError(
            f"profile {file} was recorded on another machine ({profile.name}) or in another state of this one: "
            f"{'; '.join(different)}; give another file to --profile"
        )
    return profile


def _measured(
    path: Path, variant: str, kind: Kind, where: _Where, image: bytes | None, counts: tuple[int, int, int]
) -> ProfileEntry:
    """Measure one variant on one backend, with nothing to fall back on."""
    batch, warmup, iterations = counts
    with load(path, variant=variant, require=kind, **where.options()) as model:
        bundle: Bundle = model.bundle
        generates = bundle.manifest.task == "generation"
        if generates and image is not None:
            raise UsageError(f"bundle {path} makes images and takes none; leave the image out")
        data = b"" if generates else golden_image(bundle) if image is None else image
        whole = bench(model, data, batch=batch, warmup=warmup, iterations=iterations)
        feed = golden_batch(bundle, batch)
        times = []
        for number in progress(range(warmup + iterations), "measuring the network"):
            begin = perf_counter()
            model.backend.run(feed)
            if number >= warmup:
                times.append((perf_counter() - begin) * 1e3)
        chosen = bundle.manifest.files[_file_of(bundle, variant, kind)]
        return ProfileEntry(
            bundle=bundle.stem,
            task=bundle.manifest.task,
            variant=variant,
            precision=bundle.manifest.variants[variant].precision,
            backend=model.backend.name,
            batch=batch,
            shape=next(iter(feed.values())).shape[1:],
            sha256=chosen.sha256,
            file_bytes=chosen.size,
            iterations=iterations,
            latency_ms=summary(times),
            pipeline_ms=whole.latency_ms,
            network=_network_of(bundle),
            preprocessing=bundle.manifest.preprocessing,
        )


def _file_of(bundle: Bundle, variant: str, kind: Kind) -> str:
    """Return the ONNX file that a kind of backend runs, or that its engine is built from."""
    chosen = bundle.manifest.variants[variant]
    if kind == "cpu":
        return chosen.cpu_file or chosen.file
    return chosen.fp32_file or chosen.file if kind.startswith("openvino") else chosen.file


def _network_of(bundle: Bundle) -> dict[str, Any] | None:
    """Return the record of the network that the bundle was exported from, ``None`` where it has none."""
    model = bundle.manifest.source.get("model")
    whole = isinstance(model, Mapping) and "arguments" in model
    return dict(model) if whole and isinstance(model, Mapping) else None
