"""Knowledge that guides a generator: labels, attributes, text, graphs of facts, and frozen classifiers.

A generator's training reads ``read_conditions(config.knowledge, source, data, seed=…)``, makes the encoder of
``conditions.settings`` with ``build_conditioner``, starts it with ``conditions.initialise(conditioner)``, and in each
step takes ``conditions.draw(batch.indices)``. A ``Guide`` adds its loss to the generator's.
"""

from __future__ import annotations

from krl_train.metrics.guide import Guide, fit_pictures
from krl_train.models.conditioners import Conditioner, build_conditioner

from .conditions import Conditions, read_conditions

__all__ = ["Conditioner", "Conditions", "Guide", "build_conditioner", "fit_pictures", "read_conditions"]
