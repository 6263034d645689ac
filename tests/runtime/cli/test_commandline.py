from __future__ import annotations

import errno
import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from krl_runtime import Preprocessing
from krl_runtime.cli.bars import progress_bar
from krl_runtime.cli.commandline import guard, next_command, print_json
from krl_runtime.cli.tables import table
from krl_runtime.errors import CheckFailedError, UsageError
from krl_runtime.progress import progress, show_with


def raising(error: BaseException):
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("no such option"), 2, "krl-x: error: no such option"),
        (CheckFailedError("accuracy fell"), 1, "krl-x: error: accuracy fell"),
        (KeyboardInterrupt(), 130, "krl-x: interrupted"),
        (OSError(errno.ENOSPC, "x"), 2, "the disk is full; what was there before is untouched"),
        (PermissionError(errno.EACCES, "x", "/data/a"), 2, r"permission denied; check the owner .* (/data/a)"),
        (FileNotFoundError(errno.ENOENT, "x", "b.krl"), 2, "no such file or folder (b.krl)"),
        (OSError(errno.EIO, "broken disk"), 1, "broken disk"),
        (ZeroDivisionError("oops"), 1, "this is a failure of krl, not of your input; please report it"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_guard_turns_errors_into_messages_and_codes(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
):
    assert guard("krl-x", raising(error)) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert all(part in err for part in message.split(" .* "))
    assert ("Traceback" in err) == (type(error) is ZeroDivisionError or "broken disk" in message)


def test_guard_returns_codes_and_logs_to_standard_error(capsys: pytest.CaptureFixture[str]):
    def command() -> int:
        logging.getLogger("krl").info("working on %s", "it")
        logging.getLogger("krl").debug("details")
        return 3

    assert guard("krl-x", command) == 3
    assert capsys.readouterr().err == "working on it\n"
    assert guard("krl-x", lambda: None) == 0


def test_log_level(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("KRL_LOG_LEVEL", "debug")
    guard("krl-x", lambda: logging.getLogger("krl").debug("details"))
    assert capsys.readouterr().err == "details\n"
    monkeypatch.setenv("KRL_LOG_LEVEL", "loud")
    assert guard("krl-x", lambda: 0) == 2
    assert "KRL_LOG_LEVEL is 'LOUD'; accepted: DEBUG, INFO" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_failure():
    code = (
        "from krl_runtime.cli.commandline import guard\n"
        "raise SystemExit(guard('x', lambda: print('line\\n' * 100_000)))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_json_is_one_value_of_plain_types(capsys: pytest.CaptureFixture[str]):
    value = {"a": np.float32(0.5), "b": np.arange(3), "c": Path("x"), "d": Preprocessing(4, 4), "é": None}
    print_json(value)
    out = capsys.readouterr().out
    assert "é" in out
    read = json.loads(out)
    assert (read["a"], read["b"], read["c"], read["d"]["height"]) == (0.5, [0, 1, 2], "x", 4)


def test_tables_align_numbers_to_the_right():
    text = table(("name", "size", "note"), [("a", 5, "x"), ("long name", 1234, None), ("b", None, "5 of 6")])
    assert text.splitlines() == [
        "name       size  note",
        "---------  ----  ------",
        "a             5  x",
        "long name  1234  -",
        "b             -  5 of 6",
    ]
    assert table(("a",), []) == "a\n-"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def bars():
    show_with(progress_bar)
    yield
    show_with(None)


def test_progress_is_silent_unless_a_program_shows_it(monkeypatch: pytest.MonkeyPatch):
    show_with(None)
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress(range(3), "counting")) == [0, 1, 2]
    assert sys.stderr.getvalue() == ""
    guard("krl-x", lambda: list(progress(range(3), "counting")) and None)
    assert "counting" in sys.stderr.getvalue()
    guard("krl-x", lambda: None, quiet=True)
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress(range(3), "counting")) == [0, 1, 2]
    assert sys.stderr.getvalue() == ""


def test_quiet_keeps_warnings_alone(capsys: pytest.CaptureFixture[str]):
    def command() -> None:
        logging.getLogger("krl").info("working")
        logging.getLogger("krl").warning("careful")
        next_command("krl-x make")

    guard("krl-x", command)
    assert capsys.readouterr().err == "working\ncareful\nnext: krl-x make\n"
    guard("krl-x", command, quiet=True)
    assert capsys.readouterr().err == "careful\n"


def test_a_command_that_runs_for_another_machine_names_the_command_of_that_machine(capsys, monkeypatch):
    monkeypatch.setenv("KRL_NEXT_PREFIX", "krl-deploy on jetson")
    guard("krl-x", lambda: next_command("tar xf a.tar", "krl-runtime selftest a.krl"))
    assert capsys.readouterr().err == "next: tar xf a.tar\nnext: krl-deploy on jetson selftest a.krl\n"


@pytest.mark.usefixtures("bars")
def test_progress_is_shown_on_terminals_only(monkeypatch: pytest.MonkeyPatch):
    for stream, shown in ((io.StringIO(), False), (Terminal(), True)):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", "xterm")
        assert list(progress(range(3), "counting")) == [0, 1, 2]
        assert list(progress(iter("ab"), "spelling", total=2)) == ["a", "b"]
        assert ("counting" in stream.getvalue()) == shown


@pytest.mark.usefixtures("bars")
def test_progress_without_rich(monkeypatch: pytest.MonkeyPatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    assert list(progress(range(3), "counting")) == [0, 1, 2]
    assert stream.getvalue() == ""


def test_a_library_that_a_command_stands_on_is_named_with_its_extra(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch.nn")

    assert guard("krl-x", command) == 2
    assert "this command needs torch" in capsys.readouterr().err

    def broken() -> None:
        raise ModuleNotFoundError("No module named 'ours'", name="ours")

    assert guard("krl-x", broken) == 1
