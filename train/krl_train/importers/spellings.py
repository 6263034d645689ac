"""Names that published weights have for the tensors of krl's networks: a table of replacements for each family."""

from __future__ import annotations

import re
from collections.abc import Collection

from .matching import Rename

__all__ = ["POOLED", "rename_for", "rename_restorer", "siblings"]

_THREE_STAGES = re.compile(r"resnet(\d+)(-b)?")
_FOUR_STAGES = re.compile(r"cifar-resnet(18|34|50)(-pooled)?")

# To the names of krl's ResNets, which are akamaster's and kuangliu's.
_RESNET = (
    (r"\bcompressible_", ""),  # akamaster, newer files
    (r"\bdownsample\.", "shortcut."),  # chenyaofo, huyvnphan, RepDistiller: torchvision's names
    (r"^(fc|classifier)\.", "linear."),
    (r"^conv1\.0\.", "conv1."),  # weiaicunzai
    (r"^conv1\.1\.", "bn1."),
    (r"^conv2_x\.", "layer1."),
    (r"^conv3_x\.", "layer2."),
    (r"^conv4_x\.", "layer3."),
    (r"^conv5_x\.", "layer4."),
    (r"\bresidual_function\.0\.", "conv1."),
    (r"\bresidual_function\.1\.", "bn1."),
    (r"\bresidual_function\.3\.", "conv2."),
    (r"\bresidual_function\.4\.", "bn2."),
    (r"\bresidual_function\.6\.", "conv3."),
    (r"\bresidual_function\.7\.", "bn3."),
)
_BRANCH = {"conv1": 0, "bn1": 1, "conv2": 3, "bn2": 4, "conv3": 6, "bn3": 7}
POOLED = {name: f"{name}-pooled" for name in ("cifar-resnet18", "cifar-resnet34")}
"""Networks whose weights do not say whether a max pooling follows the stem, and those where one does."""

# Blocks of ResNet-50 before each stage (He et al. 2016, table 1), and layers of krl's stem before the first one.
_BLOCKS_BEFORE, _STEM = (0, 3, 7, 13), 3


def rename_for(model: str) -> Rename | None:
    """Return the function that turns a published name of a tensor into a network's; ``None`` where there is no table.

    Args:
        model: The network, by krl's name.

    Example:
        >>> rename_for("resnet20-b")("layer2.0.downsample.0.weight")
        'layer2.0.shortcut.0.weight'
        >>> rename_for("cifar-resnet50")("layer2.0.conv3.weight")
        'features.6.branch.6.weight'
    """
    if model == "cifar-resnet50":
        return lambda name: _bottleneck(_replaced(name))
    if _THREE_STAGES.fullmatch(model) or _FOUR_STAGES.fullmatch(model) or model in ("resnet8x4", "resnet32x4"):
        return _replaced
    return None


def siblings(model: str) -> tuple[str, ...]:
    """Return networks that published weights of the same name may belong to: those with the other kind of shortcut.

    Example:
        >>> siblings("resnet20")
        ('resnet20-b',)
    """
    match = _THREE_STAGES.fullmatch(model)
    if match is None:
        return ()
    return (f"resnet{match[1]}" if match[2] else f"resnet{match[1]}-b",)


def _replaced(name: str) -> str:
    for pattern, new in _RESNET:
        name = re.sub(pattern, new, name)
    return name


def _bottleneck(name: str) -> str:
    """Turn a name of kuangliu's ResNet-50 into that of krl's, whose layers are in one list."""
    if match := re.fullmatch(r"layer([1-4])\.(\d+)\.(shortcut|conv[123]|bn[123])\.(.+)", name):
        stage, block, part, rest = match.groups()
        place = part if part == "shortcut" else f"branch.{_BRANCH[part]}"
        return f"features.{_STEM + _BLOCKS_BEFORE[int(stage) - 1] + int(block)}.{place}.{rest}"
    return re.sub(r"^conv1\.", "features.0.", re.sub(r"^bn1\.", "features.1.", name))


def rename_restorer(model: str, names: Collection[str]) -> Rename:
    """Return the function that turns a published name of a tensor into that of a restorer in its published form.

    Args:
        model: The network, by krl's name.
        names: Its own names.

    Example:
        >>> rename_restorer("espcn", ())("feature_maps.2.bias")
        'trunk.2.bias'
    """

    def last(begin: str) -> int:
        return max(
            (int(name.removeprefix(begin).partition(".")[0]) for name in names if name.startswith(begin)), default=0
        )

    # Of each family: a pattern whose group is a layer's number, what it becomes, and by how much the number rises.
    rows: tuple[tuple[str, str, int], ...] = (  # espcn: yjn870 and Lornatang
        (r"(?:first_part|feature_maps)\.(\d+)\.", "trunk.{}.", 0),
        (r"(?:last_part|sub_pixel)\.(\d+)\.", "tail.{}.", 0),
    )
    if model.startswith("fsrcnn"):  # yjn870 and Lornatang
        rows = (
            (r"(?:first_part|feature_extraction)\.(\d+)\.", "trunk.{}.", 0),
            (r"(?:mid_part|shrink)\.(\d+)\.", "trunk.{}.", 2),
            (r"map\.(\d+)\.", "trunk.{}.", 4),
            (r"expand\.(\d+)\.", "trunk.{}.", last("trunk.") - 1),
            (r"(?:last_part|deconv)\.", "tail.", 0),
        )
    if model.startswith("edsr"):  # EDSR-PyTorch and BasicSR
        end = last("trunk.1.layers.")
        rows = (
            (r"(?:head\.0|conv_first)\.", "trunk.0.", 0),
            (r"body\.(\d+)\.(?:body\.0|conv1)\.", "trunk.1.layers.{}.layers.0.", 0),
            (r"body\.(\d+)\.(?:body\.2|conv2)\.", "trunk.1.layers.{}.layers.2.", 0),
            (rf"(?:body\.{end}|conv_after_body)\.", f"trunk.1.layers.{end}.", 0),
            (r"(?:tail\.0|upsample)\.(\d+)\.", "tail.{}.", 0),
            (r"(?:tail\.1|conv_last)\.", f"tail.{last('tail.')}.", 0),
        )

    def rename(name: str) -> str:
        for pattern, new, rise in rows:
            if match := re.match(pattern, name):
                return new.format(*(int(number) + rise for number in match.groups())) + name[match.end() :]
        return name

    return rename
