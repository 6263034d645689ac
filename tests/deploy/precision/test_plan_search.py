"""The search of the planner, its checkpoint, and what it says of a plan that leaves little."""

from __future__ import annotations

import json

import numpy as np
import pytest

from _helpers.architectures import ARCHITECTURES
from _helpers.planted_nets import DIFFERENCES, OUTLIERS, write_colors, write_planted
from krl_deploy.cli import main
from krl_deploy.config import Fp16Config, QuantizeConfig
from krl_deploy.graph.edit import GraphEditor
from krl_deploy.graph.placement import weighted_nodes
from krl_deploy.graph.workload import multiply_accumulates
from krl_deploy.precision import quantize as quantize_module
from krl_deploy.precision.planner import make
from krl_deploy.precision.planner.checkpoint import PlanCheckpoint
from krl_deploy.precision.planner.judge import Judge
from krl_deploy.precision.planner.search import Attempt, search, steps
from krl_deploy.precision.variants import Emitter
from krl_runtime.errors import UsageError


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    return write_colors(tmp_path_factory.mktemp("colors") / "data", train=20, val=30)


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(quantize_module, "interleaved_latency", lambda sessions, pixels: {"fp32": 2.0, "int8.cpu": 1.0})


@pytest.mark.parametrize("count", [1, 2, 5, 13, 40])
def test_no_more_is_kept_than_needed(count):
    for least in range(count):
        tried = []

        def attempt(kept, tried=tried, least=least):
            tried.append(kept)
            return Attempt(kept, refused=None if kept >= least else "no")

        made, accepted = search(count, attempt, lambda: True)
        assert accepted == least
        assert [each.kept for each in made] == tried
        assert len(set(tried)) == len(tried) <= len(steps(count)) + np.log2(max(2, count))


def test_a_search_without_a_plan_or_without_time():
    assert search(9, lambda kept: Attempt(kept, refused="no"), lambda: True)[1] is None
    made, accepted = search(9, lambda kept: Attempt(kept, refused="no"), lambda: False)
    assert ([each.kept for each in made], accepted) == ([0], None)
    # In time for the first accepted plan, and not for smaller ones.
    clock = iter([True] * 7)
    made, accepted = search(
        40, lambda kept: Attempt(kept, refused=None if kept > 9 else "no"), lambda: next(clock, False)
    )
    assert [each.kept for each in made] == [0, 1, 2, 3, 4, 6, 9, 13]
    assert accepted == 13


@pytest.fixture
def measured(monkeypatch):
    """Names of the measurements as they are made: ``"alone"`` or ``"attempt"``."""
    names, alone, attempt = [], make._relative_error, Judge.attempt

    def count_alone(*given):
        names.append("alone")
        return alone(*given)

    def count_attempt(self, keep):
        names.append("attempt")
        return attempt(self, keep)

    monkeypatch.setattr(make, "_relative_error", count_alone)
    monkeypatch.setattr(Judge, "attempt", count_attempt)
    return names


def plan_of(path, name):
    """The plan of a bundle, without its time."""
    return {key: value for key, value in json.loads((path / name).read_bytes()).items() if key != "seconds"}


def interrupt(monkeypatch, method, number):
    """Stop as Ctrl-C does, right after a measurement of this number was saved."""
    real, calls = getattr(PlanCheckpoint, method), []

    def save_then_stop(self, *given):
        real(self, *given)
        calls.append(given)
        if len(calls) == number:
            raise KeyboardInterrupt

    monkeypatch.setattr(PlanCheckpoint, method, save_then_stop)
    return lambda: monkeypatch.setattr(PlanCheckpoint, method, real)


CASES = {
    "quantize": (OUTLIERS["residual"], "plan.json", ".plan.json"),
    "fp16": (DIFFERENCES["weights"], "plan.fp16.json", ".fp16.plan.json"),
}


