"""``krl-deploy check --format sarif``, as code hosts read it."""

from __future__ import annotations

import json
from urllib.parse import unquote

import numpy as np
import pytest

from _helpers.bundles import write_bundle
from _helpers.planted import block, edited, find, findings, set_value
from krl_deploy.cli import main

TARGET = "tensorrt-11.4"


def faulty(model):
    set_value(model, find(model, "QuantizeLinear_r0_quantized").input[2], np.int8(3))
    set_value(model, find(model, "QuantizeLinear_r0_quantized").input[1], np.float32(-1))


@pytest.fixture
def log(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a model.onnx").write_bytes(edited(block(), faulty).SerializeToString())
    assert main(["check", "a model.onnx", "--target", TARGET, "--format", "sarif"]) == 1
    return json.loads(capsys.readouterr().out)


def test_one_result_for_each_finding(log):
    (run,) = log["runs"]
    assert log["version"] == "2.1.0"
    expected = findings(edited(block(), faulty), TARGET)
    found = [(item["level"], item["ruleId"], item["message"]["text"]) for item in run["results"]]
    assert len(found) == len(expected) > 2
    for (level, rule, text), finding in zip(found, expected, strict=True):
        assert (level, rule) == (finding.severity, finding.rule)
        assert all(part in text for part in (finding.op, finding.node, finding.why, finding.do))


def test_rules_and_places(log):
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules)
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        (place,) = result["locations"]
        uri = place["physicalLocation"]["artifactLocation"]["uri"]
        assert uri == "a%20model.onnx"
        assert unquote(uri) == "a model.onnx"
        assert place["physicalLocation"]["region"] == {"startLine": 1}
        assert place["logicalLocations"][0]["name"] in result["message"]["text"]
    prints = [result["partialFingerprints"]["krl/v1"] for result in run["results"]]
    assert len(set(prints)) == len(prints)


def test_the_files_of_a_bundle_have_places_of_their_own(tmp_path, capsys):
    bundle = write_bundle(tmp_path / "tiny.krl", variants=("fp32", "int8"))
    assert main(["check", str(bundle.path), "--target", TARGET, "--format", "sarif"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    for result in run["results"]:
        uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        assert uri.startswith("file:///")  # not below the working folder
        assert uri.endswith(".onnx")


@pytest.mark.parametrize("other", ["--json", "--diff"])
def test_two_forms_at_once(other, log, capsys):
    assert main(["check", "a model.onnx", "--target", TARGET, "--format", "sarif", other]) == 2
    assert "sarif" in capsys.readouterr().err
