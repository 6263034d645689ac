"""Kinds of options that several commands have."""

from __future__ import annotations

from typing import Annotated

import tyro

from krl_runtime.cli.options import Only
from krl_train.custom import Custom

__all__ = ["CLASSIFIER", "EMBEDDER", "GENERATOR", "Repeated", "RepeatedCustom"]

Repeated = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
RepeatedCustom = Annotated[tuple[Custom, ...], tyro.conf.UseAppendAction]

CLASSIFIER, EMBEDDER, GENERATOR = Only("classification"), Only("embedding"), Only("gan")
