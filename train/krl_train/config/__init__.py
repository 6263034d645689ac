"""Configurations: each is at once the Python API, the command line, the YAML file and what ``run.json`` stores.

Nothing here imports torch, so that ``--help`` works without it.
"""

from .augmentation import AugmentConfig
from .base import (
    DataConfig,
    EvaluateConfig,
    FitConfig,
    GeneratorScoreConfig,
    ImportConfig,
    InputConfig,
    ModelsConfig,
    OutOption,
    RecipesConfig,
    TrainingConfig,
    UnpackConfig,
)
from .checks import DATA_SETS, check_data, check_run, refuse_shots
from .embedding import LARGEST_MARGIN, PROXY_LOSSES, EmbeddingConfig, EmbeddingLoss
from .explaining import ExplainConfig
from .further import CATEGORY, FurtherInputsConfig
from .joint import JointConfig
from .model_names import check_model, model_names, torchvision_classifiers
from .names import DISCRIMINATOR, RECORD, TRAINING_RECIPES, WEIGHTS, recorded_model, recorded_task
from .optimization import LoopConfig, OptimConfig
from .plain import to_plain
from .plan import Plan, PlannedLoop, PlannedOptim, log_plan, plan_loop, plan_optim, steps_per_epoch, warmup_steps
from .tasks import (
    ConditioningConfig,
    DiscriminatorStartConfig,
    GenerationConfig,
    ImportedRestorerConfig,
    RestorationConfig,
    StyleConfig,
    SyntheticConfig,
    TranslationConfig,
)
from .transfer import TransferConfig

__all__ = [
    "CATEGORY",
    "DATA_SETS",
    "DISCRIMINATOR",
    "LARGEST_MARGIN",
    "PROXY_LOSSES",
    "RECORD",
    "TRAINING_RECIPES",
    "WEIGHTS",
    "AugmentConfig",
    "ConditioningConfig",
    "DataConfig",
    "DiscriminatorStartConfig",
    "EmbeddingConfig",
    "EmbeddingLoss",
    "EvaluateConfig",
    "ExplainConfig",
    "FitConfig",
    "FurtherInputsConfig",
    "GenerationConfig",
    "GeneratorScoreConfig",
    "ImportConfig",
    "ImportedRestorerConfig",
    "InputConfig",
    "JointConfig",
    "LoopConfig",
    "ModelsConfig",
    "OptimConfig",
    "OutOption",
    "Plan",
    "PlannedLoop",
    "PlannedOptim",
    "RecipesConfig",
    "RestorationConfig",
    "StyleConfig",
    "SyntheticConfig",
    "TrainingConfig",
    "TransferConfig",
    "TranslationConfig",
    "UnpackConfig",
    "check_data",
    "check_model",
    "check_run",
    "log_plan",
    "model_names",
    "plan_loop",
    "plan_optim",
    "recorded_model",
    "recorded_task",
    "refuse_shots",
    "steps_per_epoch",
    "to_plain",
    "torchvision_classifiers",
    "warmup_steps",
]