@pytest.mark.parametrize(
    ("method", "number"), [("add_error", 2), ("add_error", 5), ("add_attempt", 1), ("add_attempt", 2)]
)
@pytest.mark.parametrize("verb", CASES)
def test_an_interrupted_plan_goes_on(tmp_path, colors, monkeypatch, capsys, measured, verb, method, number):
    net, name, unfinished = CASES[verb]
    bundles = [write_planted(tmp_path / f"{kind}.krl", net(), colors).path for kind in ("whole", "stopped")]
    commands = [[verb, str(path), "--data", str(colors), "--mixed-precision"] for path in bundles]
    assert main(commands[0]) == 0
    alone = measured.count("alone")
    undo = interrupt(monkeypatch, method, number)
    before = (bundles[1] / "manifest.json").read_bytes()
    assert main(commands[1]) == 130
    assert (bundles[1] / "manifest.json").read_bytes() == before
    checkpoint = bundles[1].with_name(f"stopped.krl{unfinished}")
    assert checkpoint.exists()
    undo()
    measured.clear()
    capsys.readouterr()
    assert main([*commands[1], "--resume"]) == 0
    assert "going on after" in capsys.readouterr().err
    assert plan_of(bundles[1], name) == plan_of(bundles[0], name)
    graphs = 2 if verb == "quantize" else 1
    attempts = len(plan_of(bundles[1], name)["attempts"])
    wanted = (alone - number * graphs, attempts) if method == "add_error" else (0, attempts - number)
    assert (measured.count("alone"), measured.count("attempt")) == wanted
    assert not checkpoint.exists()


def test_a_checkpoint_of_other_options_is_not_used(tmp_path, colors, monkeypatch, capsys, measured):
    bundle = write_planted(tmp_path / "a.krl", OUTLIERS["gelu"](), colors)
    command = ["quantize", str(bundle.path), "--data", str(colors), "--mixed-precision"]
    for number, more in enumerate(
        (["--max-drop", "2"], ["--limit", "30"], ["--optimal-scales"], ["--float-precision", "fp32"])
    ):
        undo = interrupt(monkeypatch, "add_error", 2)
        assert main(command) == 130
        undo()
        measured.clear()
        capsys.readouterr()
        assert main([*command, *more, "--resume"]) == 0, number
        assert (
            "the interrupted plan was of another model, other images or options; starting anew"
            in capsys.readouterr().err
        )
        assert measured.count("alone") == 6  # three groups in two graphs
    checkpoint = tmp_path / "a.krl.plan.json"
    for damaged in (b"{", b"[]", b'{"identity": 3}', b"\xff"):
        checkpoint.write_bytes(damaged)
        assert main([*command, "--resume"]) == 0
        assert "starting anew" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert "no interrupted plan to continue; starting anew" in capsys.readouterr().err


def test_a_plan_that_ran_out_of_time_goes_on(tmp_path, colors, capsys, measured):
    bundle = write_planted(tmp_path / "a.krl", OUTLIERS["residual"](), colors)
    command = ["quantize", str(bundle.path), "--data", str(colors), "--mixed-precision", "--resume"]
    assert main([*command, "--budget-seconds", "0.001"]) == 1
    assert "give more time and --resume to go on from here" in capsys.readouterr().err
    assert measured == ["alone", "alone", "attempt"]
    measured.clear()
    assert main([*command, "--budget-seconds", "600"]) == 0
    assert measured.count("alone") == 10
    assert json.loads((bundle.path / "plan.json").read_bytes())["layers_kept_float"] == [
        "n_stem",
        "n_first",
        "n_second",
    ]


def refuse_fewer(monkeypatch, count):
    """Refuse plans that keep fewer than ``count`` layers."""
    monkeypatch.setattr(
        Judge, "attempt", lambda self, keep: Attempt(len(keep), refused=None if len(keep) >= count else "no")
    )


def macs_by_hand():
    """Multiply-accumulates of ``resnet``, from its shapes: 16×16 pixels, 32 channels, a stride of 2 in block b."""
    full, half, square = 16 * 16, 8 * 8, 32 * 32 * 9
    return {
        **{"n_stem": full * 32 * 3 * 9, "n_a1": full * square, "n_a2": full * square},
        **{"n_b1": half * square, "n_b2": half * square, "n_bs": half * 32 * 32, "n_logits": 4 * 32},
    }


def test_multiply_accumulates():
    graph = GraphEditor(ARCHITECTURES["resnet"]())
    assert {item.node.name: multiply_accumulates(graph, item) for item in weighted_nodes(graph)} == macs_by_hand()
    graph = GraphEditor(ARCHITECTURES["transformer"]())
    got = {item.node.name: multiply_accumulates(graph, item) for item in weighted_nodes(graph)}
    assert (got["n_query"], got["n_mlp1"], got["n_logits"]) == (16 * 32 * 32, 16 * 32 * 64, 4 * 32)


