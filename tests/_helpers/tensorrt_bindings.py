"""The real Python bindings of TensorRT and CUDA, looked at without a GPU and without TensorRT's libraries.

TensorRT's extension module needs three shared libraries, and from them nine C functions; stubs that return null make
the import succeed, and then every class, member, method and docstring signature is there to be looked at.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest

_STUBS = """
#define STUB(name) void *name(void) { return 0; }
STUB(createInferBuilder_INTERNAL) STUB(createInferRefitter_INTERNAL) STUB(createInferRuntime_INTERNAL)
STUB(createNvOnnxParserRefitter_INTERNAL) STUB(createNvOnnxParser_INTERNAL) STUB(getBuilderPluginRegistry)
STUB(getNvOnnxParserVersion) STUB(getPluginRegistry) STUB(initLibNvInferPlugins)
"""

_DUMP_TENSORRT = """
import importlib, json, sys
package = importlib.import_module(sys.argv[1])
module = importlib.import_module(sys.argv[1] + "." + sys.argv[1].removesuffix("_bindings"))

def describe(cls):
    result = {"bases": [], "methods": {}, "properties": {}, "nested": {}, "members": None}
    result["bases"] = [base.__name__ for base in cls.__mro__[1:] if base.__module__.startswith("tensorrt")]
    if hasattr(cls, "__members__"):
        result["members"] = {name: int(member) for name, member in cls.__members__.items()}
    for name, value in vars(cls).items():
        if isinstance(value, property):
            result["properties"][name] = [value.fget and value.fget.__doc__, value.fset and value.fset.__doc__]
        elif isinstance(value, type):
            result["nested"][name] = describe(value)
        elif callable(value):
            result["methods"][name] = value.__doc__
    return result

classes = {name: describe(value) for name, value in vars(module).items() if isinstance(value, type)}
print(json.dumps({"version": package.__version__, "classes": classes}))
"""

_DUMP_CUDA = """
import inspect, json
from cuda.bindings import runtime as module

functions, classes, constants = {}, {}, []
for name, value in vars(module).items():
    if name.startswith("_") or inspect.ismodule(value):
        continue
    if isinstance(value, type) and value.__module__.startswith("cuda"):
        is_enum = hasattr(value, "__members__")
        members = list(value.__members__) if is_enum else [item for item in dir(value) if not item.startswith("__")]
        classes[name] = {"enum": is_enum, "members": members, "int": hasattr(value, "__int__")}
    elif isinstance(value, int):
        constants.append(name)
    elif callable(value):
        functions[name] = list(inspect.signature(value).parameters)
