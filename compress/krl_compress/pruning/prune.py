"""``krl-compress prune``: from a run to the run of a thinner network, taught by what it was."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from krl_compress.config import DistillConfig, PruneConfig
from krl_compress.distillation.distill import prepare
from krl_compress.distillation.job import Job
from krl_runtime.errors import RunError, UsageError
from krl_train.config import to_plain
from krl_train.models.sparsity import SPARSE
from krl_train.processes import refuse_several
from krl_train.run import RECORD, Run, RunRecord
from krl_train.training.folder import prepare_out

from .criteria import gradients, lowest, scores
from .networks import PrunableNetwork, example_inputs, network_of, size_of, with_backbone
from .plan import Counts, any_channels, counts_for_macs, kept_channels, steps_between
from .sensitivity import SENSITIVITY_FILES, measure_sensitivity, write_sensitivity
from .sparsity import as_sparse, sparse_layers, sparsity_of
from .units import Unit, find_units, pruned_spec, removed

__all__ = ["COMMAND", "prune"]

_log = logging.getLogger("krl")

COMMAND = "krl-compress prune"
_STEPS = "steps"  # folder inside the run's: of each step the network as pruned, and as distilled


@dataclass(frozen=True)
class _Pruning:
    """A pruning that was found possible; nothing is written yet.

    ``counts`` has what is kept after each step.
    """

    config: PruneConfig
    run: Run
    job: Job
    units: Sequence[Unit]
    counts: Sequence[Counts]
    left_alone: Mapping[str, str]


def prune(config: PruneConfig) -> Run:
    """Remove channels of a network, in steps, and distill what is left from the whole network after each.

    Returns:
        The run of the pruned network; its metrics have ``"teacher"``, those of the whole one, and ``"pruning"``.

    Raises:
        KrlError: The run, the data or an option cannot be used, torchrun started several processes, or a training
            failed.
    """
    refuse_several("a pruning runs")
    made = _prepare(config)
    whole = network_of(made.run).backbone
    thin = removed(whole, any_channels(made.units, made.counts[-1]))
    spec = pruned_spec(made.run.record.model, whole, thin)
    if config.sparsity is not None:
        spec = as_sparse(thin, spec, sparse_layers(thin)[0])
    record = replace(made.job.record, model=spec, command=COMMAND, configuration=to_plain(config))
    finished = prepare_out(config.out, record, resume=config.resume, overwrite=config.overwrite)
    if finished is not None:
        return finished
    if not config.resume:
        shutil.rmtree(config.out / _STEPS, ignore_errors=True)
        for name in SENSITIVITY_FILES:
            (config.out / name).unlink(missing_ok=True)
    for name, reason in made.left_alone.items():
        _log.info("%s is left alone: %s", name, reason)
    measured = made.job.measure_teachers()
    metrics: dict[str, Any] = {"teacher": measured[0], "teachers": measured}
    if config.sensitivity:
        metrics["sensitivity"] = _measure_sensitivity(made)
    return _carry_out(made, replace(record, metrics=metrics))


def _prepare(config: PruneConfig) -> _Pruning:
    run = Run.open(config.run)
    _check(run)
    if run.path.resolve().is_relative_to(config.out.resolve()):  # --overwrite would remove it
        raise UsageError(f"run {run.path} lies in --out {config.out}; give another --out")
    network = network_of(run)
    units, left_alone = find_units(network.backbone, example_inputs(network))
    if config.criterion == "bn":
        for unit in [unit for unit in units if scores(network.backbone, unit, "bn") is None]:
            left_alone[unit.name] = "it has no factors of batch normalization, which --criterion bn looks at"
            units.remove(unit)
    if not units and not config.only_sparse:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_alone.items()) or "it has no inner layers"
        raise UsageError(f"run {run.path}: nothing of {run.record.model.name} can be pruned ({reasons})")
    if config.only_sparse:
        last = {unit.name: unit.channels for unit in units}
    elif config.macs is not None:
        last = counts_for_macs(network, units, config.macs, config.multiple)
    else:
        last = kept_channels(units, config.keep_channels or 0.0, config.multiple)
    if config.sparsity is None and all(last[unit.name] == unit.channels for unit in units):
        option = "--macs" if config.keep_channels is None else "--keep-channels"
        raise UsageError(
            f"run {run.path}: no layer of {run.record.model.name} has fewer channels with these options; give a "
            f"smaller {option} or --multiple (it is {config.multiple})"
        )
    counts = steps_between(units, last, config.steps, config.multiple)
    job = prepare(_distillation(config))
    if config.criterion == "taylor":
        job.training_losses(network)  # refuses before anything is written
    if job.record.labels != run.record.labels:
        raise UsageError(
            f"run {run.path} has other labels than the data; train it on them first (krl-train fit --from)"
        )
    return _Pruning(config, run, job, units, counts, left_alone)


def _check(run: Run) -> None:
    """Refuse runs that cannot be pruned.

    Raises:
        UsageError: See there.
    """
    record = run.record
    if record.task == "restoration" and record.model.arguments["degradation"].get("kind") == "none":
        raise UsageError(
            f"run {run.path} is of translation or style ({record.model.name}), or was imported with --degradation "
            "none: a pruned network is distilled, and krl cannot make images for that; prune a restorer"
        )
    if SPARSE in record.model.arguments:
        raise UsageError(
            f"run {run.path} is sparse already, and its zeros would not stay in groups; prune the run that it was made "
            "from"
        )
    if "quantize" in record.model.arguments:
        raise UsageError(
            f"run {run.path} was trained for INT8, its layers are fused; prune the run in floating point that it was "
            "made from, and train that for INT8 (krl-compress distill --quantize int8)"
        )
    if record.inputs:
        raise UsageError(
            f"run {run.path} takes several inputs, and prune takes classifiers of the image alone; distill one from it "
            f"(krl-compress distill --teacher {run.path} --student NAME --out STUDENT) and prune that"
        )
    if record.source_labels:
        raise UsageError(
            f"run {run.path} has two heads, and prune takes one; distill a student from it first: krl-compress distill "
            f"--teacher {run.path} --student {run.path} --out STUDENT"
        )


def _distillation(config: PruneConfig) -> DistillConfig:
    """Return the options of the distillations."""
    return DistillConfig(
        teacher=(str(config.run),),
        student=str(config.run),
        out=config.out,
        resume=config.resume,
        losses=config.losses,
        data=config.data,
        augment=config.augment,
        optim=config.optim,
        loop=config.loop,
        generator_student=config.generator_student,
        generation=config.generation,
    )


def _measure_sensitivity(made: _Pruning) -> dict[str, Any]:
    """Measure how much each layer matters, and write it into the run's folder."""
    network, job, criterion = network_of(made.run), made.job, made.config.criterion
    slopes = _slopes(made, network)
    found = measure_sensitivity(network, made.units, criterion, slopes, job.measure, job.metric())
    write_sensitivity(found, made.config.out)
    return found


