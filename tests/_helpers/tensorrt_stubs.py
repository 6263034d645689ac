"""Type stubs written from the real bindings, for mypy to hold krl's source against them.

A class that a call returns may be ``None`` there, as in C++ the pointer may be null: so mypy also finds every result
that krl uses without a check.
"""

import keyword
import re
from pathlib import Path

from _helpers.tensorrt_bindings import Parameter, signatures

_HEAD = """\
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any, ClassVar, overload
from typing_extensions import Buffer
"""
_SIMPLE = {
    "None": "None",
    "SupportsInt": "int",
    "SupportsFloat": "float",
    "bool": "bool",
    "buffer": "Buffer",
    "Buffer": "Buffer",
    "bytes": "bytes",
    "float": "float",
    "int": "int",
    "list": "list[Any]",
    "memoryview": "memoryview",
    "str": "str",
    "tuple": "tuple[Any, ...]",
}


def write_stubs(folder: Path, tensorrt: dict, rtx: dict, cuda: dict) -> None:
    """Write ``tensorrt.pyi``, ``tensorrt_rtx.pyi`` and ``cuda/bindings/runtime.pyi``."""
    package = folder / "cuda" / "bindings"
    package.mkdir(parents=True)
    for init in (package.parent / "__init__.pyi", package / "__init__.pyi"):
        init.touch()
    (package / "runtime.pyi").write_text(_cuda(cuda))
    (folder / "tensorrt.pyi").write_text(_tensorrt(tensorrt["classes"]))
    (folder / "tensorrt_rtx.pyi").write_text(_tensorrt(rtx["classes"]))


def _cuda(dump: dict) -> str:
    lines = [_HEAD]
    lines += [f"{name}: int" for name in dump["constants"]]
    for name, item in dump["classes"].items():
        if item["enum"]:
            members = [f"    {member} = {number}" for number, member in enumerate(item["members"])]
            lines += [f"class {name}(IntEnum):", *(members or ["    ..."])]
        else:
            conversion = ["    def __int__(self) -> int: ..."] if item["int"] else []
            init = "    def __init__(self, *args: Any, **kwargs: Any) -> None: ..."
            lines += [f"class {name}:", init, *conversion, *(f"    {member}: Any" for member in item["members"])]
    for name, parameters in dump["functions"].items():
        arguments = ", ".join(f"{parameter}: Any" for parameter in parameters)
        lines.append(f"def {name}({arguments}) -> tuple[Any, ...]: ...")
    return "\n".join(lines) + "\n"


def _tensorrt(classes: dict) -> str:
    names = {**{name: name for name in classes}}
    for outer, item in classes.items():
        names |= {inner: f"{outer}.{inner}" for inner in item["nested"] if inner not in names}
    enums = {name for name, item in classes.items() if item["members"] is not None} | set(names) - set(classes)
    writer = _Writer(names, enums)
    return "\n".join([_HEAD, "__version__: str", *(writer.cls(name, item, name, "") for name, item in classes.items())])


class _Writer:
    def __init__(self, names: dict[str, str], enums: set[str]) -> None:
        self._names = names
        self._values = enums | {"Dims"}

    def cls(self, name: str, item: dict, path: str, indent: str) -> str:
        bases = ", ".join(base for base in item["bases"][:1] if base in self._names)
        lines = [f"class {name}({bases}):" if bases else f"class {name}:", "    pass"]
        for inner, nested in item["nested"].items():
            lines.append(self.cls(inner, nested, f"{path}.{inner}", "    "))
        if item["members"] is not None:
            lines += [f"    {member}: ClassVar[{path}]" for member in item["members"]]
            lines.append(f"    __members__: ClassVar[Mapping[str, {path}]]")
        properties = {prop: docs for prop, docs in item["properties"].items() if not prop.startswith("__")}
        lines += [line for prop, docs in properties.items() for line in self._property(prop, *docs)]
        methods = {method: doc for method, doc in item["methods"].items() if not method.startswith("_pybind11")}
        if name == "IHostMemory":  # the buffer protocol has no name that could be looked up before Python 3.12
            lines.append("    def __buffer__(self, flags: int, /) -> memoryview: ...")
        if "__getitem__" in methods and "__iter__" not in methods:
            lines.append("    def __iter__(self) -> Iterator[int]: ...")
        lines += [line for method, doc in methods.items() for line in self._method(method, doc)]
        return "\n".join(indent + line for line in "\n".join(lines).split("\n"))

    def _property(self, name: str, getter: str | None, setter: str | None) -> list[str]:
        found = signatures(getter)
        kind = self._returned(found[0].returns) if found else "Any"
        lines = ["    @property", f"    def {name}(self) -> {kind}: ..."]
        if setter is not None:
            accepted = signatures(setter)
            given = self._taken(accepted[0].parameters[0]) if accepted and accepted[0].parameters else "Any"
            lines += [f"    @{name}.setter", f"    def {name}(self, value: {given}) -> None: ..."]
        return lines

    def _method(self, name: str, doc: str | None) -> list[str]:
        found = signatures(doc)
        if not found:
            return []
        lines = []
        for signature in found:
            if any(keyword.iskeyword(parameter.name) for parameter in signature.parameters):
                return []  # some methods of plugins, which cannot be called by keyword
            arguments, optional = "", True
            for parameter in reversed(signature.parameters):
                optional = optional and parameter.optional
                arguments = f", {parameter.name}: {self._taken(parameter)}{' = ...' if optional else ''}{arguments}"
            lines += ["    @overload"] if len(found) > 1 else []
            lines.append(f"    def {name}(self{arguments}) -> {self._returned(signature.returns)}: ...")
        return lines

    def _taken(self, parameter: Parameter) -> str:
        if parameter.type == "Dims":
            return "Dims | Sequence[int]"  # pybind11 converts
        kind = self._plain(parameter.type)
        return f"{kind} | None" if parameter.optional and kind != "Any" else kind

    def _returned(self, kind: str) -> str:
        plain = self._plain(kind)
        return f"{plain} | None" if kind in self._names and kind not in self._values else plain

    def _plain(self, kind: str) -> str:
        if kind in _SIMPLE:
            return _SIMPLE[kind]
        if kind in self._names:
            return self._names[kind]
        inner = re.fullmatch(r"(?:L|l)ist\[(.+)\]", kind)
        if inner:
            return f"list[{self._plain(inner[1])}]"
        inner = re.fullmatch(r"Sequence\[(.+)\]", kind)
        return f"Sequence[{self._plain(inner[1])}]" if inner else "Any"
