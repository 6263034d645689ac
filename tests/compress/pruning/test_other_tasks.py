"""``krl-compress prune`` for restorers and generators: the result is an ordinary run of its task."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from _helpers.generation import gan_config
from _helpers.images import blurred_noise
from _helpers.resuming import stopped_at_checkpoint
from krl_compress.cli import main
from krl_deploy.cli import main as deploy
from krl_runtime.errors import RunError
from krl_train.cli import main as train
from krl_train.config import ConditioningConfig, GenerationConfig
from krl_train.run import ModelSpec, Run
from krl_train.training.fit import fit

FAST = ["--epochs", "1", "--precision", "fp32", "--device", "cpu"]
RESTORERS, GENERATORS = ("edsr-1-16", "espcn-32"), ("dcgan", "labels", "vae")
OPTIONS = {
    **{key: [*FAST, "--batch-size", "4"] for key in RESTORERS},
    **{key: [*FAST, "--batch-size", "32", "--limit", "64", "--val-limit", "64"] for key in GENERATORS},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for split, count in (("train", 3), ("val", 2)):
        (folder / split).mkdir()
        for index in range(count):
            blurred_noise(48, (count, index), 2).save(folder / split / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a kind of network to the folder of its run, which is trained once."""
    folder, made = tmp_path_factory.mktemp("whole"), {}

    def train_once(kind: str) -> Path:
        if kind not in made:
            made[kind] = folder / kind
            if kind in RESTORERS:
                given = ["--model", kind, "--data", str(images), "--scale", "2", "--size", "12", *OPTIONS[kind]]
                assert train(["fit", "--task", "restoration", "--out", str(folder / kind), *given]) == 0
            else:
                asked = gan_config(folder / kind, model="dcgan-16", generation=GenerationConfig(latent=6))
                if kind == "labels":
                    asked = replace(asked, conditioning=ConditioningConfig(condition="labels", condition_dim=4))
                fit(replace(asked, task="vae") if kind == "vae" else asked)
        return made[kind]

    return train_once


