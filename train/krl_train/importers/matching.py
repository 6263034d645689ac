"""The weights of one network, found among the entries of a checkpoint by the network's own names and shapes.

Names of nested entries are joined with dots, so an entry and a prefix are the same: ``state_dict.model.conv1.weight``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Size, Tensor, nn

from krl_runtime.errors import ModelError
from krl_train.models import load_weights
from krl_train.run import check_finite

__all__ = ["TOP", "Match", "Rename", "find_weights", "match_weights"]

_log = logging.getLogger("krl")

Rename: TypeAlias = Callable[[str], str]
"""From a third-party name of a tensor to a network's."""

TOP = "."
"""The entry of weights whose names have no prefix."""

# Modules that wrap another one, or a part of it, and add their attribute to the names: DataParallel and AveragedModel,
# torch.compile, FSDP, activation checkpointing, Lightning's strategies.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
# Counters that change no output: of batch normalization, of AveragedModel, and of the profiler thop.
_COUNTERS = frozenset({"num_batches_tracked", "n_averaged", "total_ops", "total_params"})
_AVERAGED = frozenset({"ema", "averaged", "average", "avg", "swa", "shadow", "polyak"})
_TEACHER = frozenset({"teacher", "teachers"})
_OPTIMIZER = frozenset({"optimizer", "optimizers", "optim", "scheduler", "scaler"})
# What stands beside a network's weights and is no layer of it.
_BESIDE = _AVERAGED | _TEACHER | _OPTIMIZER | {"student", "discriminator", "criterion", "loss", "metric", "metrics"}
_SHOWN = 5  # names in a message; the first ones show the kind


@dataclass(frozen=True)
class Match:
    """Tensors of a file that have a network's names behind one prefix.

    Attributes:
        entry: The prefix, ``TOP`` for none.
        shapes: The network's.
        tensors: By the network's names, of whatever shape.
        unknown: Names behind the prefix that the network does not have.
    """

    entry: str
    shapes: Mapping[str, Size]
    tensors: Mapping[str, Tensor]
    unknown: Sequence[str]

    @cached_property
    def missing(self) -> list[str]:
        """Names of the network that the file does not have."""
        return sorted(set(self.shapes) - set(self.tensors))

    @cached_property
    def misshapen(self) -> list[str]:
        """Sentences on tensors of another shape."""
        return [
            f"{name} is {list(value.shape)}, expected {list(self.shapes[name])}"
            for name, value in self.tensors.items()
            if value.shape != self.shapes[name]
        ]

    @property
    def complete(self) -> bool:
        """Whether the network can be filled with it, and nothing is left over."""
        return not (self.missing or self.misshapen or self.unknown)

    @property
    def rank(self) -> int:
        """Order of preference: averaged weights, then plain ones, then a teacher's."""
        words = _words(self.entry)
        return 2 if words & _TEACHER else 0 if words & _AVERAGED else 1

    def same(self, other: Match) -> bool:
        """Whether another match has the same values."""
        return all(torch.equal(value, other.tensors[name]) for name, value in self.tensors.items())

    def problems(self) -> str:
        """Return why the network cannot be filled with it."""
        kinds = (
            ("missing", self.missing),
            ("not known to the network", self.unknown),
            ("of another shape", self.misshapen),
        )
        return "; ".join(f"{len(items)} {kind}: {', '.join(items[:_SHOWN])}" for kind, items in kinds if items)


def find_weights(
    tensors: Mapping[str, Tensor], model: nn.Module, *, key: str | None = None, rename: Rename | None = None
) -> tuple[Match, list[Match]]:
    """Find a network's weights in a file.

    Args:
        tensors: All tensors of the file by their dotted names.
        model: The network; it is not changed.
        key: Entry that is asked for, or a part of its name between dots.
        rename: From a third-party name to the network's, for names that the network does not have itself.

    Returns:
        The best match, and others that are complete and have other values; the latter is empty where the former is not
        complete.
    """
    shapes = {name: value.shape for name, value in model.state_dict().items() if not _is_counter(name)}
    matches = [match for match in _matches(tensors, shapes, rename) if key is None or _named(match.entry, key)]
    complete = sorted((match for match in matches if match.complete), key=lambda match: match.rank)
    if complete:
        best, *rest = complete
        return best, [match for match in rest if not match.same(best)]
    nothing = Match(key or TOP, shapes, {}, () if key else sorted(name for name in tensors if not _is_counter(name)))

    def fitting(match: Match) -> tuple[int, int]:
        return len(match.tensors) - len(match.misshapen), -len(match.unknown)

    return max(matches, key=fitting, default=nothing), []


