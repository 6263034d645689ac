"""Classifiers of a user's own: made, checked, and distinguished from others of the same class."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from krl_runtime.errors import ModelError, UsageError
from krl_train.custom import CustomName, accepted_arguments, in_user_code, load_object

from .network import Network

__all__ = ["build_custom", "check_custom", "check_probe", "custom_arguments"]

_TOLERANCE = 1e-3  # relative: float32 on another processor differs by less, another layer or activation by more


def build_custom(name: str, num_classes: int, in_channels: int) -> nn.Module:
    """Make a network: call the class or function with what it takes, or copy a network that was given itself.

    Args:
        name: ``package.module:name``, or the name of an object that was given in Python.
        num_classes: Number of logits.
        in_channels: Channels of the images.

    Raises:
        ModelError: It cannot be imported or called, or what it returns is not a network.
    """
    try:
        target = load_object(name, "model")
        if not isinstance(target, nn.Module):
            offered = {"num_classes": num_classes, "in_channels": in_channels}
            given = accepted_arguments(target, offered, f"model {name}")
            with in_user_code(f"model {name}, called with {_shown(given)},", ModelError):
                target = target(**given)
            return _checked_type(name, target)
        with in_user_code(f"copying model {name}", ModelError):
            return _checked_type(name, copy.deepcopy(target))
    except UsageError as error:
        raise ModelError(str(error)) from error


def _shown(given: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in given.items()) or "nothing"


def _checked_type(name: str, made: object) -> nn.Module:
    if not isinstance(made, nn.Module):
        raise ModelError(f"model {name} gives a {type(made).__name__}; accepted: a torch.nn.Module")
    if isinstance(made, Network):
        raise ModelError(f"model {name} is a network of krl with its normalization; give its backbone, or its run")
    return made


@torch.no_grad()
def check_custom(name: str, network: nn.Module, num_classes: int, shape: tuple[int, int, int]) -> None:
    """Run a network once, in eval mode, and check what it returns; lazy layers get their shapes by it.

    Args:
        name: Its name, for messages.
        network: From normalized ``[N, C, H, W]`` to logits; its mode stays.
        num_classes: Number of logits that are needed.
        shape: Channels, height and width of one input.

    Raises:
        ModelError: It fails, returns something else, has no parameters, or a state that safetensors cannot hold.
    """
    parameter = next(network.parameters(), None)
    if parameter is None:
        raise ModelError(f"model {name} has no parameters, so there is nothing to train")
    was_training = network.training
    example = torch.zeros(2, *shape, device=parameter.device)
    with in_user_code(f"model {name} on an input of {list(example.shape)}", ModelError):
        logits = network.eval()(example)
    network.train(was_training)
    accepted = f"a tensor of logits [N, {num_classes}] in floating point for an input [N, {', '.join(map(str, shape))}]"
    if not isinstance(logits, Tensor):
        raise ModelError(f"model {name} returns a {type(logits).__name__}; accepted: {accepted}")
    if logits.shape != (2, num_classes) or not logits.is_floating_point():
        given = f"{str(logits.dtype).removeprefix('torch.')} of shape {list(logits.shape)} for two images"
        raise ModelError(f"model {name} returns {given}; accepted: {accepted}")
    others = [key for key, value in network.state_dict().items() if not isinstance(value, Tensor)]
    if others:
        raise ModelError(f"model {name}: its state has {', '.join(others)}, not a tensor; a run holds tensors alone")


def custom_arguments(name: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Return the record of a network that was given as an instance, to recognize it: ``{"probe": logits}``.

    The class may take arguments that change what the network computes and not the shapes of its weights. So a run has
    the logits that it computes with fixed weights for a fixed input; nothing for other names.
    """
    if not isinstance(name, CustomName) or not isinstance(name.target, nn.Module):
        return {}
    return {"probe": _probe(name.target, shape)}


def check_probe(name: str, network: nn.Module, probe: Sequence[float], shape: tuple[int, int, int]) -> None:
    """Check that a network computes what one that was given as an instance did.

    Raises:
        ModelError: It does not.
    """
    mine = torch.tensor(_probe(network, shape), dtype=torch.float64)
    theirs = torch.tensor(list(probe), dtype=torch.float64)
    if mine.shape != theirs.shape or not torch.allclose(mine, theirs, rtol=_TOLERANCE, atol=_TOLERANCE):
        raise ModelError(
            f"model {name} was given as an instance, and the class, called with what krl knows, makes another network"
        )


@torch.no_grad()
def _probe(network: nn.Module, shape: tuple[int, int, int]) -> list[float]:
    """Return the logits of two random inputs with random weights, both of a fixed seed."""
    with in_user_code("the network", ModelError):
        probed = copy.deepcopy(network).cpu().eval()
        probed(torch.zeros(2, *shape))  # lazy layers get their shapes
        generator = torch.Generator().manual_seed(0)
        for value in probed.state_dict().values():
            if value.is_floating_point():
                # As initializations do it, so that values stay moderate; what has one dimension may be a variance.
                drawn = torch.randn(value.shape, generator=generator)
                value.copy_(drawn / max(1, value[0].numel()) ** 0.5 if value.ndim > 1 else drawn.abs() + 0.5)
        logits = probed(torch.randn(2, *shape, generator=generator))
    return [round(float(value), 6) for value in logits.flatten()]
