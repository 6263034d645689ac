"""The parts of a page: sections of text, tables, plots, images and a family tree. The template shows nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

__all__ = ["Absent", "Block", "Gallery", "Node", "Notes", "Plot", "Section", "Shown", "Source", "Table", "Text", "Tree"]

_NUMBER = re.compile(r"-?[\d.,]+(e-?\d+)?( ?%)?( ± [\d.]+)?")


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind = "text"


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: What it shows.
        columns: Titles of the columns.
        rows: The cells of each row; the first one names the row.
        source: Command that measured it; empty where there is none.
        folded: Whether it is shown on request, since a plot above it shows the same. On paper it is always shown.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    source: str = ""
    folded: bool = False
    kind = "table"

    @property
    def numeric(self) -> list[bool]:
        """Return for each column whether its cells are numbers, which are aligned to the right."""
        cells = [[row[index] for row in self.rows if row[index]] for index in range(len(self.columns))]
        return [bool(column) and all(map(_NUMBER.fullmatch, column)) for column in cells]


@dataclass(frozen=True)
class Plot:
    """A plot of plotly, as plain JSON types.

    Attributes:
        label: The plot in words, for people who do not see it.
        data: Its traces.
        layout: Its layout, without colors of text and background, which follow the color scheme.
        height: Pixels.
        half: Whether two of them stand side by side where there is room.
    """

    label: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    height: int
    half: bool = False
    kind = "plot"


@dataclass(frozen=True)
class Shown:
    """An image, or only words, in a gallery.

    Attributes:
        text: Words below it.
        image: Data URI; empty where there is none.
        alt: The image in words.
        wrong: Whether the prediction is wrong, or another one than that of the reference.
    """

    text: str
    image: str = ""
    alt: str = ""
    wrong: bool = False


@dataclass(frozen=True)
class Gallery:
    """Images side by side, a row for each sample.

    Attributes:
        caption: What it shows.
        columns: Titles of the columns.
        rows: Cells.
        source: Command and device that made it.
        large: Whether each image is shown in the width of its column.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Shown]]
    source: str = ""
    large: bool = False
    kind = "gallery"


@dataclass(frozen=True)
class Node:
    """A member of the family tree.

    Attributes:
        role: As ``"teacher"``, ``"student"``, ``"bundle"`` or ``"variant"``.
        name: Its name.
        facts: Its figures, in words.
        children: What was made from it.
    """

    role: str
    name: str
    facts: Sequence[str]
    children: tuple[Node, ...] = ()


@dataclass(frozen=True)
class Tree:
    """A family tree."""

    roots: Sequence[Node]
    kind = "tree"


Block: TypeAlias = "Text | Table | Plot | Gallery | Tree"


@dataclass(frozen=True)
class Section:
    """A section of the page; one without blocks is left out."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, order=True)
class Source:
    """Where numbers were measured.

    Attributes:
        what: What they say.
        command: The command that measured them.
        where: The machine.
        file: The file that has them.
    """

    what: str
    command: str
    where: str
    file: str


@dataclass(frozen=True, order=True)
class Absent:
    """Something that the page does not show, since it was not measured.

    Attributes:
        what: The missing part.
        command: The command that makes it.
    """

    what: str
    command: str


@dataclass
class Notes:
    """Sources of numbers, and missing measurements, that the sections collect for the last ones.

    Attributes:
        sources: Where numbers come from.
        absent: Missing measurements.
        skipped: Files that could not be used, and why.
    """

    sources: list[Source] = field(default_factory=list)
    absent: list[Absent] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def measured(self, what: str, command: str, where: str, file: object) -> None:
        """Note where numbers come from."""
        source = Source(what, command, where, str(file))
        if source not in self.sources:
            self.sources.append(source)

    def missing(self, what: str, command: str) -> None:
        """Note what is absent, and the command that makes it."""
        if Absent(what, command) not in self.absent:
            self.absent.append(Absent(what, command))
