"""The run: the folder that a training or compression command leaves, and resumes from. This module owns its format.

``run.json`` says what was done and what came of it; ``model.safetensors`` has the weights of the backbone, and
``discriminator.safetensors`` those of its discriminator, where it had one (a GAN);
``checkpoint/`` stands there while the command is at work.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from krl_runtime.bundle.further_inputs import INPUTS
from krl_runtime.bundle.output_kind import OutputKind, is_multi_label
from krl_runtime.errors import KrlError, ModelError, RunError
from krl_runtime.files import sha256_bytes, sha256_file, write_atomic
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import DISCRIMINATOR, RECORD, WEIGHTS, check_run
from krl_train.custom import is_custom, warn_of_change

from .models import ModelSpec, Network, load_weights

__all__ = [
    "JOINT",
    "RECORD",
    "SCHEMA_VERSION",
    "WEIGHTS",
    "ModelSpec",
    "Run",
    "RunRecord",
    "check_finite",
    "fresh_network",
    "hash_of_weights",
    "hashes_of_runs",
    "package_versions",
]

JOINT = "joint"
"""In a record's ``data``: the data of the second head, as the record of a run on it alone has it."""

SCHEMA_VERSION = 2  # rises with each change of the format
_KIND = "krl-run"
_BUILDERS = {
    "classification": "krl_train.models:build_classifier",
    "embedding": "krl_train.models.embedders:build_embedder",
    "generation": "krl_train.models.generators:build_generator",
    "restoration": "krl_train.models.restorers:build_restorer",
}
"""For each task the function of a ``ModelSpec`` and a ``Preprocessing`` that makes its network."""
_OF_BACKBONES = ("classification", "embedding")  # tasks whose network can be made around a user's own backbone


