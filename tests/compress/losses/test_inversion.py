from __future__ import annotations

from math import log

import pytest
import torch

from krl_compress.losses.inversion import activation, class_balance, one_hot


def test_one_hot_by_hand() -> None:
    logits = torch.tensor([[0.8, 0.1, 0.1], [0.25, 0.25, 0.5]], dtype=torch.float64).log()
    assert float(one_hot(logits)) == pytest.approx(-(log(0.8) + log(0.5)) / 2)
    reference = torch.nn.functional.cross_entropy(logits, logits.argmax(1))
    torch.testing.assert_close(one_hot(logits), reference)


def test_class_balance_by_hand() -> None:
    even = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64).log()
    assert float(class_balance(even)) == pytest.approx(-log(2))
    one_sided = torch.tensor([[0.9, 0.1], [0.7, 0.3]], dtype=torch.float64).log()
    assert float(class_balance(one_sided)) == pytest.approx(0.8 * log(0.8) + 0.2 * log(0.2))


def test_class_balance_of_one_class_alone_is_finite() -> None:
    logits = torch.tensor([[500.0, -500.0]], requires_grad=True)
    loss = class_balance(logits)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_activation_by_hand() -> None:
    assert float(activation(torch.tensor([[1.0, -3.0], [0.0, 2.0]]))) == -1.5


@pytest.mark.parametrize("loss", [one_hot, class_balance, activation])
def test_half_precision_is_computed_in_float32(loss) -> None:
    values = torch.tensor([[3.0, 1.0], [0.0, 2.0]], dtype=torch.bfloat16)
    assert loss(values).dtype == torch.float32
    torch.testing.assert_close(loss(values), loss(values.float()))
