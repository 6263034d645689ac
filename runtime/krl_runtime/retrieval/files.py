"""The file of an index: an uncompressed npz of vectors, names, labels and a graph, with digested metadata.

Everything is bounded before it is read: the file by its size, each array by what the metadata says of it. The digest
proves that the file is whole, not where it comes from.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from krl_runtime.bundle import Bundle
from krl_runtime.errors import BundleError, DataError
from krl_runtime.files import atomic_path, dump_digested, dump_json, sha256_bytes

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["IndexContent", "check_identity", "index_path", "model_identity", "read_index", "write_index"]

_SCHEMA_VERSION = 1  # of the file; another one is refused
_MAX_BYTES: Final = 1 << 32
"""Of a file: 4 million vectors of 128 dimensions with their graph, more than a board's memory holds."""
_MAX_TEXT_BYTES: Final = 1 << 28  # of the metadata, and of the names: 256 bytes for each of a million
_MEMBERS: Final = {"metadata": "metadata.npy", "vectors": "vectors.npy", "names": "names.npy"}
_MORE: Final = {"labels": "labels.npy", "graph": "graph.npy"}
_END = "\0"  # of a name; no file's name has it
_NO_LABEL: Final = -1  # in the array of labels, of an item without one


@dataclass(frozen=True, eq=False)
class IndexContent:
    """All that the file of an index has.

    Attributes:
        vectors: ``[N, D]`` float32 of length 1.
        names: ``N`` names, each once.
        labels: ``N`` labels; empty text for an item without one.
        facts: The rest, as plain JSON types.
        graph: The graph for approximate search, as usearch writes it; ``None`` where search is exact.
    """

    vectors: npt.NDArray[np.float32]
    names: tuple[str, ...]
    labels: tuple[str, ...]
    facts: Mapping[str, Any]
    graph: bytes | None = None


def index_path(bundle: Path) -> Path:
    """Return the usual place of a bundle's index: ``NAME.krl.index`` beside it."""
    path = bundle.resolve()
    return path.with_name(f"{path.name}.index")


def model_identity(bundle: Bundle) -> str:
    """Return a hash that bundles have in common whose embeddings can be compared.

    It is that of the weights, of the preprocessing and of the outputs: variants and backends do not matter.

    Raises:
        BundleError: The bundle names no weights and has no FP32 reference.
    """
    manifest = bundle.manifest
    weights = manifest.source.get("weights_sha256")
    if not isinstance(weights, str) or not weights:
        weights = manifest.files[bundle.reference.file].sha256
    outputs = [[spec.name, list(spec.shape[1:])] for spec in manifest.outputs]
    parts = {"weights": weights, "preprocessing": manifest.preprocessing.to_dict(), "outputs": outputs}
    return sha256_bytes(dump_json(parts))


def write_index(path: Path, content: IndexContent) -> None:
    """Write the file of an index, whole or not at all.

    Raises:
        DataError: The file cannot be written, or would be too large to be read again.
    """
    known = sorted(set(content.labels) - {""})
    place = {label: number for number, label in enumerate(known)}
    numbers = [place.get(label, _NO_LABEL) for label in content.labels]
    arrays: dict[str, npt.NDArray[Any]] = {
        "vectors": np.ascontiguousarray(content.vectors, np.float32),
        "names": np.frombuffer(_END.join(content.names).encode("utf-8", "surrogateescape"), np.uint8),
        "labels": np.array(numbers, np.int32),
    }
    if content.graph is not None:
        arrays["graph"] = np.frombuffer(content.graph, np.uint8)
    size = sum(array.nbytes for array in arrays.values())
    if size > _MAX_BYTES - _MAX_TEXT_BYTES or arrays["names"].nbytes > _MAX_TEXT_BYTES:
        raise DataError(f"an index of {len(content.names)} items takes {size} bytes; at most {_MAX_BYTES} are accepted")
    facts = {
        **content.facts,
        "schema_version": _SCHEMA_VERSION,
        "label_names": known,
        "arrays": {name: [list(array.shape), _digest(array)] for name, array in arrays.items()},
    }
    metadata = np.frombuffer(dump_digested(facts), np.uint8)
    try:
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, metadata=metadata, **arrays)
    except OSError as error:
        raise DataError(
            f"index {path} cannot be written: {error.strerror or error}; name another file with --out"
        ) from error


def _digest(array: npt.NDArray[Any]) -> str:
    return sha256_bytes(array.data.cast("B") if array.size else b"")


def read_index(path: Path) -> IndexContent:
    """Read the file of an index, and check it.

    Raises:
        DataError: It is missing, too large, damaged, or of another version of krl.
    """
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise DataError(f"index {path} has {size} bytes; at most {_MAX_BYTES} are accepted")
        with zipfile.ZipFile(path) as archive:
            return _read(archive, path)
    except FileNotFoundError as error:
        raise DataError(f"index {path} does not exist; make it with: krl-runtime index NAME.krl FOLDER") from error
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    except (AttributeError, RecursionError, RuntimeError, OverflowError) as error:  # of forged headers
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def _damaged(path: Path, cause: str) -> DataError:
    return DataError(f"index {path} is damaged or no index ({cause}); make it again with krl-runtime index --overwrite")