@dataclass(frozen=True)
class RunRecord:
    """The content of ``run.json``.

    Attributes:
        task: ``"classification"``, or another of ``krl-train fit --task``.
        model: The network.
        preprocessing: From an image to the network's input.
        labels: Class names in the order of the logits, or of the classes of the data of embeddings; empty where the
            task has none.
        output_kind: Meaning of a classifier's outputs; see ``krl_runtime.bundle.output_kind``.
        command: The command that made the run, as ``"krl-train fit"``.
        configuration: The full resolved configuration of that command.
        seed: Seed of all randomness.
        data: Identity of the training and validation data: name or path, counts, hashes.
        parent: Path and hash of the run that this one comes from (the teacher of a student), if any.
        plan: What the training did where the configuration leaves it open; see ``krl_train.config.Plan``. Its
            ``"transfer"`` has the stages of a network in transfer learning. Empty where nothing was trained.
        metrics: Final metrics.
        history: Metrics of each epoch.
        versions: Versions of the packages and of Python.
        sources: Of each network, data set and loss of the user's own: ``"use"``, ``"name"`` and ``"sha256"``, the hash
            of the file that defines it.
        source_labels: Of a classifier with two heads, the class names of the second one, which the source's images of
            a joint training have; empty for all others.
        weights_sha256: Hash of ``model.safetensors``; empty while the run is not finished.
        discriminator_sha256: Hash of ``discriminator.safetensors``; empty where there is none.
        schema_version: Version of this format.
    """

    task: str
    model: ModelSpec
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    command: str
    configuration: Mapping[str, Any]
    seed: int
    data: Mapping[str, Any]
    parent: Mapping[str, Any] | None = None
    plan: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    sources: tuple[Mapping[str, Any], ...] = ()
    source_labels: tuple[str, ...] = ()
    output_kind: OutputKind = "logits"
    weights_sha256: str = ""
    discriminator_sha256: str = ""
    schema_version: int = SCHEMA_VERSION

    @property
    def multi_label(self) -> bool:
        """Whether an image can have several labels, or none."""
        return is_multi_label(self.output_kind)

    @property
    def inputs(self) -> tuple[Mapping[str, Any], ...]:
        """Inputs beside the image, as a manifest's settings have them; see ``krl_runtime.bundle.further_inputs``."""
        return tuple(self.model.arguments.get(INPUTS, ()))

    def to_bytes(self) -> bytes:
        """Return the content of ``run.json``."""
        values = {"kind": _KIND, **asdict(self), "preprocessing": self.preprocessing.to_dict()}
        return json.dumps(values, indent=1, ensure_ascii=False, default=str).encode() + b"\n"

    @classmethod
    def read(cls, file: Path) -> RunRecord:
        """Read and check ``run.json``, without looking at the weights beside it.

        Raises:
            RunError: It is not a run's record, or of another schema version.
        """
        try:
            values = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise RunError(f"{file} is not valid JSON ({error}); the run is damaged") from error
        if not isinstance(values, dict) or values.pop("kind", None) != _KIND:
            raise RunError(f"{file} is not the record of a krl run")
        if values.get("schema_version") != SCHEMA_VERSION:
            raise RunError(
                f"{file} has schema version {values.get('schema_version')}; this krl reads version {SCHEMA_VERSION}; "
                "train again, or use the krl that made it"
            )
        unknown = sorted(set(values) - {item.name for item in fields(cls)})
        if unknown:
            raise RunError(f"{file} has unknown keys {unknown}; it was not written by this krl")
        try:
            return cls(
                **{
                    **values,
                    "model": ModelSpec(**values["model"]),
                    "preprocessing": Preprocessing.from_dict(values["preprocessing"]),
                    "labels": tuple(values["labels"]),
                    "history": tuple(values["history"]),
                    "sources": tuple(values.get("sources", ())),
                    "source_labels": tuple(values.get("source_labels", ())),
                }
            )
        except (KeyError, TypeError, KrlError) as error:
            raise RunError(f"{file} is not the record of a krl run: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Run:
    """A run on disk."""

    path: Path
    record: RunRecord

    @property
    def identity(self) -> dict[str, str]:
        """Return the folder and the hash of the weights, as the record of a derived run names its parent."""
        return {"path": str(self.path.resolve()), "weights_sha256": self.record.weights_sha256}

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open a finished run and check that its weights are those that it was written with.

        Raises:
            RunError: There is no run, it is not finished, damaged, or of another schema version.
        """
        folder = Path(path)
        check_run(folder)
        record = RunRecord.read(folder / RECORD)
        if not record.weights_sha256:
            raise RunError(f"run {folder} is not finished; continue it with the same command and --resume")
        weights = folder / WEIGHTS
        if not weights.is_file():
            raise RunError(f"run {folder}: {WEIGHTS} is missing; copy the whole folder again")
        if sha256_file(weights) != record.weights_sha256:
            raise RunError(f"run {folder}: {WEIGHTS} is damaged or was changed (its SHA-256 is not the record's)")
        return cls(folder, record)

    @classmethod
    def write(
        cls,
        path: str | Path,
        record: RunRecord,
        state: Mapping[str, Tensor],
        discriminator: Mapping[str, Tensor] | None = None,
    ) -> Run:
        """Write weights and record, each atomically, the record last.

        Args:
            path: The run's folder.
            record: Its hashes and ``versions`` are filled in here.
            state: State of the backbone.
            discriminator: State of its discriminator, where it has one.

        Raises:
            ModelError: A weight is not a finite number.
        """
        folder = Path(path)
        states = {WEIGHTS: state} if discriminator is None else {WEIGHTS: state, DISCRIMINATOR: discriminator}
        files = {name: save(_storable(values)) for name, values in states.items()}
        for values in states.values():
            check_finite(values, f"run {folder}")
        finished = replace(
            record,
            weights_sha256=sha256_bytes(files[WEIGHTS]),
            discriminator_sha256=sha256_bytes(files[DISCRIMINATOR]) if DISCRIMINATOR in files else "",
            versions=package_versions(),
        )
        for name, data in files.items():
            write_atomic(folder / name, data)
        write_atomic(folder / RECORD, finished.to_bytes())
        return cls(folder, finished)

    def state(self) -> dict[str, Tensor]:
        """Return the backbone's weights.

        Raises:
            RunError: The file is not a safetensors file, or a weight is not a finite number.
        """
        return self._load(WEIGHTS)

    def discriminator_state(self) -> dict[str, Tensor]:
        """Return the weights of the discriminator; none where the run has no discriminator.

        Raises:
            RunError: The file is missing, was changed, is not a safetensors file, or has other than finite numbers.
        """
        if not self.record.discriminator_sha256:
            return {}
        file = self.path / DISCRIMINATOR
        if not file.is_file():
            raise RunError(f"run {self.path}: {DISCRIMINATOR} is missing; copy the whole folder again")
        if sha256_file(file) != self.record.discriminator_sha256:
            raise RunError(
                f"run {self.path}: {DISCRIMINATOR} is damaged or was changed (its SHA-256 is not the record's)"
            )
        return self._load(DISCRIMINATOR)

    def _load(self, name: str) -> dict[str, Tensor]:
        try:
            state = load_file(self.path / name)
        except (SafetensorError, OSError) as error:
            raise RunError(f"run {self.path}: {name} cannot be read: {error}") from error
        try:
            check_finite(state, f"run {self.path}")
        except ModelError as error:
            raise RunError(str(error)) from error
        return state

    def network(self, module: nn.Module | None = None) -> Network:
        """Return the trained classifier in eval mode, on the CPU.

        Args:
            module: The backbone that gets the weights, for a network that cannot be made from the record: one that was
                given as an object in Python, say.

        Raises:
            RunError: The run is of another task, its network cannot be made, or its weights do not fit.
        """
        network = self.module(module) if self.record.task == "classification" else None
        if not isinstance(network, Network):
            raise RunError(f"run {self.path} is of the task {self.record.task!r}; a classifier is needed here")
        return network

    def module(self, backbone: nn.Module | None = None) -> nn.Module:
        """Return the trained network of whatever task, in eval mode, on the CPU.

        Its ``backbone`` has the weights of the run; the network around it takes and gives what a device does: pixels
        of 0 to 255, or latents.

        Args:
            backbone: Of a classifier or an embedder that cannot be made from the record.

        Raises:
            RunError: The network that the record names cannot be made, the weights do not fit it, or this krl does not
                know the task.
        """
        record = self.record
        place = _BUILDERS.get(record.task)
        if place is None:
            raise RunError(
                f"run {self.path} is of the task {record.task!r}; this krl knows: {', '.join(sorted(_BUILDERS))}"
            )
        custom = record.task in _OF_BACKBONES and is_custom(record.model.name)
        advice = "; pass the network itself: Run.open(path).network(module=network)" if custom else ""
        if backbone is not None and record.task not in _OF_BACKBONES:
            raise RunError(
                f"run {self.path} is of the task {record.task!r}; a network is accepted for "
                f"{' and '.join(_OF_BACKBONES)}"
            )
        module, _, name = place.partition(":")
        more = {} if backbone is None else {"module": backbone}
        try:
            network: Any = getattr(import_module(module), name)(record.model, record.preprocessing, **more)
        except ModelError as error:
            if not custom:
                raise
            raise RunError(f"run {self.path}: {error}{advice if backbone is None else ''}") from error
        try:
            load_weights(network.backbone, self.state())
        except RuntimeError as error:
            raise RunError(f"run {self.path}: its weights do not fit {record.model.name}: {error}{advice}") from error
        if custom and backbone is None:
            warn_of_change(record.sources, "model", record.model.name, f"run {self.path}")
        made: nn.Module = network.eval()
        return made


def fresh_network(record: RunRecord) -> nn.Module:
    """Return the network of a record, freshly initialized, in eval mode.

    Raises:
        KrlError: It cannot be made.
    """
    module, _, name = _BUILDERS[record.task].partition(":")
    made: nn.Module = getattr(import_module(module), name)(record.model, record.preprocessing)
    return made.eval()


def hash_of_weights(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of weights by their names, whatever their order and device."""
    return sha256_bytes(save({name: state[name].detach().cpu().clone().contiguous() for name in sorted(state)}))


def hashes_of_runs(runs: Mapping[str, Path | None]) -> dict[str, str]:
    """Return ``NAME_sha256``, the hash of the weights, of each run that is named.

    Raises:
        RunError: One is not a run.
    """
    return {f"{name}_sha256": Run.open(path).record.weights_sha256 for name, path in runs.items() if path is not None}


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    versions = {"python": platform.python_version()}
    for name in ("krl", "torch", "torchvision", "accelerate", "numpy", "pillow"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _storable(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as safetensors takes them: whole, on the CPU, and no two in the same memory (tied weights)."""
    stored: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in state.items():
        plain = tensor.detach().cpu().contiguous()
        place = plain.untyped_storage().data_ptr()
        stored[name] = plain.clone() if place in taken else plain
        taken.add(place)
    return stored


def check_finite(state: Mapping[str, Tensor], where: str) -> None:
    """Check that all weights are finite numbers.

    Raises:
        ModelError: Some are not; the message names the first five tensors.
    """
    bad = [name for name, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        raise ModelError(f"{where}: {len(bad)} tensors have values that are not finite numbers: {', '.join(bad[:5])}")
