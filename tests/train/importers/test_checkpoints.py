"""Checkpoints as training scripts leave them: the network's weights are found among everything else."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from _helpers.images import make_split_folder
from krl_runtime.errors import ModelError
from krl_train.cli import main
from krl_train.importers.matching import match_weights
from krl_train.importers.weights import read_weights
from krl_train.models import build_model
from krl_train.run import Run

NETWORK = "resnet8"
State = dict[str, Tensor]


def weights(seed: int) -> State:
    """A network's state with statistics that are not those of a new one."""
    torch.manual_seed(seed)
    state = build_model(NETWORK, 2).state_dict()
    return {name: torch.rand_like(value) + 0.1 if value.is_floating_point() else value for name, value in state.items()}


def named(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


RIGHT, OTHER = weights(1), weights(2)
NOTHING_TRACKED = {name: value for name, value in RIGHT.items() if "tracked" not in name}
HALF = {name: value.half() if value.is_floating_point() else value for name, value in RIGHT.items()}
COUNTERS = {
    f"{name}.{count}": torch.zeros(1) for name in ("conv1", "layer1.0.bn1") for count in ("total_ops", "total_params")
}
WIDE = {name: torch.zeros(*value.shape, 2) for name, value in RIGHT.items()}
OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}

FILES: dict[str, Any] = {
    # a wrapper's prefix, alone and in one another
    "module.": named(RIGHT, "module."),
    "_orig_mod.": named(RIGHT, "_orig_mod."),
    "_orig_mod.module.": named(RIGHT, "_orig_mod.module."),
    "module._orig_mod.": named(RIGHT, "module._orig_mod."),
    "backbone.module.model.": named(RIGHT, "backbone.module.model."),
    "a block compiled alone": {re.sub(r"^layer1\.", "layer1._orig_mod.", name): value for name, value in RIGHT.items()},
    "a stage in DataParallel": {re.sub(r"^layer2\.", "layer2.module.", name): value for name, value in RIGHT.items()},
    "an attribute of one's own": named(RIGHT, "my_net.encoder."),
    # an entry, alone and in one another
    "state_dict": {"state_dict": RIGHT, "epoch": 3, "optimizer": OPTIMIZER},
    "Lightning": {"state_dict": named(RIGHT, "model."), "optimizer_states": [OPTIMIZER], "epoch": 3, "loops": {}},
    "Lightning, compiled": {"state_dict": named(RIGHT, "net._orig_mod.")},
    "Lightning with class weights": {"state_dict": {**named(RIGHT, "model."), "criterion.weight": torch.ones(2)}},
    "BasicSR": {"params": RIGHT},
    "BasicSR in one another": {"params_ema": {"params": named(RIGHT, "module.")}},
    "BasicSR the other way": {"params": {"params_ema": RIGHT}},
    "deep": {"checkpoint": {"ema": {"state": {"module": named(RIGHT, "model.")}}}},
    "a list of models": {"models": [RIGHT]},
    # averaged weights alone, or beside the plain ones: they are taken
    "model_ema": {"model_ema": RIGHT, "epoch": 1},
    "timm": {"state_dict": OTHER, "state_dict_ema": RIGHT, "arch": "resnet8"},
    "BasicSR, both": {"params": OTHER, "params_ema": RIGHT},
    "ema. beside plain names": {**OTHER, **named(RIGHT, "ema.")},
    "AveragedModel": {"model": OTHER, "averaged": {**named(RIGHT, "module."), "n_averaged": torch.tensor(7)}},
    "ema_state_dict": {"ema_state_dict": named(RIGHT, "module."), "model": OTHER},
    "camel case": {"model": OTHER, "modelEMA": RIGHT},
    "a generator's": {"g": OTHER, "g_ema": RIGHT},
    # a teacher beside the student, of the same network and of another
    "student and teacher": {**named(RIGHT, "student."), **named(OTHER, "teacher.")},
    "teacher first": {"state_dict": {**named(OTHER, "teacher."), **named(RIGHT, "student.module.")}},
    "a wide teacher": {"state_dict": {**named(WIDE, "teacher."), **named(RIGHT, "student.")}},
    "a teacher beside plain names": {**named(OTHER, "teacher."), **RIGHT},
    "a wide teacher beside plain names": {**RIGHT, **named(WIDE, "teacher.")},
    "only a teacher": {"teacher": RIGHT},
    # counters, missing or extra
    "profiler": {**RIGHT, **COUNTERS, "total_ops": torch.zeros(1)},
    "profiler behind a prefix": named({**RIGHT, **COUNTERS}, "module."),
    "nothing tracked": NOTHING_TRACKED,
    "nothing tracked, compiled": {"model": named(NOTHING_TRACKED, "_orig_mod.")},
    "n_averaged": {"n_averaged": torch.tensor(3), **named(RIGHT, "module.")},
    "optimizer beside plain names": {**RIGHT, "optimizer": OPTIMIZER},
    "the optimizer has the names, too": {"optimizer": {"momentum": OTHER}, "net": RIGHT},
}


