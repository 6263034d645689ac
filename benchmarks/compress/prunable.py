"""How much of networks can be pruned: a table of the share of the MACs that is left, without training.

    python benchmarks/compress/prunable.py resnet18 timm/regnetx_002     # [1] classifiers by name, random weights

Each network has ten classes and takes images of 64 pixels; layers keep a multiple of 8 channels.
"""

from __future__ import annotations

import sys

import torch

from krl_compress.pruning.networks import example_inputs, size_of
from krl_compress.pruning.plan import count_left, kept_channels
from krl_compress.pruning.units import find_units
from krl_runtime.errors import ModelError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.models import ModelSpec

_SIDE, _CLASSES, _MULTIPLE = 64, 10, 8


def row(name: str) -> str:
    """Return a network's line of the table."""
    torch.manual_seed(0)
    network = ModelSpec(name, _CLASSES, 3).build(Preprocessing(_SIDE, _SIDE)).eval()
    try:
        units, left_alone = find_units(network.backbone, example_inputs(network))
    except ModelError as error:
        return f"| `{name}` | refused | refused | {error} |"
    whole = size_of(network)["macs"]
    half, least = (
        count_left(network, units, kept_channels(units, share, _MULTIPLE)) / whole if units else 1.0
        for share in (0.5, 0.0)
    )
    reasons = "; ".join(f"{layer}: {reason}" for layer, reason in left_alone.items())
    return f"| `{name}` | {half:.0%} | {least:.1%} | {reasons} |"


if __name__ == "__main__":
    print("| network | MACs with half of the channels | fewest MACs | left alone |\n|---|---|---|---|")
    for given in sys.argv[1:]:
        print(row(given), flush=True)
