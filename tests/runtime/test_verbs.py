"""From keyword arguments to configurations, results, and what each package exports."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from krl_runtime.errors import UsageError
from krl_runtime.verbs import Result, configure


@dataclass(frozen=True)
class Section:
    sizes: tuple[int, ...] = ()
    data: str | None = None


@dataclass(frozen=True, kw_only=True)
class Options:
    out: Path
    name: str = "a"
    folders: tuple[Path, ...] = ()
    data: Section = field(default_factory=Section)


def test_options_find_their_section_and_are_converted():
    made = configure(Options, None, {"out": "run", "sizes": [8, 9], "data": Path("images"), "folders": "x"})
    assert made == Options(out=Path("run"), folders=(Path("x"),), data=Section((8, 9), "images"))
    assert configure(Options, None, {"out": "run", "data": Section((1,))}).data == Section((1,))
    assert configure(Options, None, {"out": "run", "sizes": 3}).data.sizes == (3,)
    assert configure(Options, None, {"out": "run", "data": None}).data.data is None


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (None, {}, "out is missing"),
        (None, {"out": "r", "size": 3}, r"unknown option size \(did you mean sizes\?\); accepted: out, name, folders"),
        (Options(out=Path()), {"name": "b"}, r"give a Options or options, not both \(given: name\)"),
        (Section(), {}, "the configuration is a Section; accepted: Options"),
    ],
)
def test_what_is_no_configuration_is_refused(config: Any, options: Mapping[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        configure(Options, config, options)


def test_results_are_plain_json():
    @dataclass(frozen=True)
    class Made(Result):
        bundle: Path
        labels: tuple[str, ...]

    made = Made(Path("a.krl"), ("x", "y"), details={"top1": 0.123456789}, text="a table")
    assert json.loads(json.dumps(made.to_dict())) == {"bundle": "a.krl", "labels": ["x", "y"], "top1": 0.123456789}
    assert "table" not in repr(made)
    with pytest.raises(FrozenInstanceError):
        made.bundle = Path("b.krl")


@pytest.mark.parametrize("package", ["krl_train", "krl_compress", "krl_deploy", "krl_runtime"])
def test_each_package_exports_its_verbs_lazily(package: str):
    code = (
        f"import sys, {package} as package\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'tensorrt', 'tyro'} & set(sys.modules)\n"
        "print(sorted(heavy), sorted(set(package.__all__) - set(dir(package))) != [])\n"
        "print(all(getattr(package, name) is not None for name in package.__all__), package.__version__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == "[] True"
    assert second.startswith("True 0.")


def test_a_name_that_no_package_has():
    import krl_deploy

    with pytest.raises(AttributeError, match="module 'krl_deploy' has no attribute 'adopt'"):
        _ = krl_deploy.adopt
