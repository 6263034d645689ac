"""Plans that keep some layers give graphs that krl's rules and NVIDIA's real parser accept."""

from __future__ import annotations

import json
from dataclasses import replace

import onnx
import pytest

from _helpers.architectures import ARCHITECTURES
from _helpers.planted_nets import write_colors, write_planted
from _helpers.required import real_rtx
from krl_deploy.cli import main
from krl_deploy.graph.coupling import coupled
from krl_deploy.graph.edit import GraphEditor
from krl_deploy.graph.placement import weighted_nodes
from krl_deploy.precision import quantize as quantize_module
from krl_deploy.precision.planner import int8, make
from krl_deploy.precision.planner.judge import Judge

TARGETS = ("tensorrt-10.3", "tensorrt-10.16", "tensorrt-11.3", "tensorrt-11.4")


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    return write_colors(tmp_path_factory.mktemp("colors") / "data", train=16, val=4)


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(quantize_module, "interleaved_latency", lambda sessions, pixels: {"fp32": 2.0, "int8.cpu": 1.0})


def refuse_the_first(monkeypatch, count):
    """Refuse plans as long as they keep fewer than ``count`` groups, whatever they compute."""
    real, tried = Judge.attempt, []

    def attempt(self, keep):
        made = real(self, keep)
        tried.append(keep)
        return made if len(tried) > count else replace(made, refused="planted")

    monkeypatch.setattr(Judge, "attempt", attempt)


def groups_of(model: onnx.ModelProto) -> set[frozenset[str]]:
    graph = GraphEditor(model)
    return {frozenset(name.removeprefix("n_") for name in names) for names in coupled(graph, weighted_nodes(graph))}


def planned(tmp_path, colors, name, capsys):
    bundle = write_planted(tmp_path / f"{name}.krl", ARCHITECTURES[name](), colors)
    command = [
        "quantize",
        str(bundle.path),
        "--data",
        str(colors),
        "--mixed-precision",
        "--max-drop",
        "100",
        "--accept-unmeasured",
    ]
    code = main([*command, "--float-precision", "fp16", "--json"])
    captured = capsys.readouterr()
    return bundle.path, code, captured


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_plan_passes_check_and_nvidia_s_parser(tmp_path, colors, monkeypatch, capsys, name, count):
    refuse_the_first(monkeypatch, count)
    path, code, captured = planned(tmp_path, colors, name, capsys)
    assert code == 0, captured.err
    plan = json.loads((path / "plan.json").read_bytes())
    assert plan["layers_kept_float"]
    assert any(layer["tensorrt"] == "int8" for layer in plan["layers"])
    for target in TARGETS:
        assert main(["check", str(path), "--target", target, "--precision", "int8"]) == 0, capsys.readouterr().out
    real_rtx()
    parsed = ["check", str(path), "--target", "rtx", "--precision", "int8", "--parser", "--json"]
    assert main(parsed) == 0, capsys.readouterr()


def test_one_layer_of_an_mlp_alone_is_not_accepted(tmp_path, colors, monkeypatch, capsys):
    """Without the groups a plan keeps the second product, which krl's own rule refuses; the planner goes on."""
    monkeypatch.setattr(int8, "coupled", lambda graph, weighted: [(item.node.name,) for item in weighted])
    monkeypatch.setattr("krl_deploy.precision.emit_tensorrt._before_float", lambda *_: {})
    ranked = {"n_mlp2": 9.0, "n_mlp1": 8.0}
    monkeypatch.setattr(
        make,
        "_measure_alone",
        lambda subject, *_: {group.name: ranked.get(group.name, 1.0) for group in subject.groups},
    )
    refuse_the_first(monkeypatch, 1)
    path, code, captured = planned(tmp_path, colors, "transformer", capsys)
    attempts = json.loads(captured.out)["plan"]["attempts"]
    assert "qdq/mlp at n_mlp1 for tensorrt-10.16" in attempts[1]["refused"]
    assert "NaN on TensorRT 10.16 and 11.3" in captured.err
    assert code == 0
    for target in TARGETS:
        assert main(["check", str(path), "--target", target, "--precision", "int8"]) == 0


def test_what_is_coupled():
    mlp = {frozenset(names) for names in ({"wide"}, {"first1", "first2"}, {"second1", "second2"}, {"before", "logits"})}
    assert groups_of(ARCHITECTURES["mlp"]()) == mlp
    transformer = ({"patches"}, {"query", "key", "value"}, {"projection"}, {"mlp1", "mlp2"}, {"logits"})
    assert groups_of(ARCHITECTURES["transformer"]()) == {frozenset(names) for names in transformer}
    mixer = groups_of(ARCHITECTURES["mixer"]())
    assert {frozenset({f"{block}{kind}1", f"{block}{kind}2"}) for block in "ab" for kind in "tc"} <= mixer
    for name in ("resnet", "separable"):
        assert max(map(len, groups_of(ARCHITECTURES[name]()))) == 1


def test_a_product_before_a_narrow_one_is_not_in_int8_where_fp16_is_around(tmp_path, colors, capsys):
    """``before`` and ``logits`` stand around a GELU; the latter has 4 columns, too few for INT8."""
    bundle = write_planted(tmp_path / "mlp.krl", ARCHITECTURES["mlp"](), colors)
    command = [
        "quantize",
        str(bundle.path),
        "--data",
        str(colors),
        "--max-drop",
        "100",
        "--accept-unmeasured",
        "--json",
    ]
    for precision, kept in (("fp16", {"n_before", "n_logits"}), ("fp32", {"n_logits"})):
        assert main([*command, "--float-precision", precision]) == 0
        assert set(json.loads(capsys.readouterr().out)["kept_float"]["tensorrt"]) == kept
        for target in TARGETS:
            assert main(["check", str(bundle.path), "--target", target, "--precision", "int8"]) == 0
        capsys.readouterr()
