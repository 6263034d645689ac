"""Standard output belongs to the process: no thread takes it from the others."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

import krl_runtime
from krl_runtime import BackendError
from krl_runtime.backends import onnxruntime as backend


def test_preparing_cuda_prints_nothing_and_leaves_standard_output(monkeypatch, capsys):
    """Two threads prepare at once, in an order that leaves a redirection behind."""
    both, stdout = threading.Barrier(2), sys.stdout

    def preload_dlls(cuda: bool = True) -> None:
        print("a library is missing")
        both.wait(20)

    ort = SimpleNamespace(
        __version__="1", __file__=__file__, preload_dlls=preload_dlls, get_available_providers=lambda: [backend._CUDA]
    )
    threads = [threading.Thread(target=backend._prepare_cuda, args=(ort,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sys.stdout is stdout
    assert capsys.readouterr().out == ""
    ort.preload_dlls = io.StringIO().flush  # a function without Python code is called as it is
    backend._prepare_cuda(ort)


def test_an_error_of_a_library_arrives(monkeypatch):
    def preload_dlls() -> None:
        raise OSError("no such library")

    ort = SimpleNamespace(
        __version__="1", __file__=__file__, preload_dlls=preload_dlls, get_available_providers=lambda: [backend._CUDA]
    )
    with pytest.raises((OSError, BackendError), match="no such library"):
        backend._prepare_cuda(ort)


def test_no_module_but_the_help_redirects_standard_output():
    files = list(Path(krl_runtime.__file__).parent.rglob("*.py"))
    assert len(files) > 50
    found = [file.name for file in files if re.search(r"redirect_stdout|sys\.stdout\s*=", file.read_text("utf-8"))]
    assert found == ["dispatch.py"]  # the help text of a command, before it starts a thread


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0), ("7", 0)])
def test_of_several_processes_one_prints(rank, lines):
    program = "from krl_runtime.cli.commandline import guard; guard('x', lambda: print('result'), quiet=False)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "RANK": rank}
    )
    assert len(done.stdout.splitlines()) == lines
