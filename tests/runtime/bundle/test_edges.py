"""Bundles that are damaged or hostile on disk: links, names, and files that are not files."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from krl_runtime import Bundle, BundleError, load


def forge(bundle: Bundle, **changes: object) -> None:
    """Change the manifest behind krl's back, with a digest that is right."""
    values = {**json.loads((bundle.path / "manifest.json").read_bytes()), **changes, "digest": ""}

    def text() -> bytes:
        return json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"

    values["digest"] = hashlib.sha256(text()).hexdigest()
    (bundle.path / "manifest.json").write_bytes(text())


@pytest.mark.parametrize("name", ["manifest.json", "model.fp32.onnx", "golden.npz"])
@pytest.mark.parametrize("how", ["itself", "each other", "outside", "a folder", "nothing"])
def test_links_in_place_of_files(bundle: Bundle, tmp_path: Path, name: str, how: str):
    file = bundle.path / name
    data = file.read_bytes()
    file.unlink()
    if how == "outside":
        (tmp_path / "other").write_bytes(data)
    if how == "each other":
        (bundle.path / "second").symlink_to(name)
    target = {"itself": name, "each other": "second", "outside": "../other", "a folder": ".", "nothing": "none"}[how]
    file.symlink_to(target)
    with pytest.raises(BundleError, match=r"cannot be followed|through a symbolic link|missing|is not a bundle"):
        Bundle.open(bundle.path).verify()


def test_a_link_to_a_file_of_the_bundle_is_followed(bundle: Bundle):
    (bundle.path / "model.fp32.onnx").rename(bundle.path / "real.onnx")
    (bundle.path / "model.fp32.onnx").symlink_to("real.onnx")
    Bundle.open(bundle.path).verify()


@pytest.mark.parametrize("name", ["a" * 300, "ü" * 200, "b/" * 3000 + "c", "d\ud800"])
def test_names_that_no_file_can_have(bundle: Bundle, name: str):
    entry = {"sha256": "0" * 64, "size": 1}
    if "\ud800" in name:
        with pytest.raises(BundleError, match="surrogates not allowed"):
            Bundle.create(bundle.path.with_name("new.krl"), bundle.manifest, {name: b"x"})
        return
    forge(bundle, files={**{key: vars(item) for key, item in bundle.manifest.files.items()}, name: entry})
    with pytest.raises(BundleError, match=r"cannot be|missing"):
        Bundle.open(bundle.path).verify()


@pytest.mark.parametrize("path", ["a" * 300, "b\0c", "d/" * 3000])
def test_paths_of_bundles_that_no_folder_can_have(tmp_path: Path, path: str):
    with pytest.raises(BundleError, match=r"cannot be read|does not exist"):
        load(str(tmp_path / path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes between processes")
@pytest.mark.parametrize("name", ["manifest.json", "model.fp32.onnx", "golden.npz"])
def test_a_pipe_in_place_of_a_file_does_not_block(bundle: Bundle, name: str):
    (bundle.path / name).unlink()
    os.mkfifo(bundle.path / name)
    with pytest.raises(BundleError, match=r"is missing|is not a bundle"):
        Bundle.open(bundle.path).verify()


@pytest.mark.parametrize("size", [-1, 0, 10**15])
def test_sizes_that_are_not_the_files(bundle: Bundle, size: int):
    files = {key: vars(item) for key, item in bundle.manifest.files.items()}
    forge(bundle, files={**files, "model.fp32.onnx": {**files["model.fp32.onnx"], "size": size}})
    with pytest.raises(BundleError, match="is damaged or was changed"):
        Bundle.open(bundle.path).read("model.fp32.onnx")


@pytest.mark.parametrize("name", ["model.fp32.onnx", "golden.npz"])
def test_a_file_that_is_changed_while_it_is_used(bundle: Bundle, name: str, monkeypatch: pytest.MonkeyPatch):
    """Somebody writes to the file the moment its hash is known."""
    opened = Bundle.open(bundle.path)
    expected = opened.golden()["pixels"].copy()
    original, file = hashlib.sha256, bundle.path / name
    wanted = original(file.read_bytes()).hexdigest()

    class Changing:
        def __init__(self, data: bytes = b"") -> None:
            self.real = original(data)
            self.update = self.real.update

        def hexdigest(self) -> str:
            if self.real.hexdigest() == wanted:
                file.write_bytes(b"something else")
            return self.real.hexdigest()

    monkeypatch.setattr(hashlib, "sha256", Changing)
    if name == "golden.npz":
        assert (opened.golden()["pixels"] == expected).all()
    else:
        with load(bundle.path, require="cpu", threads=1) as model:
            assert model.logits(expected[:1]).shape == (1, len(model.labels))
    assert file.read_bytes() == b"something else"
