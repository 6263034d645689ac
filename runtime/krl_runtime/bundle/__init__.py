"""The bundle: the folder ``NAME.krl/`` that deployment writes and the runtime loads, and the owner of its format."""

from .bundle import Bundle
from .manifest import PACKAGED_FOR, SCHEMA_VERSION, Engine, FileEntry, Manifest, TensorSpec, Variant
from .names import MANIFEST

__all__ = [
    "MANIFEST",
    "PACKAGED_FOR",
    "SCHEMA_VERSION",
    "Bundle",
    "Engine",
    "FileEntry",
    "Manifest",
    "TensorSpec",
    "Variant",
]
