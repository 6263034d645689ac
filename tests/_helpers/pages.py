"""A page as an independent reader has it: its tables, images and text, by the standard library's parser."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["ReadPage"]


class ReadPage(HTMLParser):
    """The tables of a page by their captions, and its images by their alternative texts."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.source = file.read_text("utf-8")
        self.tables: dict[str, list[list[str]]] = {}
        self.images: dict[str, np.ndarray] = {}
        self.headings: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self._rows: list[list[str]] = []
        self._caption, self._into = "", ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.attributes.append((tag, values))
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        elif tag == "h2":
            self.headings.append("")
        elif tag == "img":
            kind, _, data = str(values["src"]).partition(",")
            assert kind in ("data:image/png;base64", "data:image/jpeg;base64")
            self.images[str(values["alt"])] = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        if tag in ("caption", "td", "th", "h2"):
            self._into = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self._into:
            self._into = ""
            if tag in ("td", "th"):
                self._rows[-1][-1] = " ".join(self._rows[-1][-1].split())
        if tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        if self._into == "caption":
            self._caption += data
        elif self._into == "h2":
            self.headings[-1] += data
        elif self._into:
            self._rows[-1][-1] += data

    def table(self, beginning: str) -> list[dict[str, str]]:
        """Return the rows of the one table whose caption begins so, by the titles of its columns."""
        (rows,) = (rows for caption, rows in self.tables.items() if caption.startswith(beginning))
        return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]

    @property
    def plots(self) -> list[dict[str, Any]]:
        """Return the plots."""
        (found,) = re.findall(r'<script type="application/json" id="plots">(.*?)</script>', self.source, re.DOTALL)
        return json.loads(found)
