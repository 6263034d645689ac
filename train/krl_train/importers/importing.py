"""krl-train import: third-party weights become a run."""

from __future__ import annotations

from krl_runtime.errors import UsageError
from krl_runtime.files import sha256_file
from krl_train.config import ImportConfig, ImportedRestorerConfig, to_plain
from krl_train.custom import sources_of
from krl_train.models.generators import is_generator
from krl_train.models.restorers import is_restorer
from krl_train.run import Run, RunRecord
from krl_train.training.folder import prepare_out

from .classification import classifier_target
from .generation import generator_target
from .restoration import restorer_target
from .style import style_target
from .target import Target

__all__ = ["import_weights"]


def import_weights(config: ImportConfig) -> Run:
    """Turn third-party weights into a run, and measure them if there is data.

    Raises:
        KrlError: The weights do not fit the network, or the data cannot be used.
        RunError: There is a run and ``--overwrite`` is not given.
    """
    target = _target(config)
    measured = target.measure()
    record = RunRecord(
        task=target.task,
        model=target.spec,
        preprocessing=target.network.preprocessing,
        labels=target.labels,
        output_kind=target.output_kind,
        command="krl-train import",
        configuration=to_plain(config),
        seed=0,
        data=measured.data,
        parent={"path": str(config.weights.resolve()), "sha256": sha256_file(config.weights), "entry": target.entry},
        metrics=measured.metrics,
        sources=sources_of([("model", config.model), ("data", config.data.data)]),
    )
    prepare_out(config.out, record, resume=False, overwrite=config.overwrite)
    return Run.write(config.out, record, target.network.backbone.state_dict())


def _target(config: ImportConfig) -> Target:
    restorer = is_restorer(config.model) and not config.model.startswith("style-")
    if not restorer and config.restorer != ImportedRestorerConfig():
        raise UsageError(f"--restore, --scale, --color and their like are for restorers; {config.model} is none")
    if is_generator(config.model):
        return generator_target(config)
    if config.model.startswith("style-"):
        return style_target(config)
    return restorer_target(config) if restorer else classifier_target(config)
