"""Names of targets."""

from __future__ import annotations

import pytest

from krl_deploy.rules.targets import Target, parse_target, target_here
from krl_runtime.device import platforms
from krl_runtime.errors import UsageError


@pytest.mark.parametrize(
    ("name", "version", "boards"),
    [
        ("jetpack-6.1", (10, 3), ("Orin",)),
        ("jetpack-6.2", (10, 3), ("Orin",)),
        ("jetpack-6.2.1", (10, 3), ("Orin",)),
        ("jetpack-7.1", (10, 13), ("Thor",)),
        ("jetpack-7.2", (10, 16, 2), ("Orin", "Thor")),
        ("jetpack-7.2.1", (10, 16, 2), ("Orin", "Thor")),
        ("jetpack-7.2.2", (11, 4, 1), ("AGX Orin", "Thor")),
        ("tensorrt-10.3", (10, 3), ()),
        ("tensorrt-10.16.2.10", (10, 16, 2, 10), ()),
        ("tensorrt-11.4", (11, 4), ()),
        ("onnxruntime-cpu", (), ()),
    ],
)
def test_targets(name, version, boards):
    target = parse_target(name)
    assert (target.name, target.tensorrt, target.boards) == (name, version, boards)


def test_titles():
    assert parse_target("jetpack-7.2").title == "jetpack-7.2 (TensorRT 10.16.2, Orin, Thor)"
    assert parse_target("tensorrt-11.4").title == "tensorrt-11.4"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("jetpack-5.1", r"whose TensorRT is 8\.5\.2; krl needs TensorRT 10\.3: JetPack 6\.1 or later"),
        ("jetpack-6.0", r"whose TensorRT is 8.6; krl needs"),
        ("jetpack-9.9", r"krl knows JetPack 5\.0\.2, 5\.1, 6\.0, 6\.1, 6\.2, 7\.0, 7\.1, 7\.2"),
        ("tensorrt-8.6", r"krl knows TensorRT 10\.3 to 11\.x"),
        ("tensorrt-12.0", r"krl knows TensorRT 10\.3 to 11\.x"),
        ("tensorrt-10", r"did you mean tensorrt-10\.\d+\?\); accepted: jetpack-6\.1"),
        ("jetson", r"'jetson'.*accepted: jetpack-6\.1, jetpack-6\.2, jetpack-7\.0"),
        ("onnxruntime-cpuu", r"did you mean onnxruntime-cpu\?"),
        ("", "accepted: jetpack-6"),
    ],
)
def test_what_is_no_target(name, message):
    with pytest.raises(UsageError, match=message):
        parse_target(name)


def test_this_machine(monkeypatch):
    monkeypatch.setattr(platforms, "jetson_release", lambda: None)
    assert target_here(None) == Target("tensorrt-11.5", (11, 5))
    assert target_here("10.16.1.11") == Target("tensorrt-10.16.1.11", (10, 16, 1, 11))
    monkeypatch.setattr(platforms, "jetson_release", lambda: "39.2.0")
    assert target_here("10.16.2").boards == ("Orin", "Thor")