@pytest.fixture(scope="module")
def pruned(whole: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder, made = tmp_path_factory.mktemp("pruned"), {}

    def prune_once(kind: str) -> Path:
        if kind not in made:
            made[kind] = folder / kind
            criterion = "taylor" if kind in RESTORERS else "group"
            given = ["--keep-channels", "0.5", "--criterion", criterion, "--sensitivity", *OPTIONS[kind]]
            assert main(["prune", str(whole(kind)), "--out", str(made[kind]), *given]) == 0
        return made[kind]

    return prune_once


def inputs(run: Run, count: int = 3) -> list[np.ndarray]:
    """Return what a device gives to a network: pixels, or latents and conditions."""
    rng, record = np.random.default_rng(0), run.record
    if record.task == "restoration":
        return [rng.integers(0, 256, (count, *record.preprocessing.shape)).astype(np.uint8)]
    given = [rng.standard_normal((count, record.model.arguments["latent"]), dtype=np.float32)]
    if "condition" in record.model.arguments:
        given.append(rng.integers(0, 10, (count, 1)).astype(np.int64))
    return given


def macs(run: Run) -> int:
    """Count multiplications by the shapes of weights and maps, without torch's counter."""
    total, network = 0, run.module()

    def add(module: torch.nn.Module, given: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal total
        every = given[0] if isinstance(module, torch.nn.ConvTranspose2d) else output
        total += module.weight[0].numel() * every[0].numel()

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d | torch.nn.Linear):
            module.register_forward_hook(add)
    with torch.no_grad():
        network(*map(torch.from_numpy, inputs(run, 1)))
    if run.record.task == "restoration":  # the bicubic enlargement, a convolution of 5 x 5 without a layer
        total += 25 * run.record.model.arguments["scale"] ** 2 * int(np.prod(run.record.preprocessing.shape))
    return total


@pytest.mark.parametrize("kind", [*RESTORERS, *GENERATORS])
def test_the_result_is_an_ordinary_run(kind, whole, pruned, tmp_path: Path) -> None:
    before, after = Run.open(whole(kind)), Run.open(pruned(kind))
    assert after.record.command == "krl-compress prune"
    assert after.record.task == before.record.task
    assert after.record.metrics["macs"] == macs(after) < 0.6 * macs(before) == 0.6 * before.record.metrics["macs"]
    assert after.record.history
    (step,) = after.record.metrics["pruning"]["steps"]
    assert step["macs"] == macs(after)
    assert step["psnr"] > 0
    assert train(["evaluate", str(pruned(kind)), "--device", "cpu"]) == 0
    taught = ["--teacher", str(pruned(kind)), "--student", str(pruned(kind)), "--out", str(tmp_path / "taught")]
    assert main(["distill", *taught, *OPTIONS[kind]]) == 0
    assert macs(Run.open(tmp_path / "taught")) == macs(after)
    wide = ["--teacher", str(pruned(kind)), "--student", before.record.model.name, "--out", str(tmp_path / "wide")]
    assert main(["distill", *wide, *OPTIONS[kind]]) == 0
    assert macs(Run.open(tmp_path / "wide")) == macs(before)  # a student by name has all of its channels
    again = ["--macs", "0.8", "--only-prune", "--multiple", "2", "--out", str(tmp_path / "again"), *OPTIONS[kind]]
    assert main(["prune", str(pruned(kind)), *again]) == 0
    assert macs(Run.open(tmp_path / "again")) <= 0.8 * macs(after)


@pytest.mark.parametrize("kind", ["edsr-1-16", "labels"])
def test_training_goes_on_from_it(kind, pruned, images: Path, tmp_path: Path) -> None:
    given = ["--from", str(pruned(kind)), "--out", str(tmp_path / "more"), *OPTIONS[kind]]
    if kind in RESTORERS:
        given += ["--task", "restoration", "--data", str(images), "--scale", "2", "--size", "12"]
    else:
        given += ["--task", "gan", "--data", "digits", "--condition", "labels", "--condition-dim", "4"]
    assert train(["fit", *given]) == 0
    assert macs(Run.open(tmp_path / "more")) == macs(Run.open(pruned(kind)))


@pytest.mark.parametrize("kind", ["edsr-1-16", "espcn-32", "dcgan", "labels"])
def test_it_is_exported_as_it_computes(kind, pruned, tmp_path: Path) -> None:
    bundle = tmp_path / "pruned.krl"
    assert deploy(["export", str(pruned(kind)), "-o", str(bundle)]) == 0
    run = Run.open(pruned(kind))
    given = inputs(run)
    with torch.no_grad():
        expected = run.module()(*map(torch.from_numpy, given)).numpy()
    session = onnxruntime.InferenceSession(bundle / "model.fp32.onnx", providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    found = session.run(None, dict(zip(names, given, strict=True)))[0]
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("kind", ["edsr-1-16", "dcgan"])
def test_it_is_quantized(kind, pruned, images: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "pruned.krl"
    assert deploy(["export", str(pruned(kind)), "-o", str(bundle)]) == 0
    limits = ["--data", str(images), "--max-drop", "5"] if kind in RESTORERS else ["--min-psnr", "10"]
    assert deploy(["quantize", str(bundle), *limits, "--accept-unmeasured"]) == 0
    assert (bundle / "model.int8.onnx").is_file()


@pytest.mark.parametrize("kind", ["edsr-1-16", "dcgan"])
def test_sensitivity_has_the_unit_of_the_task(kind, pruned, capsys) -> None:
    found = json.loads((pruned(kind) / "sensitivity.json").read_bytes())
    assert (pruned(kind) / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    assert (found["metric"], found["unit"]) == ("psnr", "dB")
    assert found["images"] == (2 if kind in RESTORERS else 1000)
    assert found["layers"]
    values = [value for row in found["layers"] for value in row["pruned"].values()]
    assert all(0 < value < 100 for value in values)
    if kind in RESTORERS:
        assert found["whole"] == Run.open(pruned(kind)).record.metrics["teacher"]["psnr"]
    else:
        assert found["whole"] is None  # a generator's images are as its own


@pytest.mark.parametrize("kind", ["edsr-1-16", "espcn-32", "dcgan", "labels"])
def test_an_interrupted_pruning_goes_on(kind, whole, tmp_path: Path) -> None:
    options = ["--keep-channels", "0.5", "--steps", "2", "--multiple", "4", *OPTIONS[kind]]
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert main(["prune", str(whole(kind)), "--out", str(straight), *options]) == 0
    for more in ([], ["--resume"]):  # in the first distillation, and in the second
        with stopped_at_checkpoint(1):
            assert main(["prune", str(whole(kind)), "--out", str(stopped), *options, *more]) != 0
        with pytest.raises(RunError, match="not finished"):
            Run.open(stopped)
    assert main(["prune", "--resume", "--out", str(stopped)]) == 0
    found, expected = Run.open(stopped), Run.open(straight)
    assert found.record.model == expected.record.model
    assert all(torch.equal(value, expected.state()[name]) for name, value in found.state().items())


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("dcgan", ["--criterion", "taylor"], "(--criterion taylor) is not to be had for generators"),
        ("labels", ["--criterion", "bn"], "it has no factors of batch normalization"),
        ("edsr-1-16", ["--criterion", "bn"], "it has no factors of batch normalization"),
        ("edsr-1-16", ["--alpha", "0.5"], "--alpha is for classification"),
        ("edsr-1-16", ["--latents", "5"], "--latents is for gan"),
        ("edsr-1-16", ["--loss", "kd"], "unknown loss 'kd'"),
        ("dcgan", ["--online"], "--online trains a new teacher"),
        ("dcgan", ["--loss", "kd"], "unknown loss 'kd'"),
    ],
)
def test_what_a_task_does_not_have_is_refused(kind, options, message, whole, tmp_path: Path, capsys) -> None:
    given = ["--keep-channels", "0.5", "--out", str(tmp_path / "no"), *OPTIONS[kind], *options]
    assert main(["prune", str(whole(kind)), *given]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "no").exists()


def test_widths_that_do_not_fit_are_refused(pruned, tmp_path: Path) -> None:
    run = Run.open(pruned("dcgan"))
    arguments = {**run.record.model.arguments, "pruned": {"nowhere": {"out_channels": 8}}}
    record = replace(run.record, model=ModelSpec("dcgan-16", 0, 1, arguments))
    assert train(["evaluate", str(Run.write(tmp_path / "wrong", record, run.state()).path)]) == 2