@pytest.mark.parametrize(("kept", "warned"), [(3, False), (5, True)])
def test_a_plan_that_keeps_nearly_everything_says_so(tmp_path, colors, monkeypatch, capsys, kept, warned):
    bundle = write_planted(tmp_path / "a.krl", ARCHITECTURES["resnet"](), colors)
    refuse_fewer(monkeypatch, kept)
    command = ["quantize", str(bundle.path), "--data", str(colors), "--mixed-precision", "--max-drop", "100"]
    assert main(command) == 0
    output = capsys.readouterr()
    layers = json.loads((bundle.path / "plan.json").read_bytes())["layers"]
    assert "plans, tried on 40 inputs that nothing else uses" in output.out
    assert (f"the plan keeps {kept} of 6 layers" in output.err) is warned
    macs = {layer["name"]: macs_by_hand()[layer["name"]] for layer in layers}
    for file in ("tensorrt", "cpu"):
        lower = [layer["name"] for layer in layers if layer[file] == "int8"]
        share = sum(macs[name] for name in lower) / sum(macs.values())
        shown = f"{len(lower)} of 6 layers ({share:.1%} of the multiply-accumulates) for {file}"
        assert (shown in output.err) is warned


def test_a_plan_without_anything_in_int8_is_refused(tmp_path, colors, monkeypatch, capsys):
    real = Emitter.emit

    def nothing(self, keep=None):
        names = [item.node.name for item in weighted_nodes(GraphEditor(self.model))]
        return real(self, dict.fromkeys(names, "planted") if nothing.on(keep) else keep)

    monkeypatch.setattr(Emitter, "emit", nothing)
    bundle = write_planted(tmp_path / "a.krl", OUTLIERS["gelu"](), colors)
    before = (bundle.path / "manifest.json").read_bytes()
    command = ["quantize", str(bundle.path), "--data", str(colors)]
    nothing.on = lambda keep: bool(keep)
    assert main([*command, "--mixed-precision"]) == 1
    error = capsys.readouterr().err
    assert "no plan with a layer in INT8 is accepted" in error
    assert "nothing is left in INT8" in error
    assert "most sensitive of 3 groups of layers" in error
    nothing.on = lambda keep: True
    assert main(command) == 1
    assert (
        "no operator is in INT8, so that there is no variant to keep: matrix of 32x3: INT8 needs"
        in capsys.readouterr().err
    )
    assert (bundle.path / "manifest.json").read_bytes() == before
    assert not (bundle.path / "model.int8.onnx").exists()


def test_fp16_plans_only_where_it_fails_for_another_reason_than_few_images(
    tmp_path, colors, capsys, measured, monkeypatch
):
    bundle = write_planted(tmp_path / "fits.krl", OUTLIERS["gate"](), colors)
    assert main(["fp16", str(bundle.path), "--data", str(colors), "--mixed-precision", "--json"]) == 0
    assert "plan" not in json.loads(capsys.readouterr().out)
    monkeypatch.setattr("krl_runtime.evaluation.gate.ENOUGH_SNR_DB", 150.0)
    few = ["--data", str(colors), "--val-limit", "40", "--mixed-precision"]
    assert main(["fp16", str(bundle.path), *few]) == 1
    assert "40 images are too few to judge by" in capsys.readouterr().err
    assert measured == []
    bundle = write_planted(tmp_path / "lost.krl", DIFFERENCES["squares"](), colors)
    assert main(["fp16", str(bundle.path), "--mixed-precision", "--accept-unmeasured"]) == 2
    assert "--mixed-precision plans on images of its own; give --data FOLDER" in capsys.readouterr().err
    assert main(["fp16", str(bundle.path), *few, "--accept-unmeasured"]) == 0
    # Without a plan the old one would be of another file.
    assert (bundle.path / "plan.fp16.json").exists()
    monkeypatch.setattr("krl_deploy.precision.fp16.limits_of", lambda *_: {})  # even 100 points have a floor
    assert main(["fp16", str(bundle.path), "--data", str(colors), "--max-drop", "100"]) == 0
    assert not (bundle.path / "plan.fp16.json").exists()


def test_options_of_the_planner_need_it(tmp_path):
    for config in (Fp16Config, QuantizeConfig):
        with pytest.raises(UsageError, match="--budget-seconds bounds the planner; give --mixed-precision as well"):
            config(tmp_path, budget_seconds=3.0)
        with pytest.raises(UsageError, match="--budget-seconds is -1"):
            config(tmp_path, budget_seconds=-1.0, mixed_precision=True)
    with pytest.raises(UsageError, match="--resume continues a plan; give --mixed-precision as well"):
        Fp16Config(tmp_path, resume=True)
