"""``krl-runtime serve`` as a process: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from krl_runtime import Bundle, MissingExtraError, UsageError, load
from krl_runtime.cli import main
from krl_runtime.serve import serve
from krl_runtime.serve.config import ServeConfig


@pytest.fixture
def process(bundle: Bundle) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "krl_runtime", "serve", str(bundle.path), "--port", "0", "--json"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def url_of(process: subprocess.Popen[str]) -> str:
    lines = []
    while not lines or lines[-1] != "}\n":
        lines.append(process.stdout.readline())
        assert lines[-1], process.stderr.read()
    said = json.loads("".join(lines))
    assert list(said) == ["bundle", "backend", "variant", "reason", "url"]
    return said["url"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_answers_and_ends_cleanly(process, images: list[Path], bundle: Bundle, number):
    url = url_of(process)
    with urllib.request.urlopen(f"{url}/classify", data=images[0].read_bytes(), timeout=30) as answer:
        assert json.load(answer)["label"] == load(bundle.path)(images[0]).label
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert errors.splitlines()[1:] == [f"tiny: listening on {url}", "tiny: stopped"]


def test_requests_under_way_are_answered(process, images: list[Path]):
    """The signal comes when the request has begun to arrive."""
    url = url_of(process)
    body = images[0].read_bytes()
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        connection.sendall(body[:100])
        while b"krl_requests_in_progress 1.0" not in urllib.request.urlopen(f"{url}/metrics").read():
            pass
        process.send_signal(signal.SIGTERM)
        threading.Event().wait(0.3)
        connection.sendall(body[100:])
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    assert process.wait(30) == 0


def test_an_address_that_is_taken(bundle: Bundle, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", str(bundle.path), "--port", str(taken.getsockname()[1])]) == 2
    assert "Address already in use; give another --host or --port" in capsys.readouterr().err


def test_an_address_that_is_none(bundle: Bundle, capsys):
    assert main(["serve", str(bundle.path), "--host", "256.1.1.1", "--port", "0"]) == 2
    assert "cannot listen on 256.1.1.1" in capsys.readouterr().err


def test_bad_bundle(tmp_path, capsys):
    assert main(["serve", str(tmp_path)]) == 2
    assert "is not a bundle" in capsys.readouterr().err


@pytest.mark.parametrize(
    "values",
    [
        {"workers": 0},
        {"queue": -1},
        {"max_batch": 0},
        {"max_delay_seconds": -1},
        {"port": 70000},
        {"max_body_bytes": 0},
        {"read_seconds": 0},
    ],
)
def test_ranges(values):
    (name,) = values
    with pytest.raises(UsageError, match=f"{name} is {values[name]}; accepted: "):
        ServeConfig(**values)


def test_without_the_extra(bundle: Bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with load(bundle.path) as model, pytest.raises(MissingExtraError, match=r"needs uvicorn.*\[serve\]"):
        serve(model, ServeConfig(port=0))


def test_the_command_line_needs_nothing_of_it(bundle: Bundle):
    """``import krl_runtime.cli`` loads no HTTP library."""
    program = (
        "import sys, krl_runtime.cli; print(sorted({'starlette', 'uvicorn', 'prometheus_client'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.strip() == "[]"
