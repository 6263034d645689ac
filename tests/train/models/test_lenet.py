from __future__ import annotations

from pathlib import Path

import pytest
import torch

from _helpers.images import SHARED_DATA
from krl_runtime.errors import ModelError
from krl_train.config import DataConfig, ImportConfig, InputConfig
from krl_train.importers.importing import import_weights
from krl_train.models import build_model, count_parameters, native_size

WEIGHTS = SHARED_DATA / "models" / "mnist_lenet5_0.991.pth"


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("lenet5", (25 + 1) * 6 + (25 * 6 + 1) * 16 + (25 * 16 + 1) * 120 + 121 * 84 + 85 * 10),
        ("lenet5-half", (25 + 1) * 3 + (25 * 3 + 1) * 8 + (25 * 8 + 1) * 60 + 61 * 42 + 43 * 10),
    ],
)
def test_size_by_hand(name: str, parameters: int) -> None:
    model = build_model(name, 10, 1)
    assert count_parameters(model) == parameters
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    assert native_size(name) is None


def test_another_size_is_refused() -> None:
    with pytest.raises(ModelError, match="lenet5 takes images of 32×32 pixels, not 28×28; use --size 32"):
        build_model("lenet5", 10, 1)(torch.zeros(1, 1, 28, 28))


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="the shared data is not here")
def test_published_weights_know_digits(tmp_path: Path) -> None:
    data = DataConfig(data="mnist", data_root=SHARED_DATA, val_limit=1000)
    size = InputConfig(size=(32,), mean=(0.0,), std=(1.0,))
    run = import_weights(ImportConfig(weights=WEIGHTS, model="lenet5", out=tmp_path / "run", data=data, input=size))
    assert run.record.metrics["top1"] > 0.98
