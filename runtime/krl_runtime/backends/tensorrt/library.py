"""The installed TensorRT and TensorRT-RTX: two libraries with nearly the same Python bindings.

Both may be installed side by side, so that code takes a ``Library`` and calls its ``module``, and imports neither. For
type checkers ``module`` stands for ``tensorrt``; what TensorRT-RTX alone has is called in ``rtx``.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from krl_runtime.backends.cuda import NoTensorRTError, jetson_release, version_tuple
from krl_runtime.errors import BackendError, install_command

__all__ = ["MINIMUM_RTX", "MINIMUM_TENSORRT", "Library", "LibraryName", "library_of", "rtx_library", "tensorrt_library"]

LibraryName: TypeAlias = Literal["tensorrt", "tensorrt-rtx"]
"""Name of a library in a manifest."""

MINIMUM_TENSORRT: Final = (10, 3)
"""The oldest TensorRT that krl runs on: JetPack 6.1's."""

MINIMUM_RTX: Final = (1, 5)
"""The oldest TensorRT-RTX: the first whose networks are all strongly typed (1.4 still has a flag for it)."""

_NO_DLA_COMPILER = (
    "JetPack 7.2 does not have that file, which the TensorRT of older containers needs; use the TensorRT of this "
    "JetPack, or a container made for it"
)

_RTX_MODULES = ("tensorrt_rtx", "tensorrt_rtx_bindings")  # NVIDIA's meta-package, and the bindings that it re-exports


@dataclass(frozen=True)
class Library:
    """An installed library.

    Attributes:
        name: ``"tensorrt"`` or ``"tensorrt-rtx"``.
        module: Its Python bindings.
        version: Its version, as ``"10.3.0"``.
    """

    name: LibraryName
    module: Any
    version: str

    @property
    def rtx(self) -> bool:
        """Whether it is TensorRT-RTX."""
        return self.name == "tensorrt-rtx"

    @property
    def title(self) -> str:
        """Return name and version, as ``"TensorRT 10.3.0"``."""
        return f"{'TensorRT-RTX' if self.rtx else 'TensorRT'} {self.version}"


def tensorrt_library() -> Library:
    """Return the installed TensorRT.

    Raises:
        NoTensorRTError: It is not installed; the message says how to install it on this kind of machine.
        BackendError: It is older than ``MINIMUM_TENSORRT``, or its libraries cannot be loaded.
    """
    module = _import(("tensorrt",), "TensorRT")
    if module is None:
        raise NoTensorRTError(f"TensorRT is not installed here; {_how_to_install()}")
    return _checked(Library("tensorrt", module, module.__version__), MINIMUM_TENSORRT, " (JetPack 6.1 or newer)")


def rtx_library() -> Library:
    """Return the installed TensorRT-RTX.

    Raises:
        NoTensorRTError: It is not installed; the message says how to install it.
        BackendError: It is older than ``MINIMUM_RTX``, or its libraries cannot be loaded.
    """
    module = _import(_RTX_MODULES, "TensorRT-RTX")
    if module is None:
        raise NoTensorRTError(f"TensorRT-RTX is not installed here; install it with: {install_command('rtx')}")
    return _checked(Library("tensorrt-rtx", module, module.__version__), MINIMUM_RTX, "")


def library_of(name: str) -> Library:
    """Return the installed library that a manifest names; raises what ``tensorrt_library`` and ``rtx_library`` do."""
    return rtx_library() if name == "tensorrt-rtx" else tensorrt_library()


def _import(names: tuple[str, ...], title: str) -> Any:
    """Return the first module that is installed, ``None`` if none is."""
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise BackendError(f"{title}'s Python package cannot be imported: {error}") from error
        except (ImportError, OSError) as error:
            hint = f"; {_NO_DLA_COMPILER}" if "libnvdla_compiler" in str(error) else ""
            raise BackendError(
                f"{title}'s Python package is here, but its libraries cannot be loaded: {error}{hint}"
            ) from error
    return None


def _checked(library: Library, minimum: tuple[int, ...], where: str) -> Library:
    if version_tuple(library.version) < minimum:
        needed = ".".join(map(str, minimum))
        raise BackendError(f"{library.title} is installed; krl needs {needed} or newer{where}")
    return library


def _how_to_install() -> str:
    if jetson_release() is not None:
        return (
            "on a Jetson install JetPack's (sudo apt install nvidia-jetpack); use the system's own Python, or an "
            "environment made with python3 -m venv --system-site-packages"
        )
    return f"install it with: {install_command('tensorrt')}"
