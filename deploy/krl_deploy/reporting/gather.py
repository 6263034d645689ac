"""From a bundle or a folder to all that krl's commands left there: bundles, runs, profiles and JSON results."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from krl_runtime.bundle import Bundle
from krl_runtime.bundle.names import MANIFEST
from krl_runtime.bundle.sidecar import read_evaluations
from krl_runtime.device.profiles import Profile
from krl_runtime.errors import DataError, KrlError, UsageError
from krl_runtime.progress import progress

from .blocks import Notes

__all__ = ["Document", "Material", "RunFile", "gather"]

_DEPTH = 4  # folders below the given one: OUT/STUDY/METHOD/SEED is the deepest that krl writes
_MOST_FILES = 20_000  # entries that are looked at: a folder of images was given where a folder of results was meant
_MOST_BYTES = 64 << 20  # of one JSON file: the confusion matrices of 1,000 classes on ten backends have 30 MB
_MOST_BUNDLES = 32  # each has sections of its own, and no more than that is read by a person
_RUN = "run.json"
_RUN_KIND = "krl-run"
_PROFILE_KIND = "krl latency profile"

Values: TypeAlias = Mapping[str, Any]

_KINDS: Mapping[str, frozenset[str]] = {
    "compare": frozenset({"bundle", "a", "b", "outputs"}),
    "bench": frozenset({"bundle", "backend", "variant", "latency_ms", "iterations"}),
    "krl-train evaluate": frozenset({"run", "data", "trained_on"}),
    "evaluate": frozenset({"bundle", "manifest", "rows", "reference"}),
    "check": frozenset({"model", "counts", "target", "files"}),
    "inspect-engine": frozenset({"model", "engines"}),
}
"""For each command whose ``--json`` is read, the keys that tell its result from all others."""


@dataclass(frozen=True)
class Document:
    """A result that a command wrote with ``--json``.

    Attributes:
        kind: The command, as ``"compare"``.
        path: The file.
        values: Its content.
        board: Name of the board that it is from; empty for this machine.
    """

    kind: str
    path: Path
    values: Values
    board: str = ""

    @property
    def subject(self) -> str:
        """Return the name of the bundle or file that it is about; of a run its path, since many have one name."""
        if "run" in self.values:
            return str(self.values["run"])
        return Path(str(self.values.get("bundle", self.values.get("model", "")))).name


@dataclass(frozen=True)
class RunFile:
    """The record of a run, read without torch.

    Attributes:
        path: The run's folder.
        values: The content of ``run.json``.
    """

    path: Path
    values: Values

    @property
    def sha256(self) -> str:
        """Return the hash of its weights; empty while it is not finished."""
        return str(self.values.get("weights_sha256", ""))

    def is_named(self, path: str) -> bool:
        """Return whether a path is that of the run, or on another machine was that of a run of its name."""
        given = Path(path)
        return given.resolve() == self.path.resolve() or (not given.exists() and given.name == self.path.name)

    @property
    def parents(self) -> list[str]:
        """Return the hashes of the weights of the runs that it comes from: its teachers, then the run it started from.

        The record of a distillation names both; of another run the parent is the record itself.
        """
        parent = self.values.get("parent") or {}
        named = [*parent.get("teachers", ()), *([parent["start"]] if "start" in parent else []), parent]
        return [str(each["weights_sha256"]) for each in named if each.get("weights_sha256")]


_Part = TypeVar("_Part")
Show: TypeAlias = "Callable[[Document, Bundle, Material], Iterable[_Part]]"
"""From a result about a bundle to the parts of the page that show it."""


@dataclass
class Material:
    """All that was found.

    Attributes:
        name: Name of the bundle or folder.
        root: The folder that was read; the page names files relative to it.
        bundles: Those of the folder, or the one that was given.
        relatives: Bundles of teachers, that predictions are compared with.
        runs: Finished and unfinished runs.
        documents: Results of commands.
        profiles: Latency profiles with their files.
        notes: What could not be used.
    """

    name: str
    root: Path
    bundles: list[Bundle] = field(default_factory=list)
    relatives: list[Bundle] = field(default_factory=list)
    runs: list[RunFile] = field(default_factory=list)
    documents: list[Document] = field(default_factory=list)
    profiles: list[tuple[Path, Profile]] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)

    def about(self, bundle: Bundle, kind: str) -> list[Document]:
        """Return the results of a command about a bundle."""
        return [item for item in self.documents if item.kind == kind and item.subject == bundle.path.name]

    def shown(self, path: object) -> str:
        """Return a path as the page names it: relative to the folder, and without the folders of this machine."""
        given = Path(str(path))
        try:
            return str(given.resolve().relative_to(self.root)) if given.exists() else given.name
        except (OSError, ValueError):
            return given.name

    def attempt(self, item: Document, show: Show[_Part], bundle: Bundle) -> list[_Part]:
        """Return the parts of a result; a result that another program changed is noted with its fault."""
        return self.guarded(lambda: show(item, bundle, self), item.path, f"a result of {item.kind}")

    def guarded(self, make: Callable[[], Iterable[_Part]], file: Path, form: str) -> list[_Part]:
        """Return parts of the page; if the values of a file have not the form that krl writes, that is noted instead.

        Args:
            make: Yields the parts.
            file: The file that they are from.
            form: Form of the file, in words.
        """
        try:
            return list(make())
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            fault = f"it has not the form of {form} ({type(error).__name__}: {error}); write it again"
            self.notes.skipped.append((str(file), fault))
            return []

    def teacher_of(self, bundle: Bundle) -> Bundle | None:
        """Return the bundle of the teacher of a bundle's network, if there is one."""
        source = bundle.manifest.source
        own = [run for run in self.runs if run.sha256 and run.sha256 == source.get("weights_sha256")]
        parents = [source.get("parent_sha256"), *(sha256 for run in own for sha256 in run.parents)]
        by_hash = {each.manifest.source.get("weights_sha256"): each for each in [*self.bundles, *self.relatives]}
        return next((by_hash[sha256] for sha256 in parents if sha256 and sha256 in by_hash), None)