def loaded(content: Any, folder: Path, key: str | None = None) -> tuple[State, str]:
    torch.save(content, folder / "weights.pth")
    torch.manual_seed(9)
    model = build_model(NETWORK, 2)
    entry = match_weights(read_weights(folder / "weights.pth"), model, "file", key=key)
    return model.state_dict(), entry


def assert_right(state: State, wanted: State = RIGHT) -> None:
    assert all(torch.equal(value, wanted[name]) for name, value in state.items() if "tracked" not in name)


@pytest.mark.parametrize("name", FILES)
def test_the_weights_are_found(name: str, tmp_path: Path) -> None:
    state, _ = loaded(FILES[name], tmp_path)
    assert_right(state)


def test_half_precision_is_widened(tmp_path: Path) -> None:
    state, entry = loaded(HALF, tmp_path)
    assert_right(state, {name: value.float() for name, value in HALF.items()})
    assert entry == "."


@pytest.mark.parametrize(
    ("content", "taken", "left"),
    [
        ({"params": OTHER, "params_ema": RIGHT}, "params_ema", "params"),
        ({"net": RIGHT, "teacher_ema": OTHER}, "net", "teacher_ema"),
        ({"first": RIGHT, "second": OTHER}, "first", "second"),
        ({**OTHER, **named(RIGHT, "ema.")}, "ema", "."),
    ],
)
def test_a_choice_is_logged(
    content: Any, taken: str, left: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "krl"):
        state, entry = loaded(content, tmp_path)
    assert_right(state)
    assert entry == taken
    assert f"taken is {taken}, not {left} (" in caplog.text
    assert "choose with --weights-key" in caplog.text


def test_equal_weights_are_no_choice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "krl"):
        _, entry = loaded({"params": RIGHT, "params_ema": RIGHT}, tmp_path)
    assert (entry, caplog.text) == ("params_ema", "")


@pytest.mark.parametrize(
    ("content", "key", "entry"),
    [
        ({"params": RIGHT, "params_ema": OTHER}, "params", "params"),
        (
            {"state_dict": {**named(OTHER, "student."), **named(RIGHT, "teacher.net.")}},
            "teacher",
            "state_dict.teacher.net",
        ),
        ({"a": {"net": OTHER}, "b": {"net": RIGHT}}, "b.net", "b.net"),
        ({**RIGHT, **named(OTHER, "ema.")}, ".", "."),
    ],
)
def test_the_user_chooses(content: Any, key: str, entry: str, tmp_path: Path) -> None:
    state, taken = loaded(content, tmp_path, key)
    assert_right(state)
    assert taken == entry


