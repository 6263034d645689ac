"""Names of networks, known without torch: for help, for errors before anything heavy is loaded."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from krl_runtime.errors import ModelError

__all__ = ["check_model", "model_names", "torchvision_classifiers"]

_DEPTHS = (8, 14, 20, 32, 44, 56, 110)  # layers, 6n + 2, as in He et al. 2016
_SMALL = (
    *(f"resnet{depth}" for depth in _DEPTHS),
    "resnet8x4",
    "resnet32x4",
    *(f"resnet{depth}-b" for depth in _DEPTHS),
    "cifar-resnet18",
    "cifar-resnet18-pooled",
    "cifar-resnet34",
    "cifar-resnet34-pooled",
    "cifar-vgg8",
    "cifar-vgg13",
    "cifar-mobilenetv2",
    "cifar-shufflenetv1",
    "cifar-shufflenetv2",
    "cifar-resnet50",
    "lenet5",
    "lenet5-half",
)
_LABELED = ("classification", "embedding")  # tasks that have the same networks: an embedding is what a last layer gives
_CLASSIFIERS = {"wrn-DEPTH-FACTOR": r"wrn-\d+-\d+", "dscnn-WIDTH": r"dscnn-(\d+(\.\d+)?|\.\d+)"}
_GENERATORS = {
    **{f"{name}-WIDTH": rf"{name}-\d+(x\d+)?" for name in ("dcgan", "resgan", "dsgan", "subgan")},
    "mlp-UNITS-UNITS": r"mlp-\d+(-\d+)*",
}
_RESTORERS = {
    "espcn": "espcn",
    "espcn-WIDTH": r"espcn-\d+",
    "fsrcnn": "fsrcnn",
    "fsrcnn-D-S-M": r"fsrcnn-\d+-\d+-\d+",
    "edsr-BLOCKS-WIDTH": r"edsr-\d+-\d+",
    "unet-WIDTH-DEPTH": r"unet-\d+-\d+",
    "style-WIDTH": r"style-\d+",
}


def model_names(task: str) -> list[str]:
    """Return the names of the networks for a task; upper-case parts stand for numbers.

    Args:
        task: ``"classification"``, ``"embedding"``, ``"gan"``, ``"vae"``, or a task from image to image.

    Example:
        >>> model_names("gan")
        ['dcgan-WIDTH', 'resgan-WIDTH', 'dsgan-WIDTH', 'subgan-WIDTH', 'mlp-UNITS-UNITS']
    """
    if task in _LABELED:
        return [*_SMALL, *_CLASSIFIERS, *torchvision_classifiers(), "timm/NAME"]
    return list(_GENERATORS if task in ("gan", "vae") else _RESTORERS)


def check_model(name: str, task: str) -> None:
    """Check the name of a network before torch is imported.

    Args:
        name: As in ``--model``; ``package.module:name`` and ``timm/NAME`` are left to those that load them.
        task: See ``model_names``.

    Raises:
        ModelError: No network has that name.
    """
    if ":" in name or name.startswith("timm/"):
        return
    families = {**dict.fromkeys(_LABELED, _CLASSIFIERS), "gan": _GENERATORS, "vae": _GENERATORS}.get(task, _RESTORERS)
    known: Sequence[str] = (*_SMALL, *torchvision_classifiers()) if task in _LABELED else ()
    if name in known or any(re.fullmatch(pattern, name) for pattern in families.values()):
        return
    close = difflib.get_close_matches(name, [*known, *families], n=3)
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    accepted = [*_SMALL, *families, "any torchvision classifier", "timm/NAME"] if known else list(families)
    raise ModelError(f"unknown model {name!r} for {task}{hint}; accepted: {', '.join(accepted)}")


def torchvision_classifiers() -> list[str]:
    """Return the classifiers of the installed torchvision, read from its source: importing it takes seconds."""
    package = find_spec("torchvision")
    if package is None or package.origin is None:
        return []
    # Those for segmentation, detection and video are in folders of their own.
    files = sorted((Path(package.origin).parent / "models").glob("[a-z]*.py"))
    found = [re.findall(r"^@register_model\(.*\)\n(?:@.*\n)*def (\w+)\(", _text(file), re.MULTILINE) for file in files]
    return sorted(name for names in found for name in names)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")