def _read(archive: zipfile.ZipFile, path: Path) -> IndexContent:
    names = [member.filename for member in archive.infolist()]
    wanted = {*_MEMBERS.values(), *_MORE.values()}
    if len(set(names)) != len(names) or not set(names) <= wanted or not set(_MEMBERS.values()) <= set(names):
        raise ValueError(f"it has the members {names[:8]}")
    if any(item.compress_type != zipfile.ZIP_STORED or item.file_size > _MAX_BYTES for item in archive.infolist()):
        raise ValueError("a member is compressed")
    data = _array(archive, "metadata", None, np.uint8, _MAX_TEXT_BYTES).tobytes()
    facts = json.loads(data)
    version = facts["schema_version"]
    if version != _SCHEMA_VERSION:
        raise DataError(
            f"index {path} has schema version {version}; this krl reads version {_SCHEMA_VERSION}; make it again with "
            "krl-runtime index --overwrite, or use the krl that made it"
        )
    if dump_digested(facts) != data:
        raise ValueError("its metadata was changed")
    kinds: dict[str, Any] = {"vectors": np.float32, "names": np.uint8, "labels": np.int32, "graph": np.uint8}
    if {f"{name}.npy" for name in facts["arrays"]} | {"metadata.npy"} != set(names):
        raise ValueError("its metadata is of other members")
    arrays = {}
    for name, (shape, digest) in facts["arrays"].items():
        most = _MAX_TEXT_BYTES if name == "names" else _MAX_BYTES
        arrays[name] = _array(archive, name, tuple(shape), kinds[name], most)
        if _digest(arrays[name]) != digest:
            raise ValueError(f"its {name} were changed")
    return _content(facts, arrays)


def _content(facts: dict[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> IndexContent:
    vectors, numbers, known = arrays["vectors"], arrays["labels"], facts["label_names"]
    names = tuple(arrays["names"].tobytes().decode("utf-8", "surrogateescape").split(_END))
    if vectors.ndim != 2 or not len(vectors) == len(names) == len(numbers) == len(set(names)):
        raise ValueError("its arrays do not fit each other")
    if not np.isfinite(vectors).all() or (
        len(numbers) and not _NO_LABEL <= numbers.min() <= numbers.max() < len(known)
    ):
        raise ValueError("its numbers are out of their range")
    _check_facts(facts)
    labels = tuple("" if number == _NO_LABEL else str(known[number]) for number in numbers.tolist())
    kept = {name: value for name, value in facts.items() if name not in ("label_names", "arrays", "digest")}
    graph = arrays["graph"].tobytes() if "graph" in arrays else None
    return IndexContent(vectors, names, labels, kept, graph)


def _check_facts(facts: Mapping[str, Any]) -> None:
    """Check what an index says of itself: a forged file must not raise later, elsewhere."""
    least = facts["least_similarity"]
    number = isinstance(least, int | float) and not isinstance(least, bool) and math.isfinite(least)
    texts = all(isinstance(facts[name], str) for name in ("model", "bundle", "variant", "backend"))
    if not texts or not isinstance(facts["calibration"], dict) or not (least is None or number):
        raise ValueError("its metadata has values of other types")


def _array(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...] | None, dtype: Any, most: int
) -> npt.NDArray[Any]:
    """Return an array whose header says what it has to, without allocating what a forged one asks for."""
    member = archive.getinfo(f"{name}.npy")
    if member.file_size > most:
        raise ValueError(f"its {name} have {member.file_size} bytes; at most {most} are accepted")
    data = archive.read(member)
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError(f"its {name} have another header")
    found, fortran, kind = np.lib.format.read_array_header_1_0(file)
    rest = len(data) - file.tell()
    count = rest // kind.itemsize if kind == np.dtype(dtype) else -1
    expected = (count,) if shape is None else shape
    if kind != np.dtype(dtype) or fortran or found != expected or int(np.prod(found, dtype=object)) != count:
        raise ValueError(f"its {name} have another type or shape")
    if count * kind.itemsize != rest:
        raise ValueError(f"its {name} end early")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(expected)


def check_identity(facts: Mapping[str, Any], bundle: Bundle, path: Path | None) -> None:
    """Check that an index was made with a model.

    Raises:
        BundleError: It was made with another one.
    """
    if facts["model"] != model_identity(bundle):
        raise BundleError(
            f"index {path or 'in memory'} was made with another model ({facts['bundle']}) than {bundle.path}, whose "
            f"embeddings cannot be compared; make it again with: krl-runtime index {bundle.path} FOLDER --overwrite"
        )
