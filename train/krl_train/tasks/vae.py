"""Training a variational autoencoder, whose decoder is the generator that the run keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krl_train.conditioning import Conditions
from krl_train.config import OptimConfig
from krl_train.data import PixelSet
from krl_train.metrics.scoring import real_pixels
from krl_train.models.generator_backbones import image_sizes
from krl_train.models.generators import GeneratorNetwork
from krl_train.models.sampling import image_grid, sample_grid
from krl_train.worker import Worker

from .base import Batch, Task, Update
from .collapse import CollapseAlarm
from .gan import Score, averaged_generator, generator_learner

__all__ = ["VaeTask", "VariationalAutoencoder", "divergence", "gaussian_likelihood"]

_WIDTH = 32  # channels of the encoder at full resolution; it is not kept
_BATCH = 250  # images in a run of the evaluation: bounded memory
_MEASURED = 2000  # validation images that are reconstructed at an evaluation
_LR = 1e-3  # Adam's own default
_ADVICE = "Lower --beta or --lr, or train longer"


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the divergence of the encoder's Gaussians from the prior, KL(N(m, s²) ‖ N(0, 1)), in nats, ``[N]``.

    Args:
        mean: ``[N, Z]``.
        log_variance: ``[N, Z]``.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def gaussian_likelihood(decoded: Tensor, images: Tensor) -> Tensor:
    """Return the images' negative log-likelihood in nats an image, a scalar.

    Under a Gaussian around what was decoded whose variance is the batch's mean squared error, the most likely one:
    D / 2 (log(2 pi mse) + 1), D values in an image (sigma-VAE, https://arxiv.org/abs/2006.13202). So reconstruction
    and divergence are balanced without a factor to tune.

    Args:
        decoded: ``[N, C, H, W]``.
        images: Of the same shape and units.
    """
    values = images[0].numel()
    error = F.mse_loss(decoded, images).clamp(min=1e-8)
    return 0.5 * values * (torch.log(2 * math.pi * error) + 1)


class _Encoder(nn.Module):
    def __init__(self, generator: GeneratorNetwork, conditioner: nn.Module | None) -> None:
        super().__init__()
        preprocessing = generator.preprocessing
        ups = len(image_sizes(preprocessing.height, preprocessing.width)) - 1
        channels = [preprocessing.channels, *(_WIDTH * min(8, 2**level) for level in range(ups))]
        self.stages = nn.Sequential()
        for inputs, outputs in pairwise(channels):
            self.stages.extend([nn.Conv2d(inputs, outputs, 4, 2, 1), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)])
        self.stages.append(nn.Flatten())
        with torch.no_grad():
            features = self.stages.eval()(torch.zeros(1, *preprocessing.shape)).shape[1]
        self.stages.train()
        self.conditioner = conditioner
        self.head = nn.Linear(features + int(getattr(conditioner, "dim", 0)), 2 * generator.latent_size)

    def forward(self, images: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        x = self.stages(images)
        if self.conditioner is not None:
            x = torch.cat([x, self.conditioner(condition)], 1)
        mean, log_variance = self.head(x).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-12, 12)


class VariationalAutoencoder(nn.Module):
    """An encoder before a generator (https://arxiv.org/abs/1312.6114).

    Args:
        generator: The decoder.
        conditioner: Of the encoder, where the generator has a condition.
    """

    def __init__(self, generator: GeneratorNetwork, conditioner: nn.Module | None = None) -> None:
        super().__init__()
        self.generator = generator
        self.encoder = _Encoder(generator, conditioner)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Bring images in 0 to 255 to the units that both work in."""
        return (pixels.float() - self.generator.offset) / self.generator.scale

    def encode(self, pixels: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map images ``[N, C, H, W]`` in 0 to 255 to mean and log-variance of their latents, ``[N, Z]`` each."""
        mean, log_variance = self.encoder(self.normalize(pixels), condition)
        return mean, log_variance

    def forward(self, pixels: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the images decoded again, in 0 to 255, and mean and log-variance of the latents."""
        mean, log_variance = self.encode(pixels, condition)
        latent = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return self.generator(latent, condition), mean, log_variance


class VaeTask(Task[Batch]):
    """Trains encoder and decoder together.

    Args:
        model: Both.
        beta: Weight of the divergence (https://openreview.net/forum?id=Sy2fzU9gl).
        optim: Learning rate (0.001), schedule, largest gradient and moving average; the optimizer is Adam.
        steps: Number of steps in the whole training.
        val: Validation images; the first 2,000 are reconstructed.
        conditions: Of the training images; ``None`` for a generator without.
        score: Measures the decoder at evaluations; ``None`` measures reconstructions alone.
    """

    def __init__(
        self,
        model: VariationalAutoencoder,
        beta: float,
        optim: OptimConfig,
        *,
        steps: int,
        val: PixelSet,
        conditions: Conditions | None = None,
        score: Score | None = None,
    ) -> None:
        self.model, self.beta, self.val, self.conditions, self.score = model, beta, val, conditions, score
        self.alarm = CollapseAlarm(steps, advice=_ADVICE)
        self.learners = {"vae": generator_learner(model, model.generator, optim, steps, lr=optim.lr or _LR)}

    def step(self, batch: Batch, update: Update) -> Mapping[str, Tensor]:
        """Minimize likelihood and divergence, in nats an image, on one batch."""
        condition = None
        if self.conditions is not None:
            condition = self.conditions.draw(batch.indices).to(batch.pixels.device)
        decoded, mean, log_variance = self.learners["vae"].module(batch.pixels, condition)
        normalize = self.model.normalize
        likelihood = gaussian_likelihood(normalize(decoded), normalize(batch.pixels))
        latent = divergence(mean, log_variance).mean()
        loss = likelihood + self.beta * latent
        # Divided by the number of values, so that --lr and --clip-norm mean the same for any size.
        update("vae", loss / batch.pixels[0].numel())
        return {"loss": loss.detach(), "likelihood": likelihood.detach(), "divergence": latent.detach()}

    def final(self) -> GeneratorNetwork:
        """Return the moving average of the decoder, which the run keeps."""
        return averaged_generator(self.learners["vae"])

    @torch.no_grad()
    def evaluate(self, worker: Worker) -> dict[str, Any]:
        """Measure how well images are reconstructed (``psnr``, dB), and score what the decoder generates."""
        generator = self.final().eval()
        found = {} if self.score is None else self.score(generator, worker)
        result = self.alarm(found, self.learners["vae"])
        if self.conditions is not None:  # the validation images' conditions are not known
            return result
        self.model.eval()
        pixels, _ = real_pixels(self.val, _MEASURED)
        errors = []
        for start in range(0, len(pixels), _BATCH):
            part = pixels[start : start + _BATCH].to(worker.device)
            decoded = generator(self.model.encode(part)[0]).clamp(0, 255)
            errors.append((decoded - part.float()).square().mean((1, 2, 3)).cpu())
        mean = float(torch.cat(errors).double().mean())
        return {"psnr": round(10 * float(np.log10(255**2 / max(mean, 1e-8))), 4), **result}

    @torch.no_grad()
    def samples(self) -> Mapping[str, npt.NDArray[np.uint8]]:
        """Return a grid of generated images, and one of real images each beside its reconstruction."""
        generator = self.final().eval()
        tokens = None if self.conditions is None else self.conditions.tokens
        grids = {"samples": sample_grid(generator, tokens)}
        if self.conditions is None:
            self.model.eval()
            pixels, _ = real_pixels(self.val, 32)
            device = next(generator.parameters()).device
            decoded = generator(self.model.encode(pixels.to(device))[0]).clamp(0, 255).round().to(torch.uint8).cpu()
            grids["reconstructions"] = image_grid(torch.stack([pixels, decoded], 1).flatten(0, 1))
        return grids

    def state(self) -> dict[str, Tensor]:
        """Return the weights of the moving average of the decoder's backbone."""
        return self.final().backbone.state_dict()