def test_a_key_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--weights-key nets names no weights of the network; entries that fit: b, a"):
        loaded({"b": OTHER, "a": RIGHT}, tmp_path, "nets")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"fc2.weight": torch.zeros(2, 2)}, r"1 not known to the network: fc2\.weight"),
        ({"layer1.0.se.fc.weight": torch.zeros(2, 2)}, r"not known to the network: layer1\.0\.se\.fc\.weight"),
        ({"layer1.1.conv1.weight": torch.zeros(2, 2)}, r"not known to the network: layer1\.1\.conv1\.weight"),
        ({"alpha": torch.zeros(1)}, "not known to the network: alpha"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module.", "state_dict.model."])
def test_layers_that_the_network_lacks_are_refused(extra: State, message: str, prefix: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        loaded(named({**RIGHT, **extra}, prefix), tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"model": {name: value for name, value in RIGHT.items() if "running" not in name}},
            r"\(entry model\) .*14 missing: bn1\.running",
        ),
        ({"net": WIDE}, r"\(entry net\) .*of another shape: .* expected"),
        ({"a": {"b.weight": torch.zeros(1)}}, r"1 not known to the network: a\.b\.weight"),
    ],
)
def test_what_does_not_fit_names_its_entry(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        loaded(content, tmp_path)


class Unknown(nn.Module):
    """A network of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)


class Settings:
    """Not a tensor."""


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("content", "type_name"),
    [
        (Unknown(), r"test_checkpoints\.Unknown"),
        (nn.Sequential(nn.Conv2d(3, 4, 3)), r"torch\.nn\.modules\.\w+\.\w+"),
        (
            {"G": RIGHT, "optimizer_G": torch.optim.Adam([torch.zeros(1, requires_grad=True)])},
            r"torch\.optim\.adam\.Adam",
        ),
        ({"state_dict": RIGHT, "args": Settings()}, r"test_checkpoints\.Settings"),
        ({"state_dict": RIGHT, "when": Path("x")}, r"pathlib\.\w+"),
    ],
)
def test_other_objects_are_refused_by_their_type(content: Any, type_name: str, old: bool, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not old)
    with pytest.raises(ModelError) as error:
        read_weights(tmp_path / "w.pth")
    text = str(error.value)
    assert re.search(rf"cannot be read as weights alone: .*of the types .*{type_name}", text), text
    assert "weights_only" not in text
    assert "re-running" not in text


def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "w.pt"))
    with pytest.raises(ModelError, match="TorchScript archive, which holds code") as error:
        read_weights(tmp_path / "w.pt")
    assert "weights_only" not in str(error.value)


def test_the_advice_works(tmp_path: Path) -> None:
    model = build_model(NETWORK, 2)
    torch.save(model, tmp_path / "whole.pth")
    with pytest.raises(ModelError) as error:
        read_weights(tmp_path / "whole.pth")
    lines = [line.strip() for line in str(error.value).splitlines() if "save_file" in line]
    assert len(lines) == 2
    code = "\n".join(lines).replace("weights.safetensors", str(tmp_path / "weights.safetensors"))
    exec(code, {"model": model})  # as the message says
    other = build_model(NETWORK, 2)
    match_weights(read_weights(tmp_path / "weights.safetensors"), other, "file")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())


def test_endless_entries_are_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["again"] = content
    torch.save(content, tmp_path / "loop.pth")
    with pytest.raises(ModelError, match="more than 16 in one another"):
        read_weights(tmp_path / "loop.pth")
    many: Any = torch.zeros(1)
    for _ in range(15):
        many = {str(index): many for index in range(4)}  # small in the file, 4**15 entries
    torch.save(many, tmp_path / "many.pth")
    with pytest.raises(ModelError, match="more than 1000000 entries"):
        read_weights(tmp_path / "many.pth")


def test_the_run_names_the_entry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_split_folder(tmp_path / "data")
    torch.save({"params": OTHER, "params_ema": RIGHT}, tmp_path / "w.pth")
    save_file(named(RIGHT, "net."), tmp_path / "w.safetensors")
    for file, key, entry, wanted in (
        ("w.pth", [], "params_ema", RIGHT),
        ("w.pth", ["--weights-key", "params"], "params", OTHER),
        ("w.safetensors", [], "net", RIGHT),
    ):
        options = ["--weights", str(tmp_path / file), "--model", NETWORK, "--data", str(data), "--device", "cpu", *key]
        assert main(["import", *options, "--out", str(tmp_path / "run"), "--overwrite", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["trained_on"] == "not known: the weights were imported"
        run = Run.open(tmp_path / "run")
        assert run.record.parent is not None
        assert run.record.parent["entry"] == entry
        assert_right(run.state(), wanted)
