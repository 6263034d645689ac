from __future__ import annotations

import sys
from importlib import metadata

import pytest

from krl_runtime import errors
from krl_runtime.errors import CheckFailedError, KrlError, MissingExtraError, require


def test_every_error_is_a_krl_error_with_exit_code_2_but_the_failed_check():
    for name in errors.__all__:
        if name[0].isupper():
            assert issubclass(getattr(errors, name), KrlError)
            assert getattr(errors, name).exit_code == (1 if name == "CheckFailedError" else 2)
    assert CheckFailedError.exit_code == 1


def test_require_returns_the_module():
    import json.decoder

    assert require("json.decoder", extra="x", purpose="a test") is json.decoder


def test_require_names_library_purpose_and_extra(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", missing)
    monkeypatch.setattr(errors, "_origin", lambda name: {})
    with pytest.raises(MissingExtraError) as caught:
        require("no_such_library.part", extra="cpu", purpose="running a model")
    assert (caught.value.library, caught.value.extra) == ("no_such_library", "cpu")
    assert str(caught.value) == (
        "running a model needs no_such_library, which is not installed; install it with: pip install 'krl[cpu]'"
    )


def test_require_names_the_slim_distribution_where_that_is_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metadata, "metadata", lambda name: {"Name": name})
    monkeypatch.setattr(errors, "_origin", lambda name: {})
    with pytest.raises(MissingExtraError, match=r"pip install 'krl-runtime\[gpu\]'"):
        require("no_such_library", extra="gpu", purpose="x")


def test_require_lets_a_broken_library_speak_for_itself(tmp_path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "broken_library.py").write_text("import not_there_either\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="not_there_either"):
        require("broken_library", extra="x", purpose="x")


def test_tensorrt_is_installed_with_the_distribution_that_is_here(monkeypatch: pytest.MonkeyPatch):
    from krl_runtime.backends.cuda import NoTensorRTError
    from krl_runtime.backends.tensorrt.library import tensorrt_library

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(metadata, "metadata", lambda name: {"Name": name})
    monkeypatch.setattr(errors, "_origin", lambda name: {})
    with pytest.raises(NoTensorRTError, match=r"pip install 'krl-runtime\[tensorrt\]'"):
        tensorrt_library()


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        ({}, "pip install 'krl[cpu]'"),
        ({"url": "file:///a%20b/krl", "dir_info": {"editable": True}}, "pip install -e '/a b/krl[cpu]'"),
        ({"url": "file:///src/krl", "dir_info": {}}, "pip install '/src/krl[cpu]'"),
        (
            {"url": "file:///w/krl-1-py3-none-any.whl", "archive_info": {}},
            "pip install '/w/krl-1-py3-none-any.whl[cpu]'",
        ),
        (
            {"url": "https://host/krl.git", "vcs_info": {"vcs": "git"}},
            "pip install 'krl[cpu] @ git+https://host/krl.git'",
        ),
        ({"url": "https://host/krl.whl", "archive_info": {}}, "pip install 'krl[cpu] @ https://host/krl.whl'"),
    ],
)
def test_an_extra_is_installed_from_where_the_package_came_from(
    monkeypatch: pytest.MonkeyPatch, origin: dict, command: str
):
    monkeypatch.setattr(errors, "distribution", lambda: "krl")
    monkeypatch.setattr(errors, "_origin", lambda name: origin)
    assert errors.install_command("cpu") == command


def test_a_damaged_record_of_the_origin_is_none(monkeypatch: pytest.MonkeyPatch):
    class Distribution:
        def read_text(self, name: str) -> str:
            return "[1"

    monkeypatch.setattr(metadata, "distribution", lambda name: Distribution())
    assert errors._origin("krl") == {}