def _slopes(made: _Pruning, network: PrunableNetwork) -> dict[str, Tensor] | None:
    if made.config.criterion != "taylor":
        return None
    return gradients(network, made.job.training_losses(network))


def _carry_out(made: _Pruning, record: RunRecord) -> Run:
    """Prune and distill, step by step; the last step's result is the run itself."""
    config, before, steps = made.config, made.run, []
    for number, counts in enumerate(made.counts, 1):
        folder = config.out / _STEPS / str(number)
        last = number == len(made.counts)
        pruned = _prune_step(made, before, counts, record, folder / "pruned", sparse=last and bool(config.sparsity))
        steps.append({"kept": counts, **pruned.record.metrics})
        pruning = {"steps": steps, "left_alone": dict(made.left_alone), **_sparsity(pruned)}
        record = replace(record, metrics={**record.metrics, "pruning": pruning})
        if number < len(made.counts):
            _log.info("step %d of %d: distillation from the whole network", number, len(made.counts))
            before = _distill_step(made, pruned, record, folder / "distilled")
    if config.only_prune:
        finished = replace(record, metrics={**record.metrics, **pruned.record.metrics})
        return Run.write(config.out, finished, pruned.state())
    return made.job.after_pruning(pruned, config.out, resume=config.resume).train(record)


def _sparsity(run: Run) -> dict[str, Any]:
    """Return the part of the report on sparsity; nothing for a run that is not sparse."""
    layers = run.record.model.arguments.get(SPARSE, [])
    if not layers:
        return {}
    _, left_alone = sparse_layers(network_of(run).backbone)
    return {"sparsity": {**sparsity_of(run.state(), layers), "left_alone": left_alone}}


def _prune_step(made: _Pruning, before: Run, counts: Counts, record: RunRecord, out: Path, *, sparse: bool) -> Run:
    """Write the run of a network that was pruned and not trained yet, unless it is there."""
    if made.config.resume and (out / RECORD).is_file():
        try:
            return Run.open(out)
        except RunError:
            _log.info("%s is made again", out)
    network, criterion = network_of(before), made.config.criterion
    units, _ = find_units(network.backbone, example_inputs(network))
    slopes = _slopes(made, network)
    choice = {}
    for unit in units:
        score = scores(network.backbone, unit, criterion, slopes)
        if score is not None and unit.name in counts:
            choice[unit] = lowest(score, unit.parts, unit.channels - counts[unit.name])
    thin = removed(network.backbone, choice) if choice else network.backbone
    spec = pruned_spec(made.run.record.model, network_of(made.run).backbone, thin)
    if sparse:
        spec = as_sparse(thin, spec, sparse_layers(thin)[0])
    pruned = with_backbone(network, thin)
    metrics = {**made.job.measure(pruned), **size_of(pruned)}
    return Run.write(
        out, replace(record, model=spec, parent={"start": before.identity}, metrics=metrics), thin.state_dict()
    )


def _distill_step(made: _Pruning, pruned: Run, record: RunRecord, out: Path) -> Run:
    """Distill the network of a step, or return it if that is done."""
    resume = made.config.resume and (out / RECORD).is_file()
    own = replace(record, model=pruned.record.model)
    finished = prepare_out(out, own, resume=resume, overwrite=False)
    return finished if finished is not None else made.job.after_pruning(pruned, out, resume=resume).train(own)