def gather(path: Path) -> Material:
    """Read what a bundle or a folder has, and what lies beside a bundle.

    Args:
        path: A bundle, or a folder.

    Raises:
        UsageError: There is no such folder, or it has nothing that krl wrote.
        BundleError: A bundle was given and is damaged.
    """
    if not path.is_dir():
        raise UsageError(f"{path} is no folder; accepted: a bundle NAME.krl, or a folder with runs and bundles")
    given = Bundle.open(path) if (path / MANIFEST).is_file() else None
    folder = path if given is None else path.resolve().parent
    found = Material(path.resolve().name, folder.resolve())
    for item in progress(list(_walk(folder, found.notes)), "reading results"):
        _add(found, item)
    if given is not None:
        _restrict(found, given)
    else:
        teachers = [bundle for bundle in map(found.teacher_of, found.bundles) if bundle is not None]
        found.relatives = [bundle for bundle in found.bundles if bundle in teachers]
        found.bundles = [bundle for bundle in found.bundles if bundle not in teachers]
    if not found.bundles and not found.runs:
        raise UsageError(f"folder {path} has neither a bundle NAME.krl nor a run; give the folder that has them")
    for bundle in [*found.bundles, *found.relatives]:
        found.documents += _evaluations(bundle)
    return found


def _walk(folder: Path, notes: Notes) -> Iterator[Path]:
    """Yield bundles, the records of runs and JSON files below a folder, in the order of their names."""
    left = _MOST_FILES
    for root, folders, files in os.walk(folder):
        here = Path(root)
        bundles = [name for name in sorted(folders) if (here / name / MANIFEST).is_file()]
        yield from (here / name for name in bundles)
        yield from (here / name for name in sorted(files) if name.endswith(".json"))
        left -= len(folders) + len(files)
        if left < 0:
            notes.skipped.append((str(here), f"the folder has more than {_MOST_FILES} files, and the rest is not read"))
            return
        deep = len(here.relative_to(folder).parts) >= _DEPTH
        kept = [] if deep else [name for name in folders if name not in bundles and not _is_internal(name)]
        folders[:] = sorted(kept)


