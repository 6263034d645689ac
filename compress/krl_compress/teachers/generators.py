"""Generators that teach: a run, and a bundle as a device runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from krl_runtime.errors import UsageError
from krl_train.conditioning.generator_data import open_generator
from krl_train.evaluation.deployed import DeployedGenerator
from krl_train.models.generators import GeneratorNetwork
from krl_train.run import RunRecord
from krl_train.training.gan import generator_size

from .files import file_identity
from .kinds import VARIANT, TeacherKind, kind_of

__all__ = ["LoadedGenerator", "load_generator"]


@dataclass(frozen=True)
class LoadedGenerator:
    """A generator that teaches, and where it comes from.

    Attributes:
        network: Makes images of latents.
        record: Of its run; of a bundle what stands for it.
        identity: What the student's record says of it.
        trainable: Whether torch computes it, so that it can be trained again, and its maps be compared.
    """

    network: GeneratorNetwork | DeployedGenerator
    record: RunRecord
    identity: Mapping[str, str]
    trainable: bool

    def size(self) -> dict[str, Any]:
        """Return its parameters and multiply-accumulate operations; of a bundle nothing, which torch cannot count."""
        return generator_size(self.network) if isinstance(self.network, GeneratorNetwork) else {}


def load_generator(name: str) -> LoadedGenerator:
    """Load a generator.

    Args:
        name: What was given to ``--teacher``.

    Raises:
        KrlError: It cannot be used, or it is no generator.
    """
    kind = kind_of(name)
    if kind not in _LOADERS:
        raise UsageError(f"teacher {name} is no generator that can teach; accepted: a run, or a bundle (NAME.krl)")
    return _LOADERS[kind](name)


def _of_run(name: str) -> LoadedGenerator:
    run, network = open_generator(Path(name))
    return LoadedGenerator(network, run.record, {"kind": "run", **run.identity}, trainable=True)


def _of_bundle(name: str) -> LoadedGenerator:
    network = DeployedGenerator(Path(name), VARIANT, "cuda" if torch.cuda.is_available() else "cpu")
    bundle = network.pipeline.bundle
    if network.condition is not None:
        raise UsageError(f"teacher {name} names no data for its conditions; give the run that it was exported from")
    data = bundle.read(bundle.manifest.variants[VARIANT].file)
    identity = file_identity("bundle", name, data, variant=VARIANT)
    return LoadedGenerator(network, network.record(), identity, trainable=False)


_LOADERS: Mapping[TeacherKind, Callable[[str], LoadedGenerator]] = {"run": _of_run, "bundle": _of_bundle}
