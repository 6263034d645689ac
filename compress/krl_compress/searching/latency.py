"""``krl-compress prune --latency``: the share of the channels with which a network is as fast as asked."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace
from pathlib import Path

from krl_compress.config import MeasuringConfig, PruneConfig
from krl_compress.pruning.networks import network_of
from krl_runtime.errors import RunError, UsageError
from krl_train.run import RECORD, Run, RunRecord

from .budgets import Budget, parse_amount, show_amount
from .candidates import images_folder
from .costs import Cost, Meter, Precision, meter_of
from .space import Family, Student
from .widths import widest

__all__ = ["with_channels"]

_log = logging.getLogger("krl")


def with_channels(config: PruneConfig, meter: Meter | None = None) -> PruneConfig:
    """Return the options of a pruning with ``keep_channels`` in place of ``latency``.

    Args:
        config: The options. A pruning that goes on keeps what was measured at its start.
        meter: Tells what a network costs; measures bundles by default.

    Raises:
        UsageError: Even the thinnest network is slower; the message has its latency.
        KrlError: The run, the data or the backend cannot be used.
    """
    option = f"--latency {config.latency}"
    budget = Budget("latency", parse_amount("latency", str(config.latency), option))
    if config.resume and (config.out / RECORD).is_file():
        stored = RunRecord.read(config.out / RECORD).configuration.get("keep_channels")
        if stored is None:
            raise RunError(f"the run in {config.out} was not pruned with {option}; give another --out")
        return _with_share(config, stored)
    run = Run.open(config.run)
    precision = config.variant
    with tempfile.TemporaryDirectory() as folder:
        images = images_folder(config.data, run, Path(folder) / "images")
        meter = meter or meter_of(config.measuring, images, (precision,))
        known: dict[str, Cost | None] = {}

        def costs(student: Student, precision: Precision) -> Cost | None:
            if student.key not in known:
                run_ = student.write(Path(folder) / student.key)
                known[student.key] = meter(run_, precision, student.macs, student.parameters)
            return known[student.key]

        family = Family(run.path.name, run.record, network_of(run), multiple=config.multiple, trained=True)
        fit = widest(family, precision, [budget], costs)
    if fit is None:
        raise UsageError(f"{option}: run {run.path} cannot be had in {precision}; give another --variant")
    latency = show_amount("latency", fit.excess * budget.most)
    if not fit.meets:
        raise UsageError(
            f"{option} cannot be reached by run {run.path}: with {config.multiple} channels in each layer that can be "
            f"pruned it has {latency} in {precision}; give that or more, another --variant, or a smaller --multiple"
        )
    if fit.student.channels == 1:
        raise UsageError(f"run {run.path} has a latency of {latency} in {precision}: {option} needs no pruning")
    _log.info("%s: %.3g of the channels are kept; measured: %s in %s", option, fit.student.channels, latency, precision)
    return _with_share(config, fit.student.channels)


def _with_share(config: PruneConfig, share: float) -> PruneConfig:
    return replace(config, latency=None, keep_channels=share, variant="fp32", measuring=MeasuringConfig())
