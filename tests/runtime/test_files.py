from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from krl_runtime.files import atomic_folder, config_folder, inside, sha256_bytes, sha256_file, write_atomic


def test_hashes(tmp_path: Path):
    data = b"krl" * 700_000  # more than one block
    (tmp_path / "file").write_bytes(data)
    assert sha256_file(tmp_path / "file") == sha256_bytes(data) == hashlib.sha256(data).hexdigest()
    assert sha256_bytes(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("name", ["a", "a/b.onnx", "a/../b", "./a", "engines/k.engine"])
def test_inside_accepts(tmp_path: Path, name: str):
    if ".." in name:
        with pytest.raises(ValueError, match="leaves its folder"):
            inside(tmp_path, name)
    else:
        assert inside(tmp_path, name).resolve().is_relative_to(tmp_path.resolve())


@pytest.mark.parametrize("name", ["..", "../x", "/etc/passwd", "a\\b", "C:x", "x\0y", "", "."])
def test_inside_refuses(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match="leaves its folder"):
        inside(tmp_path, name)


def test_inside_refuses_links_that_leave(tmp_path: Path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    (folder / "own").symlink_to(folder)
    assert inside(folder, "own/file") == folder / "own" / "file"
    with pytest.raises(ValueError, match="symbolic link"):
        inside(folder, "link/file")


def test_the_folder_of_settings(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/user")
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert config_folder() == Path.home() / ".config" / "krl"
    monkeypatch.setenv("XDG_CONFIG_HOME", "/settings")
    assert config_folder() == Path("/settings/krl")
    monkeypatch.setenv("KRL_CONFIG_DIR", "/own")
    assert config_folder() == Path("/own")


def test_write_atomic_replaces_and_leaves_nothing_else(tmp_path: Path):
    target = tmp_path / "new" / "file"
    write_atomic(target, b"one")
    write_atomic(target, b"two")
    assert target.read_bytes() == b"two"
    assert [path.name for path in target.parent.iterdir()] == ["file"]
    assert target.stat().st_mode & 0o777 == 0o644


def test_write_atomic_leaves_the_old_file_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def full(path: Path, data: bytes) -> int:
        path.open("wb").close()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(target, b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_atomic_folder_makes_and_replaces(tmp_path: Path):
    target = tmp_path / "deep" / "folder"
    for content in ("one", "two"):
        with atomic_folder(target, replace=True) as temporary:
            (temporary / "file").write_text(content)
        assert (target / "file").read_text() == content
    assert [path.name for path in target.parent.iterdir()] == ["folder"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_atomic_folder_refuses_what_is_there(tmp_path: Path):
    with pytest.raises(FileExistsError, match="exists already"), atomic_folder(tmp_path):
        pytest.fail("entered")


@pytest.mark.parametrize("failing", [1, 2])
def test_atomic_folder_keeps_the_old_one_when_a_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "file").write_text("old")
    calls = 0
    rename = Path.rename

    def rename_or_fail(self: Path, to: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", rename_or_fail)
    with pytest.raises(OSError, match="Input/output"), atomic_folder(target, replace=True) as temporary:
        (temporary / "file").write_text("new")
    assert (target / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_atomic_folder_drops_what_an_error_interrupts(tmp_path: Path):
    def fail(folder: Path) -> None:
        with atomic_folder(folder) as temporary:
            (temporary / "file").write_text("new")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002, 0o027, 0o000])
def test_permissions_are_what_the_umask_leaves(tmp_path: Path, umask: int):
    old = os.umask(umask)
    try:
        write_atomic(tmp_path / "file", b"x")
        write_atomic(tmp_path / "private", b"x", mode=0o600)
        with atomic_folder(tmp_path / "folder") as folder:
            (folder / "inside").write_bytes(b"x")
    finally:
        os.umask(old)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("file", "private", "folder", "folder/inside")]
    assert modes == [0o666 & ~umask, 0o600 & ~umask, 0o777 & ~umask, 0o666 & ~umask]


def test_long_names_are_written(tmp_path: Path):
    for name in ("a" * 255, "ü" * 127):
        write_atomic(tmp_path / name, b"x")
        assert [path.name for path in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()


def test_links_to_themselves_and_long_names_are_refused(tmp_path: Path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match="path 'loop' cannot be followed"):
        inside(tmp_path, "loop")
    with pytest.raises(ValueError, match="cannot be followed"):
        inside(tmp_path, "loop/x")
