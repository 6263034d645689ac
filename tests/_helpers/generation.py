"""Small trainings of generators, and a generator that another program has trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from krl_train.config import DataConfig, FitConfig, GenerationConfig, ImportConfig, InputConfig, LoopConfig

__all__ = ["LOOP", "gan_config", "third_party_generator"]

LOOP = LoopConfig(epochs=2, batch_size=32, device="cpu", precision="fp32")


def gan_config(out: Path, **changes: Any) -> FitConfig:
    """Return the training of a small GAN on some of the digits: 5 steps in each of two epochs."""
    base = FitConfig(
        task="gan",
        model="dsgan-2",
        out=out,
        data=DataConfig(data="digits", limit=160, val_limit=80),
        loop=LOOP,
        generation=GenerationConfig(latent=6, r1=10.0, diffaugment=("translation", "cutout")),
    )
    return replace(base, **changes)


def third_party_generator(
    folder: Path, *, latent: int, hidden: int, size: tuple[int, ...], channels: int
) -> tuple[nn.Sequential, ImportConfig]:
    """Return a generator with one hidden layer, and what imports its weights as the run ``folder/run``."""
    torch.manual_seed(0)
    values = channels * size[0] * size[-1]
    layers = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, values), nn.Tanh())
    torch.save(layers.state_dict(), folder / "G.ckpt")
    asked = ImportConfig(
        weights=folder / "G.ckpt",
        model=f"mlp-{hidden}",
        latent=latent,
        out=folder / "run",
        input=InputConfig(size=size, channels=channels),
    )
    return layers, asked