print(json.dumps({"functions": functions, "classes": classes, "constants": constants}))
"""


_LIBRARIES = ("libnvinfer", "libnvonnxparser", "libnvinfer_plugin")

_failures: dict[str, str] = {}


@dataclass(frozen=True)
class Generation:
    """One TensorRT or TensorRT-RTX, and the cuda-python that goes with it."""

    name: str
    package: str
    cuda_bindings: str
    rtx: bool = False

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])

    @property
    def version(self) -> str:
        return self.name.removeprefix("rtx-")

    @property
    def module(self) -> str:
        return "tensorrt_rtx_bindings" if self.rtx else "tensorrt_bindings"

    @property
    def libraries(self) -> tuple[str, ...]:
        """Shared libraries that the bindings are linked with."""
        names = ("libtensorrt_rtx", "libtensorrt_onnxparser_rtx") if self.rtx else _LIBRARIES
        return tuple(f"{name}.so.{self.major}" for name in names)


GENERATIONS = (
    Generation("10.3", "tensorrt-cu12-bindings==10.3.0", "12.8.0"),  # JetPack 6: the oldest that krl takes
    Generation("10.16", "tensorrt-cu13-bindings==10.16.1.11", "13.0.0"),
    Generation("11.4", "tensorrt-cu13-bindings==11.4.0.106", "13.5.0"),
)
RTX = Generation("rtx-1.7", "tensorrt-rtx-cu13-bindings==1.7.1.116", "13.5.0", rtx=True)
RTX_OLDEST = Generation("rtx-1.5", "tensorrt-rtx-cu13-bindings==1.5.0.114", "13.5.0", rtx=True)
ALL = (*GENERATIONS, RTX)


def cache_folder(config: pytest.Config) -> Path:
    """Return where installed bindings are kept from one test run to the next."""
    cache = getattr(config, "cache", None)  # not there with -p no:cacheprovider
    folder = cache.mkdir("tensorrt-bindings") if cache else Path(tempfile.gettempdir(), "krl-tensorrt-bindings")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@lru_cache
def dump_tensorrt(folder: Path, generation: Generation) -> dict:
    """Return all classes of a TensorRT with their methods, properties and enum members; skip where that cannot be."""

    def make(work: Path) -> str:
        environment = {"LD_LIBRARY_PATH": str(_compile_stubs(work, generation.libraries))}
        return _run_python(_DUMP_TENSORRT, _install(work, generation.package), environment, generation.module)

    return _remembered(folder, f"{generation.package}-{_digest(_STUBS + _DUMP_TENSORRT)}", make)


@lru_cache
def dump_cuda(folder: Path, version: str) -> dict:
    """Return all functions, classes and constants of ``cuda.bindings.runtime``; skip where that cannot be."""

    def make(work: Path) -> str:
        return _run_python(_DUMP_CUDA, _install(work, f"cuda-bindings=={version}"), {})

    return _remembered(folder, f"cuda-bindings=={version}-{_digest(_DUMP_CUDA)}", make)


def _digest(text: str) -> str:
    return hashlib.sha256((text + sysconfig.get_platform() + sys.version).encode()).hexdigest()[:12]


def _remembered(folder: Path, name: str, make) -> dict:
    file = folder / f"{name}.json"
    if not file.is_file():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            text = make(Path(work))
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_text(text)
        partial.replace(file)
    return json.loads(file.read_text())


def _install(work: Path, requirement: str) -> Path:
    target = work / "site"
    problem = _pip_install(requirement, target)
    if problem:
        pytest.skip(problem)
    return target


def _pip_install(requirement: str, target: Path) -> str:
    """Install, and return why that failed; a failure is not tried again for the next test."""
    if requirement not in _failures:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--retries", "1", "--timeout", "20"]
        try:
            done = subprocess.run(
                [*command, "--target", str(target), requirement], capture_output=True, text=True, timeout=300
            )
        except subprocess.TimeoutExpired:
            _failures[requirement] = f"{requirement} was not installed within 300 s"
        else:
            if done.returncode == 0:
                return ""
            _failures[requirement] = f"{requirement} cannot be installed here: {done.stderr.strip()[-200:]}"
    return _failures[requirement]


def _compile_stubs(work: Path, names: tuple[str, ...]) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make stub libraries with")
    (work / "stub.c").write_text(_STUBS)
    for name in names:
        options = ["-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(work / name), str(work / "stub.c")]
        subprocess.run([compiler, *options], check=True)
    return work


def _run_python(code: str, path: Path, environment: dict[str, str], *arguments: str) -> str:
    environment = {**os.environ, **environment, "PYTHONPATH": str(path)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, check=True, capture_output=True, text=True
    ).stdout


@dataclass(frozen=True)
class Parameter:
    name: str
    type: str
    optional: bool


@dataclass(frozen=True)
class Signature:
    """One overload, as the docstring gives it; without ``self``."""

    parameters: tuple[Parameter, ...]
    returns: str


def signatures(doc: str | None) -> list[Signature]:
    """Read the overloads from a docstring that pybind11 wrote."""
    found = re.findall(r"^(?:\d+\. )?\w*\(((?:self|arg0): .*)\) -> (.+?)\s*$", doc or "", re.MULTILINE)
    return [Signature(tuple(_parameters(arguments)), _plain(returns)) for arguments, returns in found]


def _parameters(text: str):
    for number, part in enumerate(_split(text)):
        name, _, rest = part.partition(":")
        kind, default, _ = rest.partition(" = ")
        if number == 0 or part in ("*", "/"):
            continue
        yield Parameter(name.strip(), _plain(kind), bool(default))


def _split(text: str) -> list[str]:
    """Split at commas that stand outside of brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += character in "[(<"
        depth -= character in "])>"
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _plain(kind: str) -> str:
    """Return a type without its modules: ``tensorrt_bindings.tensorrt.Dims`` and ``nvinfer1::Dims`` are ``Dims``."""
    kind = re.sub(r"\w+::I?(ParserError)\b", r"\1", kind)
    return re.sub(r"\b(\w+\.)+(?=\w)|\b(\w+::)+", "", kind).strip()
