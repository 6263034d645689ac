"""``krl-train fit --task style``: a network that paints images in the manner of one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from krl_runtime.errors import UsageError
from krl_runtime.files import sha256_file
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import FitConfig
from krl_train.data.patches import read_image
from krl_train.models import Network, build_model
from krl_train.models.perceptual import FeatureMaps
from krl_train.models.restorers import receptive_radius
from krl_train.run import RECORD, ModelSpec, Run
from krl_train.tasks.style import StyleObjective, StyleTask

from .restoration import fit_restorer, read_restoration, restoration_optim
from .start import start_run

__all__ = ["fit", "style_spec"]

_DEFAULT_PATCH = 64  # pixels a side
_SMALLEST_PATCH = 16  # pixels a side: the networks halve twice, and pad by reflection


def style_spec(name: str) -> ModelSpec:
    """Return the specification of a style network: RGB, the size kept, the whole image seen.

    Raises:
        ModelError: The name is not known.
    """
    arguments = {
        "scale": 1,
        "color": "rgb",
        "overlap": receptive_radius(name, 1),
        "degradation": {"kind": "none"},
    }
    return ModelSpec(name, 0, 3, arguments)


def style_preprocessing(size: tuple[int, int]) -> Preprocessing:
    """Return the input of a network of style that is trained on patches of a size: pixels from 0 to 1."""
    return Preprocessing(height=size[0], width=size[1], mean=(0.0,) * 3, std=(1.0,) * 3)


def fit(config: FitConfig) -> Run:
    """Train a network of style.

    Raises:
        KrlError: The images, the classifier or the configuration cannot be used, or training failed.
    """
    options = config.style
    if options.style_image is None or options.style_features is None:
        raise UsageError("--task style needs --style-image FILE and --style-features RUN (or vgg16, --pretrained)")
    config = replace(config, optim=restoration_optim(config.optim))
    spec = style_spec(config.model)
    size = config.input.size or (_DEFAULT_PATCH,)
    if min(size) < _SMALLEST_PATCH:
        raise UsageError(f"--size is {size[0]}; style takes patches of {_SMALLEST_PATCH} pixels a side or more")
    features, identity = _features(options.style_features, pretrained=config.pretrained)
    style = read_image(options.style_image, "rgb")
    training = read_restoration(config, spec, (size[0], size[-1]))
    init = start_run(config)
    seen = {"style_sha256": sha256_file(options.style_image), "features": identity}
    return fit_restorer(
        lambda network: StyleObjective(network, features, style, options),
        replace(training, described={**training.described, **seen}),
        spec,
        config,
        init=init,
        preprocessing=style_preprocessing(training.stream.size),
        task=StyleTask,
    )


def _features(name: str, *, pretrained: bool) -> tuple[FeatureMaps, str]:
    """Return the classifier that tells style and content, and what identifies it."""
    if (Path(name) / RECORD).is_file():
        run = Run.open(name)
        network = run.network()
        if network.preprocessing.channels != 3:
            raise UsageError(f"--style-features {name} sees gray images; a classifier of RGB is needed")
        return FeatureMaps(network), run.record.weights_sha256
    if name != "vgg16" or not pretrained:
        raise UsageError(
            f"--style-features is {name!r}; accepted: the run of a classifier, or vgg16 with --pretrained (its "
            "published weights may then be downloaded)"
        )
    backbone = build_model("vgg16", 1000, pretrained=True)
    return FeatureMaps(Network(backbone, Preprocessing(height=224, width=224))), "torchvision vgg16"
