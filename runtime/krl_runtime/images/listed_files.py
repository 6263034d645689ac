"""Files that a list names by their paths: below the list's folder, and nowhere else."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path, PureWindowsPath

__all__ = ["FilesBelow", "plain_path"]


def plain_path(value: str) -> str:
    r"""Return a path with slashes alone, and without ``.`` and ``..`` inside it.

    Example:
        >>> plain_path(r".\img\..\a.png")
        'a.png'
    """
    return posixpath.normpath(value.replace("\\", "/"))


class FilesBelow:
    """The files below a folder; neither paths nor links lead out of it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._real = Path(os.path.normpath(folder.absolute())), folder.resolve()
        self._inside: dict[Path, bool] = {}  # folders, and whether they are really in this one: resolving takes long

    def find(self, value: str) -> Path | None:
        """Return the file of a path, relative to the folder or absolute; ``None`` where it is not there.

        Raises:
            ValueError: It lies outside the folder, also through a symbolic link.
        """
        path = self._folder / plain_path(value)
        other_drive = PureWindowsPath(value).drive and not Path(value).is_absolute()
        if other_drive or ".." in path.parts or not path.is_relative_to(self._folder):
            raise ValueError(self._outside(value))
        try:
            if not path.is_file():
                return None
            leaves = not self._is_inside(path.parent)
            if leaves or (path.is_symlink() and not path.resolve().is_relative_to(self._real)):
                raise ValueError(self._outside(value))
        except (OSError, RuntimeError):  # a link to itself, a name that is too long
            return None
        return path

    def _is_inside(self, folder: Path) -> bool:
        if folder not in self._inside:
            self._inside[folder] = folder.resolve().is_relative_to(self._real)
        return self._inside[folder]

    def _outside(self, value: str) -> str:
        return f"{value} lies outside the list's folder; accepted: files below {self._folder}"
