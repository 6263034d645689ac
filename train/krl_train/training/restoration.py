"""``krl-train fit --task restoration``: super-resolution, denoising and removal of JPEG's artifacts, from images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from krl_runtime.errors import UsageError
from krl_runtime.images.folders import ImageFolder
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import (
    DataConfig,
    FitConfig,
    OptimConfig,
    RestorationConfig,
    TrainingConfig,
    to_plain,
)
from krl_train.data import PatchStream, Truths
from krl_train.data.fingerprints import fingerprints
from krl_train.data.patches import are_gray, list_images, read_truths
from krl_train.models.restorers import RestorerNetwork, build_restorer, receptive_radius
from krl_train.run import ModelSpec, Run, RunRecord
from krl_train.tasks import PixelLoss, RestorationObjective, RestorationTask

from .folder import prepare_out
from .start import initialize_from, start_arguments, start_run
from .train import network_size, train_task

__all__ = [
    "DEFAULT_PATCH",
    "RestorationTraining",
    "fit",
    "fit_restorer",
    "like_start",
    "read_images",
    "read_restoration",
    "restoration_optim",
    "restoration_training",
    "restorer_preprocessing",
    "restorer_record",
    "restorer_spec",
    "train_restorer",
]

_log = logging.getLogger("krl")

DEFAULT_PATCH = 24
"""Input pixels a side of a patch: wider than the receptive field of the small networks, which sees all of it."""
_DEFAULT_LR = 1e-3  # AdamW's own default
_CHARBONNIER_EPSILON = 1e-3  # of images of 0 to 1, as in LapSRN (Lai et al. 2017)


@dataclass(frozen=True)
class RestorationTraining:
    """Data of a restorer's training, read.

    Attributes:
        stream: Training patches.
        val: Validation images.
        described: What ``run.json`` says of the data.
    """

    stream: PatchStream
    val: Truths
    described: Mapping[str, Any]


def fit(config: FitConfig) -> Run:
    """Train a restorer from images.

    Raises:
        KrlError: The data, the network or the configuration cannot be used, or training failed.
    """
    config = replace(config, optim=restoration_optim(config.optim))
    init = start_run(config)
    spec = like_start(restorer_spec(config.model, _with_color(config.restoration, config.data)), init)
    size = config.input.size or (DEFAULT_PATCH,)
    training = read_restoration(config, spec, (size[0], size[-1]))
    epsilon = _CHARBONNIER_EPSILON if config.restoration.pixel_loss == "charbonnier" else 0.0
    return fit_restorer(lambda network: PixelLoss(network, epsilon), training, spec, config, init=init)


def restoration_optim(optim: OptimConfig) -> OptimConfig:
    """Return how restorers are trained: AdamW, 0.001 unless the user says otherwise, whatever the batch."""
    return replace(optim, optimizer="adamw", lr=optim.lr or _DEFAULT_LR)


def _with_color(config: RestorationConfig, data: DataConfig) -> RestorationConfig:
    """Fill in the channels: luma for super-resolution, and for what is in all colors, those that the images have."""
    if config.restore == "super-resolution" or data.data is None:
        return config
    gray = are_gray(list_images(data.data, data))
    if config.color is None:
        return replace(config, color="gray" if gray else "rgb")
    if config.color == "y" and not gray:
        _log.warning(
            "--color y with --restore %s: luma alone is restored and scored, and chroma stays as it is given; leave it "
            "out, or use rgb, for images in color",
            config.restore,
        )
    return config


def restorer_spec(name: str, config: RestorationConfig) -> ModelSpec:
    """Return the specification of a restorer for a task.

    Args:
        name: Name of the network.
        config: What is to be undone.

    Raises:
        ModelError: The name is not known.
    """
    degradations: dict[str, dict[str, Any]] = {
        "super-resolution": {"kind": "bicubic"},
        "denoise": {"kind": "noise", "sigma": config.noise_level},
        "jpeg": {"kind": "jpeg", "quality": config.jpeg_quality},
    }
    enlarges = config.restore == "super-resolution"
    scale = config.scale if enlarges else 1
    color = config.color or ("y" if enlarges else "rgb")
    arguments = {
        "scale": scale,
        "color": color,
        "overlap": receptive_radius(name, scale),
        "degradation": degradations[config.restore],
    }
    return ModelSpec(name, 0, 3 if color == "rgb" else 1, arguments)


def restorer_preprocessing(channels: int, size: tuple[int, int]) -> Preprocessing:
    """Return the input of a restorer that is trained on patches of a size: pixels from -0.5 to 0.5."""
    mean, std = (0.5,) * channels, (1.0,) * channels
    return Preprocessing(height=size[0], width=size[1], channels=channels, mean=mean, std=std)


def like_start(spec: ModelSpec, init: Run | None) -> ModelSpec:
    """Return the specification of a restorer that starts from a run: pruned or published, as that is."""
    if init is None or init.record.model.name != spec.name:
        return spec
    kept, there = start_arguments(init, spec.name), init.record.model.arguments
    if there.get("published"):
        kept |= {key: there[key] for key in ("published", "overlap")}
    return replace(spec, arguments={**spec.arguments, **kept})


def read_restoration(config: TrainingConfig, spec: ModelSpec, size: tuple[int, int]) -> RestorationTraining:
    """Read images to train a restorer on.

    Args:
        config: Which images, and how patches are made of them.
        spec: The network, with scale, color and degradation.
        size: Height and width of an input patch.

    Raises:
        UsageError: No folder is named, the patch is too small, or an option is not for restoration.
        DataError: The images cannot be used.
    """
    data = config.data
    if data.data is None:
        raise UsageError("no data is named; give --data FOLDER, a folder of images")
    folder = list_images(data.data, data)
    train = read_images(folder, "all" if data.val_data else "train", data, spec, data.limit)
    val_folder = list_images(data.val_data, data) if data.val_data else folder
    val = read_images(val_folder, "all" if data.val_data else "val", data, spec, data.val_limit)
    return restoration_training(config, spec, size, train, val, folder.root, val_folder.root if data.val_data else None)


def restoration_training(
    config: TrainingConfig,
    spec: ModelSpec,
    size: tuple[int, int],
    train: Truths,
    val: Truths,
    root: Path,
    val_root: Path | None,
) -> RestorationTraining:
    """Make the data of a training from images that are read.

    Args:
        config: How patches are made of them.
        spec: The network, with scale and degradation.
        size: Height and width of an input patch.
        train: To train on.
        val: To validate on.
        root: Where the former come from.
        val_root: Where the latter come from, if not from the same folder.

    Raises:
        UsageError: The patch is too small, or an option is not for restoration.
        DataError: An image is smaller than a patch.
    """
    if min(size) < 4:
        raise UsageError(f"--size is {size[0]}x{size[1]}; restoration takes patches of 4 pixels a side or more")
    data = config.data
    stream = PatchStream(
        train,
        spec.arguments["scale"],
        spec.arguments["degradation"],
        size,
        config.loop,
        augment=config.augment.augment and config.augment.flip != "none",
        on_bad=data.on_bad_image,
        memory_limit=data.memory_limit_mb * 2**20,
    )
    described = {
        "source": str(root.resolve()),
        "val_source": str(val_root.resolve()) if val_root else None,
        "root": str(data.data_root.resolve()),
        "val_fraction": data.val_fraction,
        "on_bad_image": data.on_bad_image,
        "order": stream.order,
        "train": {**train.describe(), "fingerprints": fingerprints(train.hashes)},
        "val": val.describe(),
    }
    return RestorationTraining(stream, val, described)


def read_images(folder: ImageFolder, split: str, data: DataConfig, spec: ModelSpec, limit: int | None) -> Truths:
    """Read one split of a folder in the colors of a network; see ``read_truths``."""
    return read_truths(
        folder.split(split, val_fraction=data.val_fraction),
        spec.arguments["color"],
        on_bad=data.on_bad_image,
        memory_limit=data.memory_limit_mb * 2**20,
        limit=limit,
    )


def fit_restorer(
    make_objective: Callable[[RestorerNetwork], RestorationObjective],
    training: RestorationTraining,
    spec: ModelSpec,
    config: FitConfig,
    *,
    init: Run | None,
    preprocessing: Preprocessing | None = None,
    task: type[RestorationTask] = RestorationTask,
) -> Run:
    """Train a restorer on data alone, unless that is done already.

    Args:
        make_objective: From the network to what is minimized.
        training: The data.
        spec: The network.
        config: Everything else.
        init: A run of the same network to start from.
        preprocessing: Of the network; as ``restorer_preprocessing`` says by default.
        task: What a step and an evaluation are.

    Raises:
        RunError: There is another run in the folder.
        TrainingError: The loss is not a finite number.
    """
    parent = init.identity if init else None
    record = restorer_record(
        config, spec, training, command="krl-train fit", parent=parent, start=init, preprocessing=preprocessing
    )
    finished = prepare_out(config.out, record, resume=config.resume, overwrite=config.overwrite)
    if finished is not None:
        return finished
    return train_restorer(make_objective, training, record, config, init=init, out=config.out, task=task)


def restorer_record(
    config: TrainingConfig,
    spec: ModelSpec,
    training: RestorationTraining,
    *,
    command: str,
    parent: Mapping[str, Any] | None,
    start: Run | None,
    preprocessing: Preprocessing | None = None,
) -> RunRecord:
    """Return the record of a restorer, without the results.

    Args:
        config: The full configuration.
        spec: The network.
        training: The data.
        command: The command that it is for.
        parent: What the network comes from.
        start: The run whose weights it starts from, and whose normalization it keeps.
        preprocessing: Of the network; as ``restorer_preprocessing`` says by default.
    """
    own = preprocessing or restorer_preprocessing(spec.in_channels, training.stream.size)
    if start is not None and start.record.preprocessing.channels == own.channels:
        own = replace(own, mean=start.record.preprocessing.mean, std=start.record.preprocessing.std)
    return RunRecord(
        task="restoration",
        model=spec,
        preprocessing=own,
        labels=(),
        command=command,
        configuration=to_plain(config),
        seed=config.loop.seed,
        data=training.described,
        parent=parent,
    )


def train_restorer(
    make_objective: Callable[[RestorerNetwork], RestorationObjective],
    training: RestorationTraining,
    record: RunRecord,
    config: TrainingConfig,
    *,
    init: Run | None,
    out: Path,
    task: type[RestorationTask] = RestorationTask,
) -> Run:
    """Train a restorer and write its run.

    Args:
        make_objective: From the network to what is minimized.
        training: The data.
        record: What ``run.json`` will say, but for the results.
        config: How weights are moved, and how long.
        init: A run of the same network to start from.
        out: The run's folder, which ``prepare_out`` has made.
        task: What a step and an evaluation are.

    Raises:
        TrainingError: The loss is not a finite number.
    """
    loop = training.stream.loop
    torch.manual_seed(loop.seed)
    network = build_restorer(record.model, record.preprocessing)
    if init is not None:
        initialize_from(network, init)
    trained = task(
        make_objective(network),
        config.optim,
        steps=loop.epochs * training.stream.steps,
        batch_size=loop.batch_size,
        val=training.val,
        degradation=record.model.arguments["degradation"],
    )
    return train_task(trained, training.stream, record, network_size(network), loop, out, resume=config.resume)
