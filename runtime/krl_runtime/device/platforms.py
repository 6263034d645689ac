"""JetPack: which TensorRT, CUDA and Python a Jetson has.

Entries name their source; what no first-party page says is left empty.
"""

from __future__ import annotations

from dataclasses import dataclass

from krl_runtime.backends.cuda import jetson_release, version_tuple

__all__ = ["JETPACKS", "JetPack", "jetpack_here", "jetpack_of", "jetpacks_with"]


@dataclass(frozen=True)
class JetPack:
    """One release of JetPack.

    Attributes:
        versions: Its version numbers.
        l4t: The releases of Jetson Linux (L4T) that it comes with, by their first numbers (one number: all of them).
        python: Version of the system's Python, the only one that sees JetPack's TensorRT.
        cuda: Version of CUDA; empty if not confirmed.
        tensorrt: Version of TensorRT; empty if not confirmed.
        boards: The families of boards that it runs on.
        source: Source of these facts.
    """

    versions: tuple[str, ...]
    l4t: tuple[str, ...]
    python: str
    cuda: str
    tensorrt: str
    boards: tuple[str, ...]
    source: str

    @property
    def name(self) -> str:
        """As ``"JetPack 6.1, 6.2"``."""
        return f"JetPack {', '.join(self.versions)}"


JETPACKS = (
    JetPack(("5.0.2",), ("35.1",), "3.8", "11.4", "8.4.1", ("Xavier", "Orin"), "developer.nvidia.com: jetpack-sdk-502"),
    JetPack(
        ("5.1",),
        ("35.2", "35.3", "35.4", "35.5", "35.6"),
        "3.8",
        "11.4",
        "8.5.2",
        ("Xavier", "Orin"),
        "developer.nvidia.com: jetpack-sdk-51 and its updates 5.1.1 to 5.1.4",
    ),
    JetPack(("6.0",), ("36.2", "36.3"), "3.10", "", "8.6", ("Orin",), "docs.nvidia.com: jetson/jetpack/6.0DP"),
    JetPack(("6.1", "6.2"), ("36.4", "36.5"), "3.10", "12.6", "10.3", ("Orin",), "pytorch/TensorRT: docs on JetPack"),
    JetPack(
        ("7.0", "7.1"),
        ("38",),
        "3.12",
        "13.0",
        "10.13",
        ("Thor",),
        "NVIDIA's archive pages (L4T, CUDA); roboflow/inference #1935 and jetson-containers #1263 (TensorRT)",
    ),
    JetPack(
        ("7.2",),
        ("39.2",),
        "3.12",
        "13.2",
        "10.16.2",
        ("Orin", "Thor"),
        "NVIDIA/TensorRT #4832, OE4T/meta-tegra #2224",
    ),
    JetPack(
        ("7.2.2",),
        (),  # of Jetson Linux 39.2 as well, so that a board does not say which of the two it has
        "3.12",
        "",
        "11.4.1",
        ("AGX Orin", "Thor"),
        "TensorRT's release notes and Jetson migration page of 11.4.1: its SBSA build, installed apart",
    ),
)
"""Oldest first. krl needs TensorRT 10.3, hence JetPack 6.1; Xavier boards end with JetPack 5."""


def jetpack_here() -> JetPack | None:
    """Return the JetPack of this machine, ``None`` if it is no Jetson or its release is not known."""
    return jetpack_of(jetson_release() or "")


def jetpack_of(release: str) -> JetPack | None:
    """Return the JetPack that a release of Jetson Linux belongs to (``"36.4.3"``), ``None`` if that is not known."""
    numbers = version_tuple(release)
    belongs = (jp for jp in JETPACKS for l4t in jp.l4t if version_tuple(l4t) == numbers[: len(version_tuple(l4t))])
    return next(belongs, None)


def jetpacks_with(major: int) -> tuple[JetPack, ...]:
    """Return the releases of JetPack that come with a major version of TensorRT."""
    return tuple(jp for jp in JETPACKS if version_tuple(jp.tensorrt)[:1] == (major,))
