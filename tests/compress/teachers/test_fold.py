from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from _helpers.statistics import with_statistics
from krl_compress.teachers.fold import fold_batch_norm
from krl_train.models import build_model


@pytest.mark.parametrize(
    ("name", "folded"), [("resnet8", 7), ("cifar-mobilenetv2", 53), ("cifar-shufflenetv2", 56), ("wrn-10-1", 3)]
)
def test_answers_stay_and_modules_keep_their_names(name: str, folded: int) -> None:
    model = with_statistics(build_model(name, 10))
    pixels = torch.randn(4, 3, 32, 32)
    names = [each for each, _ in model.named_modules()]
    with torch.no_grad():
        before = model(pixels)
        assert fold_batch_norm(model, pixels[:2]) == folded
        torch.testing.assert_close(model(pixels), before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))
    assert [each for each, _ in model.named_modules()] == names
    assert sum(isinstance(module, nn.Identity) for module in model.modules()) >= folded
    assert fold_batch_norm(model, pixels[:2]) == 0


class _Shared(nn.Module):
    """The convolution's result is used beside the normalization's: folding would change the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) * y


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.conv(self.norm(self.conv(x))))
        return result


@pytest.mark.parametrize("kind", [_Shared, _Twice])
def test_what_cannot_be_folded_is_left_as_it_was(kind: type[nn.Module]) -> None:
    model = with_statistics(kind())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    pixels = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        before = model(pixels)
        assert fold_batch_norm(model, pixels) == 0
        assert torch.equal(model(pixels), before)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
