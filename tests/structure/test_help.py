"""The help of each command fits on a screen: at most 100 lines at 80 columns, with the options of its task alone."""

from __future__ import annotations

import importlib

import pytest

TASKS = ("classification", "gan", "vae", "restoration", "translation", "style")
COMMANDS = [
    *(("krl_train", ["fit", "--task", task]) for task in TASKS),
    *(("krl_train", [name]) for name in ("evaluate", "explain", "import", "unpack", "models", "recipes")),
    *(("krl_compress", [name]) for name in ("distill", "mutual", "joint", "prune", "study", "recipes")),
    *(
        ("krl_deploy", [name])
        for name in (
            *("export", "import", "fp16", "quantize", "check", "compare"),
            *("build-engine", "inspect-engine", "refit", "report", "package"),
        )
    ),
]


@pytest.mark.parametrize(
    ("package", "arguments"), COMMANDS, ids=lambda value: value if value == str(value) else value[-1]
)
def test_help_fits_on_a_screen(package, arguments, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main = importlib.import_module(f"{package}.cli").main
    assert main([*arguments, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 10 < len(lines) <= 100
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if "None}" in line]
    assert main([*arguments, "--help-all"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= len(lines) - 1  # without the line that names --help-all
