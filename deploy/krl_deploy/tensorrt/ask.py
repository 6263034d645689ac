"""``krl-deploy check --parser``: the verdict of the installed NVIDIA parser and builder on ONNX files.

Some graphs kill the parser, so that it runs in a process of its own, with a time limit.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from krl_runtime.backends.cuda import NoTensorRTError, version_tuple
from krl_runtime.errors import BackendError, ModelError, UsageError

if TYPE_CHECKING:
    from krl_deploy.rules.findings import Finding, Verdict
    from krl_deploy.rules.run import CheckedFile
    from krl_deploy.rules.targets import Target

__all__ = ["TIME_LIMIT", "ask", "ask_about", "check_target", "parsed_layers"]

TIME_LIMIT = 300.0
"""Seconds for one file. TensorRT-RTX parses and builds a resnet50 in 2 s on two cores."""

_GRACE = 10.0  # seconds after which the process ends itself, should nobody stop it at its limit
_LONGEST = 600  # characters of a message; TensorRT repeats itself in long ones
_CRASHES = {getattr(signal, name, None) for name in ("SIGSEGV", "SIGFPE", "SIGABRT", "SIGILL", "SIGBUS")}  # of POSIX
# What the parser appends on a machine without a GPU or its driver; it says nothing about the file.
_NO_DRIVER = re.compile(r"\s*\[checkMacros\.cpp::catchCudaError.*", re.DOTALL)
_INITIALIZER = re.compile(r"Failed to import initializer: (\S+)$")
_MODULE = "krl_deploy.tensorrt.ask_process"

_REFUSED = "change that node before exporting, or quantize again; the parser's words say what it asks for"
_UNBUILT = "the graph is parsed, but no engine can be built from it: change the node that the builder names"
_CRASHED = "change the node before exporting: a graph that ends the parser cannot be built into an engine"
_LATE = "give more time with --time-limit SECONDS, or try a smaller network to find the node that takes so long"


def check_target(target: Target) -> None:
    """Check that there is a parser to ask.

    Raises:
        UsageError: The target is not TensorRT.
    """
    if not target.tensorrt:
        raise UsageError(
            f"--parser asks NVIDIA's parser, which --target {target.name} does not use; accepted: jetpack-*, "
            "tensorrt-* and rtx; or leave --parser out"
        )


def ask_about(checked: Iterable[CheckedFile], target: Target, time_limit: float = TIME_LIMIT) -> list[CheckedFile]:
    """Return the results of a check with the verdicts of NVIDIA's parser and builder added.

    Args:
        checked: Results of the static check.
        target: The target that they were checked for.
        time_limit: Seconds for each file.

    Raises:
        NoTensorRTError: No library that could be asked is installed.
        BackendError: The process could not be run, or ended for a reason that is not in the file.
    """
    from krl_deploy.rules.run import in_order

    results = []
    for item in checked:
        verdict, found = ask(item.file, target, time_limit)
        results.append(replace(item, findings=in_order([*item.findings, *found]), parser=verdict))
    return results


def ask(path: Path, target: Target, time_limit: float = TIME_LIMIT) -> tuple[Verdict, tuple[Finding, ...]]:
    """Return the verdict of NVIDIA's parser and builder on one ONNX file, and their complaints as findings.

    Args:
        path: The file.
        target: Chooses the library: TensorRT-RTX for it, else TensorRT, or TensorRT-RTX where that is not usable.
        time_limit: Seconds, after which the process is stopped.

    Raises:
        NoTensorRTError: No library that could be asked is installed.
        BackendError: The process could not be run, or ended for a reason that is not in the file.
    """
    libraries = ("tensorrt-rtx",) if target.rtx else ("tensorrt", "tensorrt-rtx")
    facts, ended = _run(path, libraries, time_limit)
    if facts.get("missing"):
        raise NoTensorRTError(f"--parser needs NVIDIA's parser: {facts['failure']}")
    if ended == "timeout" and "title" not in facts:
        raise BackendError(
            f"the process of NVIDIA's parser was not ready after {time_limit:g} seconds; give more with --time-limit"
        )
    if "failure" in facts or "title" not in facts:
        raise BackendError(f"NVIDIA's parser could not be asked about {path}: {facts.get('failure', ended)}")
    faults = list(_faults(facts, ended, time_limit, path))
    return _verdict(facts, target), tuple(faults)


def parsed_layers(path: Path, time_limit: float = TIME_LIMIT) -> tuple[str, list[dict[str, Any]]]:
    """Return the library that parsed an ONNX file, and the layers of its network; see ``network.described``.

    Raises:
        NoTensorRTError: No library that could be asked is installed.
        ModelError: The parser refuses the file, or the file ends it.
        BackendError: The process could not be run.
    """
    facts, ended = _run(path, ("tensorrt", "tensorrt-rtx"), time_limit, "layers")
    if facts.get("missing"):
        raise NoTensorRTError(f"layers come from NVIDIA's parser: {facts['failure']}")
    if "failure" in facts:
        raise BackendError(f"NVIDIA's parser could not be asked about {path}: {facts['failure']}")
    if ended or "layers" not in facts:
        said = "; ".join(f"{fault['node']} {fault['why']}".strip() for fault in facts.get("faults", ())) or ended
        raise ModelError(f"NVIDIA's parser does not take {path}: {said[:_LONGEST]}; see krl-deploy check --parser")
    return str(facts["title"]), list(facts["layers"])


def _run(path: Path, libraries: Collection[str], time_limit: float, *task: str) -> tuple[dict[str, Any], str]:
    """Run the process, and return what it recorded, later lines winning, and how it ended before it was done.

    The end is ``""``, ``"timeout"``, the name of the signal of a crash, or the last words of the process.

    Raises:
        BackendError: The system killed it.
    """
    from krl_deploy.graph.files import one_file

    with TemporaryDirectory() as folder:
        result = Path(folder, "result.jsonl")
        given = path.resolve()
        if (data := one_file(path)) is not None:  # the process reads no other files
            given = Path(folder, "model.onnx")
            given.write_bytes(data)
        parts = [str(given), str(result), ",".join(libraries), str(time_limit + _GRACE), *task]
        places = os.pathsep.join(str(Path(place).resolve()) for place in sys.path if place)
        ended = ""
        try:
            done = subprocess.run(  # which kills the process on a timeout, on Ctrl-C and on any other exception
                [sys.executable, "-m", _MODULE, *parts],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": places},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=time_limit,
            )
        except subprocess.TimeoutExpired:
            ended = "timeout"
        except OSError as error:
            raise BackendError(f"the process of NVIDIA's parser cannot be started: {error}") from error
        else:
            if done.returncode < 0:
                ended = _signal_name(-done.returncode, path)
            elif done.returncode:
                ended = " ".join(done.stderr.decode(errors="replace").split())[-_LONGEST:]
        lines = result.read_text("utf-8").splitlines() if result.is_file() else []
    facts: dict[str, Any] = {}
    for line in lines:
        try:
            facts.update(json.loads(line))
        except ValueError:  # the line that a crash cut off
            break
    return facts, "" if facts.get("done") or "failure" in facts else ended or "it ended early"


def _signal_name(number: int, path: Path) -> str:
    """Return the name of a signal that a fault in a program raises.

    Raises:
        BackendError: The signal came from elsewhere.
    """
    if number in _CRASHES:
        return signal.Signals(number).name
    why = ", most likely because the memory ran out" if signal.Signals(number).name == "SIGKILL" else ""
    raise BackendError(
        f"NVIDIA's parser was stopped by signal {number} while it read {path}{why}; this says nothing about the file: "
        "free memory, and run the command again"
    )


def _verdict(facts: dict[str, Any], target: Target) -> Verdict:
    from krl_deploy.rules.findings import Verdict

    version, wanted = version_tuple(facts["version"]), target.tensorrt
    notes = []
    if facts["library"] == "tensorrt-rtx" and not target.rtx:
        because = "; ".join(facts["reasons"])
        notes.append(f"evidence about NVIDIA's parser, not about {target.title}: {because}")
    elif facts["library"] == "tensorrt" and version[: len(wanted)] != wanted:
        notes.append(f"the installed version, not that of {target.title}")
    building, parsed = "building" in facts, bool(facts.get("parsed"))
    if parsed and not building:
        notes.append("more than the batch is open, so that the builder was not asked: build-engine takes the sizes")
    return Verdict(
        library=facts["title"].removesuffix(f" {facts['version']}"),
        version=facts["version"],
        parsed=parsed,
        built=bool(facts.get("built")) if building else None,
        seconds=round(float(facts.get("seconds", 0.0)), 3) if facts.get("done") else None,
        note="; ".join(notes),
        exact=facts["library"] == "tensorrt-rtx" if target.rtx else not notes,
    )


def _faults(facts: dict[str, Any], ended: str, time_limit: float, path: Path) -> Iterator[Finding]:
    """Yield the complaints of the parser or the builder."""
    from krl_deploy.rules.findings import Rule

    who = "builder" if "building" in facts else "parser"
    source = f"NVIDIA's {who}, {facts['title']}"
    node, op = ("", "") if who == "builder" else (facts.get("node", ""), facts.get("op", ""))
    if ended == "timeout":
        why = f"the {who} was not done after {time_limit:g} seconds"
        yield Rule("error", "parser/timeout", _LATE, source).at(node, op, why)
    elif ended.startswith("SIG"):
        why = f"the {who} crashed ({ended})" + (" at this node" if node else "")
        yield Rule("error", "parser/crashed", _CRASHED, source).at(node, op, why)
    elif ended:
        raise BackendError(f"NVIDIA's {who} could not be asked about {path}: {ended}")
    rule = Rule("error", f"{who}/refused", _REFUSED if who == "parser" else _UNBUILT, source)
    for fault in facts.get("faults", ()):
        words = " ".join(_NO_DRIVER.sub("", fault["why"]).split())[:_LONGEST]
        name, op = fault["node"], fault["op"]
        if not name:
            name, op = _named_in(words, path)
        yield rule.at(name, op, words.removeprefix(f"Invalid Node - {name} "))


def _named_in(words: str, path: Path) -> tuple[str, str]:
    """Return the node that a message names, with its operator; the initializer, or nothing, if it names no node."""
    import onnx

    if match := _INITIALIZER.search(words):
        return match[1], ""
    graph = onnx.load_model_from_string(path.read_bytes()).graph
    nodes = {node.name: node.op_type for node in graph.node if len(node.name) > 1}
    makers = {output: node for node in graph.node for output in node.output if output}
    before = ""
    for word in re.split(r"[\s'\"(),:;`]+", words):
        if word in nodes:
            return word, nodes[word]
        if before.lower() == "tensor" and word in makers:
            return makers[word].name or word, makers[word].op_type
        before = word
    return "", ""
