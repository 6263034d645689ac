"""``krl-compress prune --latency``, and latencies that a profile predicts."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from krl_compress.cli import main
from krl_compress.config import MeasuringConfig, PruneConfig
from krl_compress.searching.costs import Cost, Precision, ProfileMeter
from krl_compress.searching.counting import workload
from krl_compress.searching.latency import with_channels
from krl_runtime.device.profiles import Profile, ProfileEntry, machine_facts
from krl_runtime.errors import RunError, UsageError
from krl_train.cli import main as train
from krl_train.models import ModelSpec
from krl_train.run import Run

FAST = ["--data", "digits", "--limit", "200", "--val-limit", "100", "--epochs", "1", "--batch-size", "50"]


class Machine:
    """A machine that takes 1 ms for a million operations."""

    def __call__(self, run: Run, precision: Precision, macs: int, parameters: int) -> Cost:
        return Cost(macs, parameters, 4 * parameters, macs / 1e6)

    def measure(self, bundle: Path, precision: Precision, macs: int, parameters: int, run: Run) -> Cost:
        return self(run, precision, macs, parameters)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train(["fit", "--model", "dscnn-1", "--out", str(out), *FAST]) == 0
    return out


def test_as_many_channels_are_kept_as_fit_the_latency(whole: Path, tmp_path: Path) -> None:
    macs = Run.open(whole).record.metrics["macs"]
    asked = PruneConfig(run=whole, out=tmp_path / "pruned", latency=f"{0.5 * macs / 1e6:.6f}ms")
    config = with_channels(asked, Machine())
    assert config.latency is None
    share = config.keep_channels
    assert share is not None
    options = ["--keep-channels", str(share), "--only-prune", *FAST, "--out", str(tmp_path / "pruned")]
    assert main(["prune", str(whole), *options]) == 0
    kept = Run.open(tmp_path / "pruned").record.metrics["macs"]
    assert 0.35 * macs < kept <= 0.5 * macs  # multiples of 8 channels leave steps


def test_a_latency_that_cannot_be_reached_or_is_had_already(whole: Path, tmp_path: Path) -> None:
    asked = PruneConfig(run=whole, out=tmp_path / "pruned", latency="1us")
    with pytest.raises(UsageError, match=r"cannot be reached .* it has [0-9.]+ (us|ms)"):
        with_channels(asked, Machine())
    with pytest.raises(UsageError, match="needs no pruning"):
        with_channels(replace(asked, latency="1s"), Machine())
    with pytest.raises(UsageError, match="accepted: a number above 0 with its unit"):
        with_channels(replace(asked, latency="fast"), Machine())


def test_a_pruning_goes_on_with_the_share_that_was_measured(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "pruned"
    assert main(["prune", str(whole), "--keep-channels", "0.5", "--only-prune", *FAST, "--out", str(out)]) == 0
    asked = PruneConfig(run=whole, out=out, latency="1ms", resume=True)
    assert with_channels(asked).keep_channels == 0.5
    assert main(["prune", str(whole), "--macs", "0.9", "--only-prune", *FAST, "--out", str(out), "--overwrite"]) == 0
    with pytest.raises(RunError, match="was not pruned with --latency"):
        with_channels(asked)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing given"),
        (["--latency", "1ms", "--macs", "0.5"], "--macs and --latency given"),
        (["--macs", "0.5", "--threads", "1"], "--threads"),
        (["--latency", "1ms", "--profile", "p.json", "--board", "nano"], "leave one of them out"),
        (["--latency", "1ms", "--profile-machine", "nano"], "--profile"),
    ],
)
def test_options_that_do_not_go_together(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["prune", str(whole), "--out", str(tmp_path / "pruned"), *options]) == 2
    assert message in capsys.readouterr().err


NAMES = ("resnet8", "resnet14", "resnet20", "wrn-10-1", "wrn-16-2", "dscnn-0.25", "dscnn-0.5", "dscnn-2", "cifar-vgg8")


@pytest.fixture
def profile(whole: Path, tmp_path: Path) -> Path:
    """A machine named orin, where a million products of any kind take 2 ms."""
    preprocessing = Run.open(whole).record.preprocessing
    entries = []
    for name in NAMES:
        spec = ModelSpec(name, 10, preprocessing.channels)
        work = workload(spec.build(preprocessing), preprocessing.shape)
        time = 2e-6 * (work.dense_macs + work.grouped_macs + work.linear_macs)
        summary = dict.fromkeys(("p50", "p95", "p99", "mean"), time)
        numbers = ("fp32", "fp32", "onnxruntime-cpu", 1, preprocessing.shape, "0" * 64, 10, 3)
        entries.append(ProfileEntry(name, "classification", *numbers, summary, summary, asdict(spec), preprocessing))
    path = tmp_path / "orin.json"
    Profile({**machine_facts(1), "name": "orin", "processor": "another one"}, tuple(entries)).write(path)
    return path


def test_a_profile_of_another_machine_is_refused_unless_it_is_named(whole: Path, profile: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="recorded on orin"):
        ProfileMeter(profile, None, tmp_path, ("fp32",), None)
    with pytest.raises(UsageError, match="nano was named"):
        ProfileMeter(profile, "nano", tmp_path, ("fp32",), None)
    with pytest.raises(UsageError, match="int8"):
        ProfileMeter(profile, "orin", tmp_path, ("int8",), None)


def test_latencies_of_a_profile_are_predicted(whole: Path, profile: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    assert train(["unpack", "--data", "digits", "--out", str(images)]) == 0
    run = Run.open(whole)
    meter = ProfileMeter(profile, "orin", images, ("fp32",), "cpu")
    cost = meter(run, "fp32", 5, 6)
    work = workload(run.network(), run.record.preprocessing.shape)
    assert cost.predicted
    assert cost.latency == pytest.approx(2e-6 * (work.dense_macs + work.grouped_macs + work.linear_macs), rel=0.02)
    assert (cost.memory, cost.macs, cost.parameters) == (None, 5, 6)
    assert cost.size > 4 * run.record.metrics["parameters"]


def test_the_options_measure_with_a_profile(whole: Path, profile: Path, tmp_path: Path) -> None:
    measuring = MeasuringConfig(profile=profile, profile_machine="orin")
    asked = PruneConfig(run=whole, out=tmp_path / "pruned", latency="1.5ms", measuring=measuring)
    config = with_channels(asked)
    assert config.keep_channels is not None
    assert config.measuring == MeasuringConfig()
