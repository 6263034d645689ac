"""Changes of one condition, with a planted generator whose images are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from krl_runtime.errors import UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.explaining.conditions import explain_conditions, factors_of
from krl_train.models.generators import GeneratorNetwork

SPEC = Preprocessing(8, 8, channels=1, mean=(0.0,), std=(1.0,))
ATTRIBUTES = {
    "kind": "attributes",
    "length": 2,
    "dim": 4,
    "vocabulary": ["bright=", "bright=no", "bright=yes", "idle=", "idle=a", "idle=b", "idle=c"],
}


class _Planted(nn.Module):
    """Gray 100, the left half 60 brighter where ``bright=yes``; ``idle`` changes nothing; the latent shifts by 20."""

    def forward(self, latent, tokens):
        images = torch.full((len(latent), 1, 8, 8), 100.0) + 20 * latent.sign().reshape(-1, 1, 1, 1)
        images[..., :4] += 60.0 * (tokens[:, 0] == 2).reshape(-1, 1, 1, 1)
        return images / 255


def test_the_change_is_what_was_planted(tmp_path):
    generator = GeneratorNetwork(_Planted(), 1, SPEC, ATTRIBUTES).eval()
    found = explain_conditions(generator, None, tmp_path)
    bright, idle = found["factors"]
    assert [item["value"] for item in bright["values"]] == ["no", "yes"]
    assert bright["values"][1]["condition"] == "bright=yes,idle=a"
    assert [item["mean_absolute_change"] for item in bright["values"]] == [0, 30]  # 60 in half of the pixels
    assert [item["mean_absolute_change"] for item in idle["values"]] == [0, 0, 0]
    assert 0 < found["latent_change"] <= 40
    grid = np.asarray(Image.open(tmp_path / bright["figure"])).astype(int)
    assert grid.shape == (8 * 8, 2 * 8)
    difference = grid[:, 8:] - grid[:, :8]  # in one row the same latent
    assert (difference[:, :4] == 60).all()
    assert (difference[:, 4:] == 0).all()


def test_base_is_the_first_column_and_its_other_parts_stay():
    bright, idle = factors_of(ATTRIBUTES, "idle=b, bright=yes")
    assert bright.values == ("yes", "no")
    assert idle.values == ("b", "a", "c")
    assert idle.conditions[1].split(",") == ["idle=a", "bright=yes"]
    with pytest.raises(UsageError, match="not known"):
        factors_of(ATTRIBUTES, "idle=z")


def test_kinds_of_conditions():
    labels = {"kind": "labels", "length": 1, "dim": 4, "vocabulary": ["zero", "one", "two"]}
    (factor,) = factors_of(labels, "one")
    assert factor.conditions == ("one", "zero", "two")
    text = {"kind": "text", "length": 3, "dim": 4, "vocabulary": ["", "a", "red", "seven"]}
    left_out = [factor.conditions[1] for factor in factors_of(text, "a red seven")]
    assert left_out == ["red seven", "a seven", "a red"]
    with pytest.raises(UsageError, match="--condition"):
        factors_of(text, None)
    facts = [["seven", "color", "red"], ["two", "color", "blue"], ["seven", "size", "big"]]
    vocabulary = ["", "color", "size", "seven", "two", "red", "blue", "big"]
    graph = {"kind": "graph", "length": 4, "dim": 4, "vocabulary": vocabulary, "relations": ["color", "size"]}
    (color,) = factors_of({**graph, "facts": facts}, "seven")  # of sizes there is but one
    assert color.name == "color"
    assert color.conditions == ("seven,color=red", "seven,color=blue")


def test_a_generator_without_conditions_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--teacher"):
        explain_conditions(GeneratorNetwork(nn.Identity(), 1, SPEC), None, tmp_path)
