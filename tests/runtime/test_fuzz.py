"""Mutants of everything that comes from outside, with a fixed seed: a clean error or a right answer, nothing else.

Each kind runs in a process of its own with limits on memory and time, since a native library may crash or hang.
"""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from _helpers import fuzz
from _helpers.bundles import write_bundle
from krl_runtime import BackendError, Bundle, BundleError, Preprocessing, load
from krl_runtime.files import sha256_bytes

COUNT = 1000
MIB = 2**20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits on a process' memory are Linux's")


@pytest.mark.parametrize(
    ("kind", "outcomes"),
    [
        # at least so many of each, or the mutants no longer get as far as they should
        ("images", {"answered": 100, "ImageError": 500}),
        ("manifests", {"answered": 20, "BundleError": 500}),
        ("onnx", {"BundleError": COUNT}),
        pytest.param("forged-onnx", {"answered": 20, "BackendError": 500}, marks=pytest.mark.slow),
    ],
)
def test_mutants(tmp_path: Path, kind: str, outcomes: dict[str, int]):
    result = fuzz.run(kind, tmp_path, count=COUNT, seed=1)
    assert result["failures"] == []
    assert sum(result["outcomes"].values()) == COUNT
    for outcome, least in outcomes.items():
        assert result["outcomes"].get(outcome, 0) >= least, result
    assert result["peak_mib"] < 1500, result  # the largest image that is accepted takes most of this


@pytest.mark.slow
def test_decompression_bombs(tmp_path: Path):
    result = fuzz.run("bombs", tmp_path, count=len(fuzz.BOMBS), seed=1)
    assert result["failures"] == []
    assert sum(result["outcomes"].values()) == len(fuzz.BOMBS)
    answered = {name for name in result["outcomes"] if name not in ("ImageError", "ImageSizeError")}
    assert answered == {
        "largest gray", "largest RGBA", "largest 16 bits", "largest 1 bit", "more rows than the size says",
    }  # fmt: skip
    assert result["peak_mib"] < 1500, result


def test_the_fuzzer_sees_what_it_looks_for(tmp_path: Path):
    """Another error than ours, a crash, a hang, and memory without end: each is told."""
    result = fuzz.run("error", tmp_path, count=3, seed=1)
    assert result["outcomes"] == {"failed": 3}
    assert "ZeroDivisionError" in result["failures"][0]
    assert "MemoryError" in fuzz.run("memory", tmp_path, count=1, seed=1)["failures"][0]
    with pytest.raises(AssertionError, match="exit code -6"):
        fuzz.run("crash", tmp_path, count=1, seed=1)
    with pytest.raises(AssertionError, match=r"(?s)exit code 1\n.*Timeout"):
        fuzz.run("hang", tmp_path, count=1, seed=1, seconds=1)


# What the fuzzer found


def forge(bundle: Bundle, **changes: object) -> None:
    """Change the manifest behind krl's back, with a digest that is right."""
    file = bundle.path / "manifest.json"
    values = {**json.loads(file.read_bytes()), **changes, "digest": ""}
    for _ in range(2):
        text = json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"
        values["digest"] = values["digest"] or sha256_bytes(text)
    file.write_bytes(text)


def test_a_number_that_no_float_can_hold(tmp_path: Path):
    bundle = write_bundle(tmp_path / "a.krl")
    forge(bundle, preprocessing={**bundle.manifest.preprocessing.to_dict(), "mean": [10**400, 0, 0]})
    with pytest.raises(BundleError, match=r"is not a krl manifest: .*too large to convert to float"):
        Bundle.open(bundle.path)


def test_a_name_in_the_graph_that_is_not_text(tmp_path: Path):
    bundle = write_bundle(tmp_path / "a.krl")
    data = bundle.read("model.fp32.onnx")
    assert data.count(b"\x12\x05batch") == 2  # dim_param of both ends
    changed = write_bundle(
        tmp_path / "b.krl", contents={"model.fp32.onnx": data.replace(b"\x12\x05batch", b"\x12\x05b\x80tch")}
    )
    with pytest.raises(BackendError, match="the ONNX file is damaged: a name in it is not text"):
        load(changed.path)


def test_golden_inputs_that_unpack_to_gigabytes(tmp_path: Path):
    header, file = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (600 * MIB,)})
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("pixels.npy", "w") as member:
        member.write(header.getvalue())
        for _ in range(600):
            member.write(bytes(MIB))
    assert len(file.getvalue()) < MIB
    bundle = write_bundle(tmp_path / "a.krl", contents={"golden.npz": file.getvalue()})
    with pytest.raises(BundleError, match=r"golden\.npz unpacks to more than 536870912 bytes"):
        bundle.golden()


def test_deep_gray_is_scaled_without_wide_copies(tmp_path: Path):
    """16 bits to 8, whatever the byte order and the sign: the high byte, clipped."""
    levels = np.array([[0, 255, 256, 40_000, 65_535]] * 5)
    spec = Preprocessing(5, 5, channels=1, mean=(0.5,), std=(0.5,))
    for image in (Image.fromarray(levels.astype(np.uint16)), Image.fromarray(levels.astype(np.int32))):
        assert spec(image)[0, 0].tolist() == [0, 0, 1, 156, 255]
    outside = Image.fromarray(np.array([[-5, 70_000]] * 2, np.int32))
    assert Preprocessing(2, 2, channels=1, mean=(0.5,), std=(0.5,))(outside)[0, 0].tolist() == [0, 255]
