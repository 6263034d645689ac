"""``krl-train fit --task vae``: a variational autoencoder, whose decoder becomes the run."""

from __future__ import annotations

from krl_train.config import FitConfig, plan_loop
from krl_train.loop import BatchStream
from krl_train.models.conditioners import build_conditioner
from krl_train.run import Run
from krl_train.tasks.vae import VaeTask, VariationalAutoencoder

from .folder import prepare_out
from .gan import generator_size, prepare, scoring
from .train import train_task

__all__ = ["fit"]


def fit(config: FitConfig) -> Run:
    """Train an encoder and a decoder; the run keeps the decoder, which needs no encoder to generate.

    Raises:
        KrlError: The data, the generator or the configuration cannot be used, or training failed.
    """
    start = prepare(config)
    finished = prepare_out(config.out, start.record, resume=config.resume, overwrite=config.overwrite)
    if finished is not None:
        return finished
    training, condition = start.training, start.generator.condition
    model = VariationalAutoencoder(start.generator, None if condition is None else build_conditioner(condition))
    loop = plan_loop(config.loop, len(training.train), config.generation.score_samples)
    stream = BatchStream(training.train, training.augmentation, loop.batch_size, loop.seed)
    task = VaeTask(
        model,
        config.generation.beta,
        config.optim,
        steps=loop.epochs * stream.steps,
        val=training.val,
        conditions=start.conditions,
        score=scoring(config, start),
    )
    size = generator_size(start.generator)
    return train_task(task, stream, start.record, size, loop, config.out, resume=config.resume)