def match_weights(
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    where: str,
    *,
    key: str | None = None,
    rename: Rename | None = None,
) -> str:
    """Load third-party tensors into a network.

    Args:
        tensors: All tensors of a file by their dotted names.
        model: The network.
        where: The file, for messages.
        key: Entry that is asked for; see ``find_weights``.
        rename: See ``find_weights``.

    Returns:
        The entry that was taken.

    Raises:
        ModelError: Names or shapes do not match, or a value is not a finite number; the message lists which.
    """
    best, others = find_weights(tensors, model, key=key, rename=rename)
    if key is not None and not best.tensors:
        found, others = find_weights(tensors, model, rename=rename)
        fitting = [match.entry for match in (found, *others) if match.complete]
        raise ModelError(
            f"{where}: --weights-key {key} names no weights of the network; entries that fit: "
            f"{', '.join(fitting) or 'none'}"
        )
    if not best.complete:
        entry = "" if best.entry == TOP else f" (entry {best.entry})"
        raise ModelError(
            f"{where}{entry} does not fit the network: {best.problems()}. Check --model, the number of classes in "
            "--data, and --channels"
        )
    if others:
        _log.warning(
            "%s: several sets of weights fit; taken is %s, not %s (averaged weights before plain ones, a teacher's "
            "last, else the first in the file); choose with --weights-key",
            where,
            best.entry,
            ", ".join(match.entry for match in others),
        )
    check_finite(best.tensors, where)
    load_weights(model, best.tensors, strict=False)
    return best.entry


def _matches(tensors: Mapping[str, Tensor], shapes: Mapping[str, Size], rename: Rename | None) -> Iterator[Match]:
    """Yield what each prefix has of the network, in the order of the file."""
    groups: dict[str, dict[str, str]] = {}
    wrappers = _WRAPPERS - {part for name in shapes for part in name.split(".")}
    for name in tensors:
        parts = name.split(".")
        for start, part in enumerate(parts):
            if part in wrappers:
                continue
            rest = ".".join(item for item in parts[start:] if item not in wrappers)
            group = groups.setdefault(".".join(parts[:start]), {})
            if rest in shapes:
                group[rest] = name
            elif rename is not None and (known := rename(rest)) in shapes:
                group.setdefault(known, name)
    groups = {prefix: group for prefix, group in groups.items() if group and not _words(prefix) & _OPTIMIZER}
    whole = {f"{prefix}." for prefix, group in groups.items() if prefix and len(group) == len(shapes)}
    for prefix, group in groups.items():
        begin = f"{prefix}." if prefix else ""
        used = set(group.values())
        others = tuple(item for item in whole if item.startswith(begin) and item != begin)
        unknown = [
            name.removeprefix(begin)
            for name in tensors
            if name.startswith(begin) and name not in used and not _is_beside(name, begin, others)
        ]
        yield Match(prefix or TOP, shapes, {known: tensors[name] for known, name in group.items()}, unknown)


def _is_beside(name: str, begin: str, others: tuple[str, ...]) -> bool:
    first = name.removeprefix(begin).partition(".")[0]
    return _is_counter(name) or name.startswith(others) or bool(_words(first) & _BESIDE)


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] in _COUNTERS


def _words(name: str) -> set[str]:
    """Return the words of a name, in lower case: of ``netG_ema.modelEMA`` ``net``, ``g``, ``ema`` and ``model``."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def _named(entry: str, key: str) -> bool:
    return entry == key or f".{key}." in f".{entry}."
