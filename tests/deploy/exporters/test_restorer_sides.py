"""Sides that a restorer's graph takes: of networks that are exported, and of images that it is measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from torch import nn

from _helpers.image_nets import smooth, write_restorer
from krl_deploy.evaluation import EvaluationOptions
from krl_deploy.evaluation.restoration import Restoration
from krl_deploy.exporters.restorer import restorer_graph
from krl_deploy.graph.sides import restorer_sides, taken_sides
from krl_runtime.images.preprocessing import Preprocessing
from krl_runtime.images.sides import Sides


class Reflecting(nn.Module):
    """A user's network that pads by reflection."""

    def __init__(self, pad: int) -> None:
        super().__init__()
        self.pad = pad
        self.convolution = nn.Conv2d(3, 12, 2 * pad + 1)

    def forward(self, pixels):
        padded = nn.functional.pad(pixels.float() / 255, [self.pad] * 4, mode="reflect")
        return nn.functional.pixel_shuffle(self.convolution(padded), 2) * 255


@pytest.mark.parametrize("pad", [1, 3, 9])
def test_the_smallest_side_of_an_exported_network(pad: int):
    spec = Preprocessing(24, 24, 3, mean=(0.0,) * 3, std=(1.0,) * 3)
    model = restorer_graph(Reflecting(pad).eval(), spec, 2, 18)
    assert restorer_sides(model, 2) == Sides(smallest=pad + 1)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    made = session.run(None, {"pixels": np.zeros((1, 3, pad + 1, pad + 1), np.uint8)})[0]
    assert made.shape == (1, 3, 2 * pad + 2, 2 * pad + 2)
    with pytest.raises(Exception, match="Pad reflect"):
        session.run(None, {"pixels": np.zeros((1, 3, pad, pad), np.uint8)})


@pytest.mark.parametrize("smallest", [1, 5, 33, 64])
@pytest.mark.parametrize("multiple", [1, 2, 7, 16, 48, 64])
def test_sides_are_found(smallest: int, multiple: int):
    def runs(height: int, width: int) -> bool:
        return min(height, width) >= smallest and height % multiple == width % multiple == 0

    least = -(-smallest // multiple) * multiple
    found = taken_sides(runs)
    assert found == (Sides(least, multiple) if least <= 64 else None)


@pytest.mark.parametrize("runs", [lambda h, w: h == w == 16, lambda h, w: False, lambda h, w: h == w])
def test_sides_that_are_no_multiples(runs):
    assert taken_sides(runs) is None


@pytest.mark.parametrize(
    ("settings", "shape"), [({}, (15, 21)), ({"multiple": 8}, (16, 24)), ({"smallest_side": 40}, (40, 40))]
)
def test_images_are_padded_to_be_measured(tmp_path: Path, settings: dict[str, int], shape: tuple[int, int]):
    whole = {"scale": 2, "color": "y", "overlap": None, "degradation": {"kind": "bicubic"}, **settings}
    bundle = write_restorer(tmp_path / "a.krl", settings=whole)
    (tmp_path / "data").mkdir()
    for number in range(2):
        Image.fromarray(smooth(30, 42, 3, seed=number)).save(tmp_path / "data" / f"{number}.png")
    task = Restoration(bundle, EvaluationOptions(tmp_path / "data", 10, 1.0, "refuse"))
    for given, truth in task.batches():
        assert given.shape == (1, 1, *shape)
        assert truth is not None
        assert truth.shape == (1, 30, 42)
        assert (given[0, 0, :15, 21:] == given[0, 0, :15, 20:21]).all()
