"""``krl-compress search``: from a teacher and a budget to a bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from _helpers.images import blurred_noise
from krl_compress.cli import main
from krl_compress.config import SearchConfig
from krl_compress.searching.costs import Bench, BenchMeter, Cost, Precision
from krl_compress.searching.search import search
from krl_compress.searching.state import State
from krl_compress.searching.trials import Deadline, TimeIsUp, distill_student
from krl_compress.verbs import search as search_verb
from krl_runtime import load
from krl_runtime.errors import CheckFailedError, RunError, UsageError
from krl_train.cli import main as train
from krl_train.config import DataConfig, LoopConfig
from krl_train.run import Run

FAST = ["--data", "digits", "--limit", "300", "--val-limit", "100", "--batch-size", "50", "--precision", "fp32"]


class Machine:
    """A machine that takes 1 ms for a million operations, and half of that in INT8."""

    def __call__(self, run: Run, precision: Precision, macs: int, parameters: int) -> Cost:
        return self.costs(macs, parameters)[precision]

    def measure(self, bundle: Path, precision: Precision, macs: int, parameters: int, run: Run) -> Cost:
        return self.costs(macs, parameters)[precision]

    @staticmethod
    def costs(macs: int, parameters: int) -> dict[Precision, Cost]:
        return {
            "fp32": Cost(macs, parameters, 4 * parameters, macs / 1e6),
            "int8": Cost(macs, parameters, parameters, macs / 2e6),
        }


meter = Machine()


def distill(teacher: str, start: Path, out: Path, options: Sequence[str], deadline: Deadline) -> Run:
    """Train in this process, which has imported torch already."""
    deadline.check()
    assert main(["distill", "--teacher", teacher, "--student", str(start), "--out", str(out), *options]) == 0
    return Run.open(out)


def config(teacher: Path, out: Path, budget: str = "latency=0.3ms") -> SearchConfig:
    return SearchConfig(
        teacher=str(teacher),
        budget=(budget,),
        out=out,
        architectures="dscnn-0.5,resnet8",
        rounds=2,
        reduction=2,
        max_drop=20.0,
        data=DataConfig(data="digits", limit=300, val_limit=100),
        loop=LoopConfig(epochs=2, batch_size=50, precision="fp32", device="cpu"),
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "teacher"
    assert train(["fit", "--model", "dscnn-1", "--out", str(out), *FAST, "--epochs", "4"]) == 0
    return out


@pytest.fixture(scope="module")
def found(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchConfig, State]:
    asked = config(teacher, tmp_path_factory.mktemp("searches") / "search")
    return asked, search(asked, meter=meter, distill=distill)


def operations(model: onnx.ModelProto) -> int:
    """Count the multiplications of an ONNX file by the shapes of its weights and outputs."""
    model = onnx.shape_inference.infer_shapes(model)
    shapes = {
        value.name: [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
        for value in [*model.graph.value_info, *model.graph.output]
    }
    weights = {item.name: list(item.dims) for item in model.graph.initializer}
    total = 0
    for node in model.graph.node:
        if node.op_type == "Conv":
            total += int(np.prod(weights[node.input[1]]) * np.prod(shapes[node.output[0]][2:]))
        elif node.op_type in ("Gemm", "MatMul"):
            total += int(np.prod(weights[node.input[1]]))
    return total


def test_the_winner_meets_the_budget_and_is_the_best_of_the_last_round(found: tuple[SearchConfig, State]) -> None:
    asked, state = found
    winner = state.result
    bundle = Path(winner["bundle"])
    macs = operations(onnx.load(bundle / "model.fp32.onnx"))
    assert macs / (2e6 if winner["precision"] == "int8" else 1e6) <= 0.3
    last = [trial for trial in state.trials if trial.epochs == 2]
    assert winner["quality"] == max(max(trial.quality.values()) for trial in last)
    assert winner["complete"]
    assert bundle == asked.out / "winner.krl"
    assert len(load(bundle).labels) == 10


def test_rounds_have_fewer_students_and_more_epochs(found: tuple[SearchConfig, State]) -> None:
    _, state = found
    first = [trial for trial in state.trials if trial.epochs == 1]
    last = [trial for trial in state.trials if trial.epochs == 2]
    # The widest in FP32 and in INT8 of two architectures and of the teacher: some widths are the same.
    assert 3 <= len(first) <= 6
    assert len(last) == max(1, round(len(first) / 2))
    ranked = sorted(first, key=lambda trial: max(trial.quality.values()), reverse=True)
    assert {trial.student for trial in last} == {trial.student for trial in ranked[: len(last)]}


def test_int8_buys_a_wider_network(found: tuple[SearchConfig, State]) -> None:
    _, state = found
    for name in ("dscnn-0.5-8x8", "resnet8-8x8"):
        sizes = [costs["fp32"].macs for key, costs in state.costs.items() if key.startswith(name)]
        fits = {precision: max(size for size in sizes if size <= most) for precision, most in LIMITS.items()}
        assert fits["int8"] > fits["fp32"]


LIMITS: Mapping[str, float] = {"fp32": 0.3e6, "int8": 0.6e6}


def test_the_report_is_a_table_a_plot_and_json(found: tuple[SearchConfig, State]) -> None:
    asked, state = found
    written = json.loads((asked.out / "search.json").read_text())
    assert written["result"] == state.result
    assert {trial["student"] for trial in written["trials"]} == {trial.student for trial in state.trials}
    text = (asked.out / "search.md").read_text()
    assert all(trial.student in text for trial in state.trials)
    assert "chosen" in text
    assert (asked.out / "search.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_search_trains_nothing_again(found: tuple[SearchConfig, State], tmp_path: Path) -> None:
    asked, state = found

    class Refusing(Machine):
        def __call__(self, run: Run, precision: Precision, macs: int, parameters: int) -> Cost:
            raise AssertionError("measured again")

    again = search(replace(asked, resume=True), meter=Refusing())
    assert again.trials == state.trials
    assert again.shortlist == state.shortlist == [trial.student for trial in state.trials if trial.epochs == 1]
    assert again.result == state.result


def test_another_search_does_not_go_on(found: tuple[SearchConfig, State]) -> None:
    asked, _ = found
    with pytest.raises(RunError, match=r"other options \(budget\)"):
        search(replace(asked, budget=("latency=9ms",), resume=True), meter=meter)
    with pytest.raises(RunError, match="--resume"):
        search(asked, meter=meter)


def test_a_damaged_state_is_refused(found: tuple[SearchConfig, State], tmp_path: Path) -> None:
    asked, _ = found
    out = tmp_path / "search"
    out.mkdir()
    for text in ("{", "[]", '{"kind": "other"}', '{"kind": "krl-search", "schema_version": 1}'):
        (out / "search.json").write_text(text)
        with pytest.raises(RunError, match=r"search\.json"):
            search(replace(asked, out=out, resume=True), meter=meter)


def test_the_best_so_far_counts_when_the_time_is_up(found: tuple[SearchConfig, State], tmp_path: Path) -> None:
    asked, state = found
    out = tmp_path / "search"
    shutil.copytree(asked.out, out, ignore=shutil.ignore_patterns("2", "2.krl"))
    stopped = replace(state, configuration={**state.configuration, "out": str(out)}, result={})
    stopped.trials = [trial for trial in state.trials if trial.epochs == 1]
    stopped.write(out)
    result = search(replace(asked, out=out, resume=True, time_limit="0.001s"), meter=meter).result
    assert not result["complete"]
    assert result["epochs"] == 1
    assert result["quality"] == max(max(trial.quality.values()) for trial in stopped.trials)
    assert (out / "winner.krl" / "manifest.json").is_file()


def test_no_training_in_time_is_a_result_of_its_own(teacher: Path, tmp_path: Path) -> None:
    asked = replace(config(teacher, tmp_path / "search"), time_limit="0.001s")
    with pytest.raises(CheckFailedError, match="no student was trained in time"):
        search(asked, meter=meter)
    assert (tmp_path / "search" / "search.json").is_file()


def test_a_budget_that_nothing_meets_names_the_nearest(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the nearest is \S+ in int8: latency [0-9.]+ us") as caught:
        search(config(teacher, tmp_path / "search", "latency=1us"), meter=meter)
    state = State.read(tmp_path / "search")
    nearest = min((costs["int8"].latency, key) for key, costs in state.costs.items() if "int8" in costs)
    assert nearest[1] in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "latency=2"], "with its unit"),
        (["--budget", "macs=1M", "--architectures", "resnet9000"], "resnet9000"),
        (["--budget", "macs=1M", "--architectures", "resnet8@2"], "share of the channels"),
        (["--budget", "macs=1M", "--rounds", "0"], "--rounds"),
        (["--budget", "macs=1M", "--time-limit", "soon"], "--time-limit"),
    ],
)
def test_bad_options_exit_with_2(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["search", "--teacher", str(teacher), "--out", str(tmp_path / "search"), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_run_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError):
        search_verb(teacher=str(tmp_path), budget=["latency=2ms"], out=tmp_path / "search")


def test_costs_are_those_of_a_real_bundle(teacher: Path, tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    def bench(bundle: Path, variant: str, how: Bench) -> dict[str, object]:
        asked.append((variant, str(how.threads)))
        p50 = {"fp32": 2.0, "int8": 1.0}[variant] + 0.1 * len(asked)
        stages = {"preprocess": {"p50": 9.0}, "inference": {"p50": p50}}
        return {
            "stages_ms": stages,
            "peak_memory_mib": 100.0 + len(asked),
            "variant": variant,
            "backend": "onnxruntime-cpu",
        }

    images = tmp_path / "images"
    assert train(["unpack", "--data", "digits", "--out", str(images)]) == 0
    run = Run.open(teacher)
    meter = BenchMeter(images, Bench(threads=1), bench)
    costs = {precision: meter(run, precision, 7, 8) for precision in ("fp32", "int8")}
    assert [variant for variant, _ in asked] == ["fp32"] * 2 + ["int8"] * 2
    assert costs["fp32"].latency == pytest.approx(2.1)
    assert costs["int8"].latency == pytest.approx(1.3)
    assert costs["fp32"].memory == 101 * 2**20
    assert costs["fp32"].size > 4 * run.record.metrics["parameters"] > 2.5 * costs["int8"].size


def test_a_training_is_a_process_that_a_deadline_ends(teacher: Path, tmp_path: Path) -> None:
    options = [*FAST, "--epochs", "1"]
    run = distill_student(str(teacher), teacher, tmp_path / "student", options, Deadline())
    assert run.record.command == "krl-compress distill"
    assert run.record.metrics["teacher"]["top1"] == pytest.approx(Run.open(teacher).record.metrics["top1"], abs=0.2)
    before = Deadline(1.0, clock=lambda: 0.0)  # a second is too short for Python to import torch
    with pytest.raises(TimeIsUp):
        distill_student(str(teacher), teacher, tmp_path / "late", options, before)
    with pytest.raises(TimeIsUp):
        distill_student(str(teacher), teacher, tmp_path / "later", options, Deadline(0.0, clock=lambda: 1.0))
    again = distill_student(str(teacher), teacher, tmp_path / "student", options, Deadline(0.0, clock=lambda: 1.0))
    assert again.record == run.record


def test_a_restorer_fits_a_budget(tmp_path: Path) -> None:
    images = tmp_path / "images"
    for split, count in (("train", 3), ("val", 2)):
        (images / split).mkdir(parents=True)
        for index in range(count):
            blurred_noise(48, (count, index), 2).save(images / split / f"{index}.png")
    fast = ["--data", str(images), "--epochs", "1", "--batch-size", "4", "--precision", "fp32", "--device", "cpu"]
    teacher = tmp_path / "teacher"
    given = ["--task", "restoration", "--model", "edsr-1-16", "--scale", "2", "--size", "12"]
    assert train(["fit", *given, "--out", str(teacher), *fast]) == 0
    most = 0.6 * Run.open(teacher).record.metrics["macs"]
    asked = SearchConfig(
        teacher=str(teacher),
        budget=(f"macs={most:.0f}",),
        out=tmp_path / "search",
        architectures="espcn-16",
        precisions=("fp32",),
        rounds=1,
        loop=LoopConfig(epochs=1, batch_size=4, precision="fp32", device="cpu"),
    )
    state = search(asked, meter=meter, distill=distill)
    assert {trial.student.partition("-")[0] for trial in state.trials} == {"espcn", "teacher"}
    assert (state.result["metric"], state.result["unit"]) == ("psnr", "dB")
    assert state.result["quality"] == max(trial.quality["fp32"] for trial in state.trials)
    assert Run.open(state.result["run"]).record.metrics["macs"] <= most
    with pytest.raises(UsageError, match="--epochs"):
        search(replace(asked, out=tmp_path / "other", loop=LoopConfig()), meter=meter, distill=distill)
    with pytest.raises(UsageError, match="--sizes"):
        search(replace(asked, out=tmp_path / "third", sizes=(8,)), meter=meter, distill=distill)


def test_a_winner_that_fails_makes_room_for_the_next(found: tuple[SearchConfig, State], tmp_path: Path) -> None:
    asked, state = found
    out = tmp_path / "search"
    shutil.copytree(asked.out, out)
    replace(state, configuration={**state.configuration, "out": str(out)}, result={}).write(out)
    points = sorted(state.points(), key=lambda point: (point.trial.epochs, point.quality), reverse=True)
    first, second = points[:2]

    class Slower(Machine):
        def measure(self, bundle: Path, precision: Precision, macs: int, parameters: int, run: Run) -> Cost:
            cost = self.costs(macs, parameters)[precision]
            failing = (macs, precision) == (first.cost.macs, first.precision)
            return replace(cost, latency=100.0) if failing else cost

    result = search(replace(asked, out=out, resume=True), meter=Slower(), distill=distill).result
    assert (result["student"], result["precision"]) == (second.trial.student, second.precision)
    assert "times the budget" in result["refused"][f"{first.trial.student} in {first.precision}"]
