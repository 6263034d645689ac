"""Conditions of generators: labels, attributes, text, and graphs of facts.

A generator's training reads ``read_conditions(config.conditioning, source, data, seed=…)``, makes the encoder of
``conditions.settings`` with ``krl_train.models.conditioners.build_conditioner``, starts it with
``conditions.initialize(conditioner)``, and in each step takes ``conditions.draw(batch.indices)``.
"""

from __future__ import annotations

from .conditions import Conditions, read_conditions

__all__ = ["Conditions", "read_conditions"]
