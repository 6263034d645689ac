"""The command itself: help for everything, without any heavy library."""

from __future__ import annotations

import subprocess
import sys

import pytest

from krl_deploy.cli import COMMANDS, main
from krl_runtime.errors import install_command


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_of_each_command(command, capsys):
    assert main([command, "--help"]) == 0
    assert (COMMANDS[command].__doc__ or "").partition("\n")[0][:30] in capsys.readouterr().out


@pytest.mark.parametrize("command", ["add", "list", "remove"])
def test_help_of_boards(command, capsys):
    assert main(["board", command, "--help"]) == 0
    assert "--json" in capsys.readouterr().out
    assert main(["on", "--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_help_names_all_commands(capsys):
    assert main(["--help"]) == 0
    output = capsys.readouterr().out
    for command in ("export", "import", "fp16", "quantize", "build-engine", "inspect-engine"):
        assert command in COMMANDS
        assert f"  {command} " in output


def test_help_loads_no_heavy_library():
    code = (
        "import sys; from krl_deploy.cli import main; main(['--help']); "
        "print([name for name in ('torch', 'onnx', 'onnxruntime', 'tensorrt', 'krl_train') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_without_torch_everything_but_export_works(bundle, digits):
    """A device has no torch: the rest of the commands neither imports it nor the training package."""
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'krl_train'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from krl_deploy.cli import main\n"
        f"assert main(['fp16', {str(bundle.path)!r}, '--accept-unmeasured']) == 0\n"
        f"assert main(['quantize', {str(bundle.path)!r}, '--data', {str(digits)!r}, '--limit', '64']) == 0\n"
        f"assert main(['export', 'run', '-o', 'x.krl']) == 2\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert f"install it with: {install_command('train')}" in result.stderr


def test_unknown_options_are_refused():
    with pytest.raises(SystemExit) as exit_:
        main(["quantize", "a.krl", "--data", "b", "--no-such-option"])
    assert exit_.value.code == 2


def test_a_configuration_file(bundle, digits, tmp_path, capsys):
    file = tmp_path / "half.yaml"
    file.write_text(f"data: {digits}\nval_limit: 30\naccept_unmeasured: true\n", encoding="utf-8")
    assert main(["fp16", str(bundle.path), "--config", str(file)]) == 0
    assert "measured on 30 images of digits" in capsys.readouterr().out
