"""The bundle: the folder ``NAME.krl/`` that deployment writes and the runtime loads, and the owner of its format."""

from .bundle import Bundle
from .manifest import SCHEMA_VERSION, Engine, FileEntry, Manifest, TensorSpec, Variant
from .names import MANIFEST

__all__ = ["MANIFEST", "SCHEMA_VERSION", "Bundle", "Engine", "FileEntry", "Manifest", "TensorSpec", "Variant"]
