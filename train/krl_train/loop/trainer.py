"""The one training loop: devices, mixed precision, several processes, logging, checkpoints, resuming.

Everything random follows from the seed, the epoch and the step, so a run that is killed and resumed computes what it
would have computed, and two processes see the images that one would have seen.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from krl_runtime.errors import RunError, TrainingError, UsageError
from krl_runtime.files import atomic_path, write_atomic
from krl_runtime.progress import progress_bar
from krl_train.config import Plan, PlannedLoop, log_plan
from krl_train.models.sparsity import Zeros
from krl_train.tasks.base import Batch, Learner, Task, TrainingStream
from krl_train.worker import Worker

from .devices import make_accelerator
from .events import Events
from .modules import compile_network, compiling, synchronize_batch_norm
from .stream import BatchStream

__all__ = ["CHECKPOINT", "Trainer"]

CHECKPOINT = Path("checkpoint") / "state.pt"

_log = logging.getLogger("krl")
_ONE_VALUE = "Expected more than 1 value per channel"  # torch's, of batch normalization
_LEAST_BATCH = 3  # the last batch of an epoch then has two images or more
_WATCH_EVERY_ON_GPU = 25  # steps between looks at the loss: each waits for the GPU


@dataclass
class _State:
    """The part of a checkpoint beside the learners.

    Attributes:
        epoch: Finished epochs.
        step: Finished steps of the next one.
        history: An entry for each epoch.
        metrics: Of the last evaluation.
        seconds: Time that was spent.
        quality: Of the best evaluation.
        waited: Number of evaluations since then.
        best: Its ``"metrics"`` and ``"weights"``, where they are kept.
    """

    epoch: int = 0
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    quality: list[float] | None = None
    waited: int = 0
    best: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Part:
    """The part of a step that is computed.

    Attributes:
        share: Its share of the step's images.
        first: Whether gradients begin with it.
        last: Whether the step is taken after it.
    """

    share: float = 1.0
    first: bool = True
    last: bool = True


_WHOLE = _Part()


class Trainer:
    """Runs a task over a stream of batches.

    Args:
        config: How long and on what.
        task: What a step and an evaluation are.
        stream: The batches.
        out: The run's folder; ``None`` trains without logs and checkpoints.
    """

    def __init__(self, config: PlannedLoop, task: Task[Any], stream: TrainingStream[Any], out: Path | None) -> None:
        self.config, self.task, self.stream, self.out = config, task, stream, out
        self.accelerator = make_accelerator(config, unfreezes=task.unfreezes)
        world = self.accelerator.num_processes
        if config.batch_size % world:
            raise UsageError(f"--batch-size {config.batch_size} cannot be shared by {world} processes; use a multiple")
        if config.accumulate > config.batch_size // world:
            raise UsageError(
                f"--accumulate {config.accumulate} makes more parts than a process has images in a step; accepted with "
                f"--batch-size {config.batch_size} and {world} process(es): up to {config.batch_size // world}"
            )
        self.worker = Worker(self.accelerator.device, self.accelerator.process_index, world, config.channels_last)
        for learner in task.learners.values():
            self._prepare(learner)
        self.state = _State()
        self._zeros = {name: Zeros(learner.module) for name, learner in task.learners.items()}
        self._part = _WHOLE
        self._saved = time.monotonic()

    def _prepare(self, learner: Learner) -> None:
        if self.config.channels_last:
            learner.module.to(memory_format=torch.channels_last)
        if self.config.sync_bn:
            synchronize_batch_norm(learner, self.worker)
        if self.config.compile:
            compile_network(learner)
        if learner.average is not None:
            learner.average.to(self.accelerator.device)
        learner.module, learner.optimizer = self.accelerator.prepare(learner.module, learner.optimizer)

    def fit(self) -> dict[str, Any]:
        """Train to the end, from the checkpoint if one was loaded.

        Returns:
            The metrics of the weights that ``kept`` returns.

        Raises:
            TrainingError: The loss is not a finite number; the last good checkpoint stays.
            UsageError: A batch has one image, and the network has batch normalization that this is too little for.
        """
        if self.accelerator.is_main_process:
            log_plan(self.plan)
        total = self.config.epochs * self.stream.steps
        done = self.state.epoch * self.stream.steps + self.state.step
        with progress_bar("training", total, done) as advance, Events(self._main(self.out)) as events:
            while self.state.epoch < self.config.epochs and not self._stopped():
                with compiling(self.config):
                    entry = self._epoch(advance)
                self.state.history.append(entry)
                self.state.epoch, self.state.step = self.state.epoch + 1, 0
                planned = self.state.epoch % self.config.checkpoint_every == 0
                if planned or self._due() or self.state.epoch == self.config.epochs:
                    self.save()
                events(entry, self._samples(entry))
                self._report(entry)
        return self.state.metrics if self.state.best is None else self.state.best["metrics"]

    def kept(self) -> dict[str, Tensor]:
        """Return the weights that the run keeps: of the best epoch, or of the last one."""
        return self.task.state() if self.state.best is None else self.state.best["weights"]

    def _stopped(self) -> bool:
        """Whether the training has waited long enough for a better epoch."""
        patience = self.config.early_stopping
        if patience is None or self.state.waited < patience:
            return False
        _log.info("stopped after epoch %d: %d evaluations were no better", self.state.epoch, self.state.waited)
        return True

    def _due(self) -> bool:
        """Whether the last checkpoint is so old that there has to be another."""
        return time.monotonic() - self._saved > 60 * self.config.checkpoint_minutes

    def _judge(self) -> None:
        """Keep the weights if the evaluation is the best so far."""
        state = self.state
        quality = self.task.quality(state.metrics)
        if quality is None:
            return
        if state.quality is not None and list(quality) <= state.quality:
            state.waited += 1
            return
        state.quality, state.waited = list(quality), 0
        if self.config.keep == "best":
            weights = {name: value.detach().cpu().clone() for name, value in self.task.state().items()}
            state.best = {"metrics": {**state.metrics, "epoch": state.epoch + 1}, "weights": weights}

    def _samples(self, entry: dict[str, Any]) -> Mapping[str, npt.NDArray[np.uint8]]:
        """Write the task's images after an evaluation, and return them."""
        evaluated = entry["epoch"] % self.config.evaluate_every == 0 or entry["epoch"] == self.config.epochs
        out = self._main(self.out)
        if out is None or not evaluated:
            return {}
        images = self.task.samples()
        for name, image in images.items():
            encoded = io.BytesIO()
            Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(encoded, "PNG")
            write_atomic(out / "samples" / f"{name}-{entry['epoch']:04d}.png", encoded.getvalue())
        return images

    def _main(self, out: Path | None) -> Path | None:
        return out if self.accelerator.is_main_process else None

    def _epoch(self, advance: Callable[[], None]) -> dict[str, Any]:
        state, started = self.state, time.monotonic()
        self.task.begin_epoch(state.epoch)
        sums: dict[str, Tensor] = {}
        count = 0
        for batch in self.stream.epoch(state.epoch, state.step, self.worker):
            torch.manual_seed(_step_seed(self.config.seed, state.epoch, state.step, self.worker.rank))
            parts = self._step(batch)
            sums = {name: sums[name] + value if name in sums else value for name, value in parts.items()}
            count += 1
            state.step += 1
            last = state.step == self.stream.steps
            if last or self.worker.device.type == "cpu" or state.step % _WATCH_EVERY_ON_GPU == 0:
                self._watch(sums)
            if not last and self._due():
                self.save()
            advance()
        entry: dict[str, Any] = {"epoch": state.epoch + 1, "lr": self._learning_rate()}
        entry |= {name: round(float(value) / count, 6) for name, value in sums.items()} if count else {}
        final = state.epoch + 1 == self.config.epochs
        if final or (state.epoch + 1) % self.config.evaluate_every == 0:
            self._share_buffers()
            state.metrics = self.task.evaluate(self.worker)
            self._judge()
            entry |= {f"val_{name}": value for name, value in state.metrics.items() if isinstance(value, float)}
        entry["seconds"] = round(time.monotonic() - started, 3)
        state.seconds += entry["seconds"]
        return entry

    def _step(self, batch: Any) -> Mapping[str, Tensor]:
        """Take one optimization step on a batch, at once or in parts; return the named scalars of the whole batch."""
        try:
            return self.task.step(batch, self._update) if self.config.accumulate == 1 else self._step_in_parts(batch)
        except ValueError as error:
            if _ONE_VALUE not in str(error):
                raise
            parts = f" and {self.config.accumulate} parts" if self.config.accumulate > 1 else ""
            raise UsageError(
                f"a step has one image, of {self.stream.count} in batches of {self.config.batch_size}{parts}: too "
                f"little for batch normalization; give --batch-size {_LEAST_BATCH} or more for each process and part, "
                "more images, or another --size"
            ) from error

    def _step_in_parts(self, batch: Batch) -> dict[str, Tensor]:
        """Accumulate the gradients of parts; processes are synchronized with the last one alone."""
        parts, sums = batch.split(self.config.accumulate), dict[str, Tensor]()
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            self._part = _Part(len(part.labels) / len(batch.labels), first=index == 0, last=last)
            with ExitStack() as unsynchronized:
                for learner in () if last else self.task.learners.values():
                    unsynchronized.enter_context(self.accelerator.no_sync(learner.module))
                found = self.task.step(part, self._update)
            weighted = {name: self._part.share * value for name, value in found.items()}
            sums = {name: sums[name] + value if name in sums else value for name, value in weighted.items()}
        return sums

    def _share_buffers(self) -> None:
        """Give all processes the buffers of the first one, whose weights the run keeps: statistics of normalization."""
        if self.worker.world == 1:
            return
        for learner in self.task.learners.values():
            modules = [learner.module] if learner.average is None else [learner.module, learner.average]
            for buffer in (buffer for module in modules for buffer in module.buffers()):
                torch.distributed.broadcast(buffer, 0)

    def _watch(self, sums: dict[str, Tensor]) -> None:
        if not torch.isfinite(sums["loss"]):
            there = self.out is not None and (self.out / CHECKPOINT).is_file()
            kept = f"; the last good checkpoint stays in {self.out}" if there else ""
            raise TrainingError(
                f"the loss is not a finite number in epoch {self.state.epoch + 1}, step {self.state.step}{kept}. "
                "Lower --lr, set --clip-norm 1, lengthen --warmup, or use --precision fp32"
            )

    def _update(self, name: str, loss: Tensor) -> None:
        learner, part = self.task.learners[name], self._part
        if part.first:
            learner.optimizer.zero_grad()
        self.accelerator.backward(loss if part.share == 1 else part.share * loss)
        if not part.last:
            return
        if learner.optim.clip_norm is not None:
            self.accelerator.clip_grad_norm_(learner.module.parameters(), learner.optim.clip_norm)
        learner.optimizer.step()
        self._zeros[name].hold()
        learner.schedule.step()
        if learner.average is not None and learner.average_of is not None:
            learner.average.update_parameters(learner.average_of)

    @property
    def plan(self) -> Plan:
        """Return how long, on what and how is trained, with nothing left open."""
        first = next(iter(self.task.learners.values()))
        rate = max(float(group["initial_lr"]) for group in first.optimizer.param_groups)
        views = self.stream.augmentation.describe() if isinstance(self.stream, BatchStream) else {}
        return Plan.of(self.config, first.optim, self.stream.count, self.stream.steps, rate, views)

    def _learning_rate(self) -> float:
        first = next(iter(self.task.learners.values()))
        return round(max(float(group["lr"]) for group in first.optimizer.param_groups), 8)

    def _report(self, entry: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            shown = {name: value for name, value in entry.items() if name not in ("epoch", "seconds")}
            text = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
            _log.info("epoch %d/%d  %s  %.1f s", entry["epoch"], self.config.epochs, text, entry["seconds"])

    def save(self) -> None:
        """Write a checkpoint, whole or not at all."""
        self._saved = time.monotonic()
        out = self._main(self.out)
        if out is None:
            return
        learners = {}
        for name, learner in self.task.learners.items():
            module = self.accelerator.unwrap_model(learner.module)
            if not all(torch.isfinite(parameter).all() for parameter in module.parameters()):
                raise TrainingError(f"the weights of {name} are not finite numbers; the last good checkpoint stays")
            learners[name] = {
                "module": module.state_dict(),
                "optimizer": learner.optimizer.state_dict(),
                "schedule": learner.schedule.state_dict(),
                "average": learner.average.state_dict() if learner.average is not None else None,
            }
        # Through memory: on a full disk torch's own writer fails without saying so.
        buffer = io.BytesIO()
        torch.save({"state": vars(self.state), "learners": learners}, buffer)
        with atomic_path(out / CHECKPOINT) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    def resume(self) -> bool:
        """Load the checkpoint of the run, if there is one.

        Returns:
            Whether there was one.

        Raises:
            RunError: It is damaged or does not fit the task.
        """
        if self.out is None or not (self.out / CHECKPOINT).is_file():
            return False
        path = self.out / CHECKPOINT
        try:
            saved = torch.load(path, map_location=self.worker.device, weights_only=True)
            for name, learner in self.task.learners.items():
                values = saved["learners"][name]
                self.accelerator.unwrap_model(learner.module).load_state_dict(values["module"])
                learner.optimizer.load_state_dict(values["optimizer"])
                learner.schedule.load_state_dict(values["schedule"])
                if learner.average is not None:
                    learner.average.load_state_dict(values["average"])
            self.state = _State(**saved["state"])
        except Exception as error:  # torch.load raises many types on damaged files
            raise RunError(f"checkpoint {path} cannot be used ({error}); start again with --overwrite") from error
        _log.info("resuming at epoch %d, step %d", self.state.epoch + 1, self.state.step)
        return True


def _step_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence((seed, epoch, step, rank)).generate_state(1, np.uint64)[0]) % 2**63
