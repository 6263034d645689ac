"""Commands from configurations: help by task, files of options, what is refused, and how a run is resumed."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from krl_runtime.cli.dispatch import Program, dispatch, value_of
from krl_runtime.cli.options import Advanced, Only, refuse_other_tasks


@dataclass(frozen=True)
class Section:
    depth: int = 3
    """How deep it is."""
    layers: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()


@dataclass(frozen=True)
class Options:
    name: str
    """What to call it."""
    count: int = 1
    sizes: tuple[int, ...] = (1, 2)
    loud: bool = False
    task: str = "gan"
    width: Advanced[int] = 7
    """How wide it is."""
    beta: Annotated[float | None, Only("vae")] = None
    """How strict it is."""
    section: Annotated[Section, Only("vae")] = field(default_factory=Section)
    out: Path | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        refuse_other_tasks(self, self.task)


SEEN: list[Options] = []


def make(options: Options) -> int | None:
    """Make something.

    At length.
    """
    SEEN.append(options)
    return 4 if options.count == 4 else None


def run(*arguments: str) -> int:
    SEEN.clear()
    program = Program(
        "krl-x",
        "Makes things.",
        {"make": make, "fp16": make},
        task_of={"make": lambda given: value_of(given, "--task") or "gan"},
        record="record.json",
    )
    return dispatch(program, arguments)


def test_dispatch_fills_the_configuration():
    assert run("make", "--name", "a", "--sizes", "3", "4", "5", "--loud") == 0
    assert [Options("a", 1, (3, 4, 5), True)] == SEEN
    assert run("make", "--name", "a", "--count", "4") == 4


def test_dispatch_helps(capsys: pytest.CaptureFixture[str]):
    assert run("--help") == 0
    out = capsys.readouterr().out
    assert "usage: krl-x COMMAND" in out
    assert "make           Make something." in out
    assert run() == 2
    assert run("--version") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("krl-x 0.")
    assert run("make", "--help") == 0
    assert "What to call it." in capsys.readouterr().out


def test_dispatch_refuses(capsys: pytest.CaptureFixture[str]):
    assert run("mkae") == 2
    assert "unknown command 'mkae' (did you mean 'make'?); accepted: make, fp16" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        run("make", "--nmae", "a")
    assert caught.value.code == 2


def test_configuration_files(tmp_path: Path):
    file = tmp_path / "options.yaml"
    file.write_text("name: from file\npart:\n  count: 7\n  sizes: [8, 9]\nloud: true\n")
    assert run("make", "--config", str(file)) == 0
    assert [Options("from file", 7, (8, 9), True)] == SEEN
    file.write_text("loud: false\ncount: 7\n")
    assert run("make", f"--config={file}", "--name", "a", "--count", "2") == 0
    assert [Options("a", 2, (1, 2), False)] == SEEN


@pytest.mark.parametrize(
    ("content", "message"), [("- a\n", "is not a mapping"), ("a: [", "cannot be read"), (None, "cannot be read")]
)
def test_configuration_files_that_are_none(
    tmp_path: Path, content: str | None, message: str, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "options.yaml"
    if content is not None:
        file.write_text(content)
    assert run("make", "--config", str(file)) == 2
    assert message in capsys.readouterr().err
    assert run("make", "--config") == 2
    assert "--config needs a YAML file" in capsys.readouterr().err


def test_unknown_keys_in_a_configuration_are_refused(tmp_path: Path):
    file = tmp_path / "options.yaml"
    file.write_text("name: a\nnumber: 3\n")
    with pytest.raises(SystemExit) as caught:
        run("make", "--config", str(file))
    assert caught.value.code == 2


def test_a_missing_tyro_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert run("make", "--name", "a") == 2
    assert "the krl-x command needs tyro, which is not installed" in capsys.readouterr().err


def test_help_shows_what_the_task_has(capsys: pytest.CaptureFixture[str]):
    assert run("make", "--help") == 0
    out = capsys.readouterr().out
    assert "options of the task gan" in out
    assert "--count" in out
    assert not {"--width", "--beta", "--depth"} & set(out.split())
    assert run("make", "--help-all") == 0
    out = capsys.readouterr().out
    assert "How wide it is." in out
    assert "--beta" not in out
    assert run("make", "--task", "vae", "--help") == 0
    out = capsys.readouterr().out
    assert "--beta FLOAT" in out
    assert "--depth INT" in out
    assert "None}" not in out
    assert "--width" not in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--beta", "1"], "--beta is for vae; the task is gan, leave it out"),
        (["--depth", "4"], "--depth is for vae; the task is gan, leave it out"),
        (["--layers", "a"], "--layers is for vae; the task is gan"),
    ],
)
def test_options_of_other_tasks_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert run("make", "--name", "a", *arguments) == 2
    assert message in capsys.readouterr().err
    assert run("make", "--name", "a", "--task", "vae", *arguments) == 0


def test_names_that_changed_say_the_new_one(capsys: pytest.CaptureFixture[str]):
    assert run("half", "--name", "a") == 2
    assert "krl-x half is krl-x fp16 now" in capsys.readouterr().err
    assert run("make", "--name", "a", "--colour=rgb") == 2
    assert "--colour is --color now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "sizes"), [("sizes: [032, 8]", (32, 8)), ("sizes:\n- 010", (10,)), ("sizes: [1_0]", (10,))]
)
def test_numbers_in_files_are_read_as_on_the_command_line(tmp_path: Path, content: str, sizes: tuple[int, ...]):
    (tmp_path / "a.yaml").write_text(f"name: a\n{content}\n")
    assert run("make", "--config", str(tmp_path / "a.yaml")) == 0
    assert SEEN[0].sizes == sizes


def test_what_is_no_number_and_keys_that_are_given_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a.yaml").write_text("name: a\ncount: 1:30\n")
    with pytest.raises(SystemExit) as caught:
        run("make", "--config", str(tmp_path / "a.yaml"))
    assert caught.value.code == 2
    (tmp_path / "a.yaml").write_text("name: a\ncount: 1\ncount: 2\n")
    assert run("make", "--config", str(tmp_path / "a.yaml")) == 2
    error = capsys.readouterr().err
    assert "count" in error
    assert "duplicate key" in error


def test_the_run_holds_its_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    stored = {"name": "b", "count": 5, "loud": True, "task": "vae", "section": {"depth": 9, "layers": ["x", "y"]}}
    record = {"command": "krl-x make", "configuration": {**stored, "beta": None, "out": "elsewhere", "resume": False}}
    (tmp_path / "record.json").write_text(json.dumps(record))
    assert run("make", "--resume", "--out", str(tmp_path)) == 0
    expected = Options("b", 5, loud=True, task="vae", section=Section(9, ("x", "y")), out=tmp_path, resume=True)
    assert [expected] == SEEN
    assert run("make", "--resume", f"--out={tmp_path}", "--count", "6") == 0
    assert SEEN[0].count == 6
    (tmp_path / "record.json").write_text(json.dumps({**record, "command": "krl-y train"}))
    assert run("make", "--resume", "--out", str(tmp_path)) == 2
    assert f"continue it with: krl-y train --resume --out {tmp_path}" in capsys.readouterr().err


def test_an_interrupted_command_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def interrupted(options: Options) -> int | None:
        raise KeyboardInterrupt

    (tmp_path / "record.json").write_text("{}")
    program = Program("krl-x", "Makes things.", {"make": interrupted}, record="record.json")
    assert dispatch(program, ["make", "--name", "a", "--out", str(tmp_path)]) == 130
    assert f"continue with: krl-x make --resume --out {tmp_path}\n" in capsys.readouterr().err
