from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krl_runtime.errors import UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.metrics.guide import Guide
from krl_train.models import Network
from krl_train.models.network import fit_images

TEXT = {"kind": "text", "length": 3, "dim": 4, "vocabulary": ["", "a", "blue", "one", "red"]}
ATTRIBUTES = {"kind": "attributes", "length": 2, "dim": 4, "vocabulary": ["c=", "c=blue", "c=Red", "d=", "d=one"]}


class Levels(nn.Module):
    """Gives the mean of each channel as logits."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def network(channels: int = 3) -> Network:
    return Network(Levels(), Preprocessing(2, 2, channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels))


def test_targets_are_the_classes_that_tokens_name() -> None:
    guide = Guide(network(), ("red", "green", "blue"), TEXT)
    tokens = torch.tensor([[1, 4, 3], [2, 3, 0], [1, 3, 0], [4, 2, 3], [4, 4, 0]])
    assert guide.targets(tokens).tolist() == [0, 2, -100, -100, 0]  # neither none nor two colors say which
    by_attribute = Guide(network(), ("red", "green", "blue"), ATTRIBUTES)
    assert by_attribute.targets(torch.tensor([[2, 4], [0, 4]])).tolist() == [0, -100]


def test_loss_by_hand() -> None:
    guide = Guide(network(), ("red", "green", "blue"), TEXT)
    images = torch.zeros(3, 3, 2, 2)
    images[0, 0] = images[1, 1] = 255.0
    loss = guide(images, torch.tensor([[4, 0, 0], [2, 0, 0], [1, 0, 0]]))
    right = F.cross_entropy(torch.tensor([1.0, 0, 0]), torch.tensor(0))
    wrong = F.cross_entropy(torch.tensor([0.0, 1, 0]), torch.tensor(2))
    torch.testing.assert_close(loss, (right + wrong) / 2)
    assert float(guide(images, torch.tensor([[1, 0, 0]] * 3))) == 0.0


def test_images_learn_and_the_classifier_does_not() -> None:
    net = Network(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), Preprocessing(2, 2))
    guide = Guide(net, ("red", "green", "blue"), TEXT).train()
    assert not guide.network.training
    images = torch.full((2, 3, 2, 2), 100.0, requires_grad=True)
    guide(images, torch.tensor([[4, 0, 0], [2, 0, 0]])).backward()
    assert images.grad is not None
    assert float(images.grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_guide_that_knows_none_of_the_words() -> None:
    with pytest.raises(UsageError, match="the guide knows cat, dog; none of these is in the conditions' vocabulary: a"):
        Guide(network(), ("cat", "dog"), TEXT)


def test_images_are_made_to_fit() -> None:
    red = torch.zeros(1, 3, 4, 4)
    red[:, 0] = 100.0
    gray = fit_images(red, network(1).preprocessing)
    assert gray.shape == (1, 1, 2, 2)
    torch.testing.assert_close(gray, torch.full((1, 1, 2, 2), 29.9))
    assert fit_images(torch.ones(1, 1, 2, 2), network().preprocessing).shape == (1, 3, 2, 2)
