"""Files and folders of this machine that a command on the board works on, by the hashes of their content."""

from __future__ import annotations

import getpass
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krl_runtime.bundle import MANIFEST, Bundle
from krl_runtime.bundle.names import SIGNATURE
from krl_runtime.errors import DataError
from krl_runtime.files import sha256_bytes, sha256_file
from krl_runtime.images.lists import is_list, listed_files
from krl_runtime.progress import progress

__all__ = ["Input", "list_of_images", "read_input"]

_ID_LENGTH = 16  # hexadecimal digits, as many as name one of all paths of all desks of a board


@dataclass(frozen=True)
class Input:
    """A file or folder to have on the board.

    Attributes:
        path: The file or folder, without links; a list of images as it was given.
        folder: Whether it is a folder on the board, as a list of images is, with those beside it.
        bundle: Whether it is a bundle.
        files: SHA-256 by the name in the folder (``""`` for a file itself).
        sizes: Size in bytes by SHA-256.
        sources: A file with these bytes, by SHA-256.
    """

    path: Path
    folder: bool
    bundle: bool
    files: Mapping[str, str]
    sizes: Mapping[str, int]
    sources: Mapping[str, Path]

    @property
    def name(self) -> str:
        """Its name on the board."""
        return self.path.name or "root"

    @property
    def id(self) -> str:
        """The name of its place on the board: the same for the same path on this machine."""
        return sha256_bytes("\n".join([_desk(), os.fspath(self.path)]).encode(errors="surrogateescape"))[:_ID_LENGTH]

    def to_dict(self) -> dict[str, Any]:
        """Return the layout for the board, as plain JSON types."""
        changing = [MANIFEST, SIGNATURE] if self.bundle else [] if self.folder else [""]
        return {"id": self.id, "name": self.name, "folder": self.folder, "watched": changing, "files": dict(self.files)}


def _desk() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user without a name, as in containers
        user = ""
    return f"{user}@{platform.node()}"


def list_of_images(path: Path) -> tuple[Path, ...] | None:
    """Return the images of a list; ``None`` for any other file, and for one that the command is to refuse."""
    try:
        return listed_files(path) if is_list(path) else None
    except DataError:
        return None


def read_input(path: Path) -> Input:
    """Return a file, a folder, a list with its images, or a bundle with the hashes that its manifest has.

    Raises:
        BundleError: The bundle is damaged.
        DataError: A file cannot be read.
    """
    real, listed = path.resolve(), list_of_images(path)
    try:
        if listed is not None:
            own = Path(os.path.normpath(path.absolute()))  # its images lie beside it, not beside what it may link to
            every = [own, *listed]
            named = [(file.relative_to(own.parent).as_posix(), file) for file in every]
            return _folder(own, named, path.name)
        if real.is_file():
            digest = sha256_file(real)
            return Input(real, False, False, {"": digest}, {digest: real.stat().st_size}, {digest: real})
        if (real / MANIFEST).is_file():
            return _bundle(real)
        return _folder(real, list(_walk(real)), path.name)
    except OSError as error:
        raise DataError(f"{path} cannot be copied to the board: {error}") from error


def _folder(path: Path, named: Sequence[tuple[str, Path]], shown: str) -> Input:
    """Return a folder of files by their names in it."""
    files, sizes, sources = {}, {}, {}
    for name, file in progress(named, f"reading {shown}"):
        digest = sha256_file(file)
        files[name], sizes[digest], sources[digest] = digest, file.stat().st_size, file
    return Input(path, True, False, files, sizes, sources)


def _bundle(path: Path) -> Input:
    """Return a bundle: its manifest's files alone, by the hashes that the manifest has."""
    bundle = Bundle.open(path)
    files = {name: entry.sha256 for name, entry in bundle.manifest.files.items()}
    sizes = {entry.sha256: entry.size for entry in bundle.manifest.files.values()}
    sources = {entry.sha256: path / name for name, entry in bundle.manifest.files.items()}
    for name in (MANIFEST, SIGNATURE):
        file = path / name
        if file.is_file():
            files[name] = sha256_file(file)
            sizes[files[name]], sources[files[name]] = file.stat().st_size, file
    return Input(path, True, True, files, sizes, sources)


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files below a folder, those behind links as well, in the order of their names."""
    seen: set[str] = set()
    for where, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        folders[:] = sorted(folders) if real not in seen else []
        if real in seen:  # a link to a folder above
            continue
        seen.add(real)
        for name in sorted(names):
            file = Path(where, name)
            if file.is_file():
                yield file.relative_to(folder).as_posix(), file