def _is_internal(name: str) -> bool:
    return name.startswith(".") or name == "checkpoint" or name.endswith((".krl.device", ".krl.boards"))


def _add(found: Material, path: Path) -> None:
    """Read one bundle, run or file; a faulty one is noted with its fault."""
    try:
        if path.is_dir():
            if len(found.bundles) == _MOST_BUNDLES:
                raise DataError(f"{_MOST_BUNDLES} bundles are on the page already; give this one alone")
            found.bundles.append(Bundle.open(path))
            return
        values = _read(path)
        if values.get("kind") == _RUN_KIND and path.name == _RUN:
            found.runs.append(_run(path.parent, values))
        elif values.get("kind") == _PROFILE_KIND:
            found.profiles.append((path, Profile.read(path)))
        else:
            kind = next((name for name, keys in _KINDS.items() if keys <= set(values)), None)
            if kind is not None:
                found.documents.append(Document(kind, path, values))
    except KrlError as error:
        found.notes.skipped.append((str(path), str(error)))


def _run(folder: Path, values: Values) -> RunFile:
    """Return the record of a run whose parts have the types that the page needs.

    Raises:
        DataError: One has another type.
    """
    run = RunFile(folder, values)
    try:
        parts = {name: values.get(name) or {} for name in ("model", "metrics", "data")}
        wrong = [name for name, part in parts.items() if not isinstance(part, Mapping)]
        if wrong or not isinstance(run.parents, list):
            raise TypeError(f"{', '.join(wrong)} is no object")
    except (AttributeError, TypeError, KeyError) as error:
        raise DataError(f"it is not the record of a krl run: {error}") from error
    return run


def _read(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file; nothing of a file that has something else.

    Raises:
        DataError: It is larger than any result, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise DataError(f"it has more than {_MOST_BYTES >> 20} MiB, which no result of krl has")
        values = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"it cannot be read: {error}; write it again") from error
    return values if isinstance(values, dict) else {}


def _restrict(found: Material, given: Bundle) -> None:
    """Keep one bundle, its ancestors, and what is about them."""
    same = given.path.resolve()
    others = [each for each in found.bundles if each.path.resolve() != same]
    found.bundles = others
    by_hash = {run.sha256: run for run in found.runs if run.sha256}
    source = given.manifest.source
    wanted = [str(source.get(key)) for key in ("weights_sha256", "parent_sha256") if source.get(key)]
    ancestors: list[str] = []
    while wanted:
        sha256 = wanted.pop()
        if sha256 not in ancestors:
            ancestors.append(sha256)
            wanted += by_hash[sha256].parents if sha256 in by_hash else []
    found.runs = [run for run in found.runs if run.sha256 in ancestors]
    own = source.get("weights_sha256")
    found.relatives = [
        each
        for each in others
        if each.manifest.source.get("weights_sha256") in ancestors and each.manifest.source.get("weights_sha256") != own
    ]
    found.bundles = [given]
    names = (given.path.name, *given.manifest.files)
    found.documents = [item for item in found.documents if "run" in item.values or item.subject in names]


def _evaluations(bundle: Bundle) -> Iterator[Document]:
    """Yield the evaluations of a bundle on this device and on boards."""
    boards = bundle.path.with_name(f"{bundle.path.name}.boards")
    places = {"": bundle.path}
    if boards.is_dir():
        places |= {board.name: board / bundle.path.name for board in sorted(boards.iterdir()) if board.is_dir()}
    for board, path in places.items():
        for values in read_evaluations(path).values():
            file = path.with_name(f"{path.name}.device") / "evaluations.json"
            yield Document("evaluate", file, values, board)
