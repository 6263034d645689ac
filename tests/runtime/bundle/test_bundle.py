from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from _helpers.bundles import LABELS, VARIANTS, npz, write_bundle
from krl_runtime import Bundle, BundleError, KrlError, load
from krl_runtime.bundle import MANIFEST, Engine, Manifest, TensorSpec, Variant
from krl_runtime.bundle import bundle as module
from krl_runtime.files import sha256_bytes

FILES = (MANIFEST, "golden.npz", "model.fp16.onnx", "model.fp32.onnx", "model.int8.cpu.onnx", "model.int8.onnx")
ENGINE = Engine("engines/k.engine", "int8", "0" * 64, "10.3.0.30", ("8.7",), "Orin", "linux-aarch64", ((1, 4, 8),))


def forge(bundle: Bundle, change: Any) -> None:
    """Change the manifest as an attacker would: with a digest that fits."""
    file = bundle.path / MANIFEST
    values = json.loads(file.read_bytes())
    change(values)
    file.write_bytes(seal(values))


def seal(values: dict[str, Any]) -> bytes:
    def dump() -> bytes:
        return json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"

    values["digest"] = ""
    values["digest"] = sha256_bytes(dump())
    return dump()


def flip(path: Path, position: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if position < 0 else position] ^= 1
    path.write_bytes(data)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What is written is what is read.


def test_round_trip(bundle: Bundle):
    again = Bundle.open(str(bundle.path))
    manifest = again.manifest
    again.verify()
    assert manifest == bundle.manifest
    assert (manifest.task, manifest.name, manifest.labels) == ("classification", "tiny", LABELS)
    assert manifest.inputs == (TensorSpec("pixels", "uint8", ("batch", 3, 12, 10)),)
    assert manifest.variants == {name: VARIANTS[name] for name in sorted(VARIANTS)}
    assert sorted((MANIFEST, *manifest.files)) == sorted(FILES)
    assert manifest.files["golden.npz"].size == (bundle.path / "golden.npz").stat().st_size
    assert (bundle.path / MANIFEST).read_bytes() == manifest.to_bytes()
    golden = again.golden()
    assert golden["pixels"].shape == (6, 3, 12, 10)
    assert golden["logits"].dtype == np.float32


def test_contents_may_be_files(tmp_path: Path, bundle: Bundle):
    copy = Bundle.create(tmp_path / "copy.krl", bundle.manifest, {name: bundle.file(name) for name in FILES[1:]})
    assert copy.manifest.files == bundle.manifest.files


def test_create_refuses_what_is_there(tmp_path: Path, bundle: Bundle):
    before = snapshot(bundle.path)
    with pytest.raises(BundleError, match=r"tiny\.krl exists already; give another name, or --overwrite"):
        write_bundle(bundle.path)
    assert snapshot(bundle.path) == before
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="mine is not a bundle, so it is not replaced"):
        Bundle.create(folder, bundle.manifest, {}, replace=True)
    assert (folder / "thesis.txt").read_text() == "years of work"


def test_create_replaces_a_bundle_when_asked(bundle: Bundle):
    contents = {name: bundle.read(name) for name in FILES[1:]}
    again = Bundle.create(bundle.path, replace(bundle.manifest, name="new"), contents, replace=True)
    assert again.manifest.name == "new"
    assert [path.name for path in bundle.path.parent.iterdir()] == ["tiny.krl"]


@pytest.mark.parametrize("name", ["../out.onnx", "/tmp/out.onnx", "a\\b", "."])
def test_create_refuses_paths_that_leave(tmp_path: Path, bundle: Bundle, name: str):
    with pytest.raises(BundleError, match="leaves its folder"):
        Bundle.create(tmp_path / "new.krl", bundle.manifest, {name: b"x"})
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.krl"]


def test_create_refuses_references_to_nothing(tmp_path: Path, bundle: Bundle):
    with pytest.raises(BundleError, match=r"refers to \['golden.npz', 'model.fp16.onnx', .* but does not list them"):
        Bundle.create(tmp_path / "new.krl", bundle.manifest, {"model.fp32.onnx": b"x"})
    with pytest.raises(BundleError, match="the manifest has no variant fp32"):
        Bundle.create(tmp_path / "new.krl", replace(bundle.manifest, variants={}, golden=None), {})
    with pytest.raises(BundleError, match=r"the manifest has no variant \['int4'\]"):
        write_bundle(tmp_path / "new.krl", default_variants={"cpu": "int4"})
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.krl"]


# Damage is detected.


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_detected(bundle: Bundle, name: str):
    flip(bundle.path / name)
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        Bundle.open(bundle.path).verify()


@pytest.mark.parametrize("name", [MANIFEST, "model.fp32.onnx"])
def test_load_detects_a_flipped_byte_in_what_it_uses(bundle: Bundle, name: str):
    flip(bundle.path / name)
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        load(bundle.path)


def test_load_checks_the_file_of_the_variant_that_it_runs(bundle: Bundle):
    flip(bundle.path / "model.int8.cpu.onnx")
    load(bundle.path).close()
    with pytest.raises(BundleError, match=r"model\.int8\.cpu\.onnx is damaged or was changed"):
        load(bundle.path, variant="int8")


def test_every_byte_of_the_manifest_counts(bundle: Bundle):
    file = bundle.path / MANIFEST
    data = file.read_bytes()
    for position in range(0, len(data), 7):  # 7 and 8 have no common factor: every bit has its turn
        broken = bytearray(data)
        broken[position] ^= 1 << position % 8
        file.write_bytes(broken)
        with pytest.raises(BundleError, match=r"manifest\.json"):
            Bundle.open(bundle.path)


@pytest.mark.parametrize("damage", ["missing", "truncated", "longer"])
def test_other_damage_is_detected(bundle: Bundle, damage: str):
    file = bundle.path / "model.fp32.onnx"
    data = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes(data[:-1] if damage == "truncated" else data + b"\0")
    message = "is missing; copy the whole folder again" if damage == "missing" else "is damaged or was changed"
    with pytest.raises(BundleError, match=message):
        bundle.file("model.fp32.onnx")


def test_the_bytes_that_were_hashed_are_given_out(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    """A file that is changed the moment its hash is known: what was hashed is what is loaded, and no cache hides it."""
    path = bundle.path / "model.fp32.onnx"
    before = path.read_bytes()
    original = module.sha256_bytes

    def changing(data: bytes) -> str:
        path.write_bytes(b"another network")
        return original(data)

    monkeypatch.setattr(module, "sha256_bytes", changing)
    assert bundle.read("model.fp32.onnx") == before
    with pytest.raises(BundleError, match="is damaged or was changed"):
        bundle.read("model.fp32.onnx")
    with pytest.raises(BundleError, match="is damaged or was changed"):
        bundle.verify()


def test_only_listed_files_are_given_out(bundle: Bundle):
    (bundle.path / "extra.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"the manifest does not list 'extra\.onnx'"):
        bundle.file("extra.onnx")


def test_what_is_no_bundle(tmp_path: Path):
    with pytest.raises(BundleError, match=r"none\.krl does not exist; a bundle is the folder that krl-deploy export"):
        Bundle.open(tmp_path / "none.krl")
    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json"):
        Bundle.open(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="file is a file, not a bundle"):
        Bundle.open(tmp_path / "file")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[]", "is not a krl manifest: it has no schema_version"),
        (b"{}", "is not a krl manifest: it has no schema_version"),
        (b'{"schema_version": 3}', "is not a krl manifest: KeyError: 'inputs'"),
        (b'{"schema_version": 1}', "has schema version 1; this krl reads version 3; export the bundle again"),
        (b'{"schema_version": "3"}', "has schema version 3; this krl reads version 3"),
        (b'{"schema_version": null}', "has schema version None"),
    ],
)
def test_manifests_that_are_none(bundle: Bundle, data: bytes, message: str):
    (bundle.path / MANIFEST).write_bytes(data)
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle.path)


def test_a_huge_manifest_is_not_read(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_MAX_MANIFEST_BYTES", 100)
    with pytest.raises(BundleError, match="at most 100 are accepted"):
        Bundle.open(bundle.path)


# Forgery is refused, even with a digest that fits.


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", "C:\\secret", "x\0y"])
@pytest.mark.parametrize("place", ["variant", "golden", "files"])
def test_paths_that_leave_the_bundle_are_refused(bundle: Bundle, name: str, place: str):
    (bundle.path.parent / "secret").write_bytes(b"secret")

    def change(values: dict[str, Any]) -> None:
        values["files"][name] = {"sha256": sha256_bytes(b"secret"), "size": 6}
        if place == "variant":
            values["variants"]["fp32"]["file"] = name
        if place == "golden":
            values["golden"] = name

    forge(bundle, change)
    for act in (Bundle.open, load):
        with pytest.raises(BundleError, match="leaves its folder; such a bundle is refused"):
            act(bundle.path)


def test_links_that_leave_the_bundle_are_refused(bundle: Bundle):
    outside = bundle.path.parent / "outside.onnx"
    (bundle.path / "model.fp32.onnx").rename(outside)
    (bundle.path / "model.fp32.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="leaves its folder through a symbolic link"):
        load(bundle.path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("name",), 3),
        (("labels",), "cats"),
        (("labels",), [1, 2, 3, 4]),
        (("task",), []),
        (("golden",), 5),
        (("default_variants",), None),
        (("default_variants",), {"cpu": ["fp32"]}),
        (("evidence",), 1),
        (("variants", "fp32", "tolerance"), "small"),
        (("variants", "fp32", "cpu_file"), []),
        (("variants", "fp32", "new"), 1),
        (("inputs", 0, "shape"), [None, 3, 12, 10]),
        (("inputs", 0, "name"), {"a": 1}),
        (("engines",), {"k": {**ENGINE.__dict__, "file": "golden.npz", "profiles": [[1, 2]]}}),
        (("engines",), {"k": {**ENGINE.__dict__, "file": "golden.npz", "profiles": [[1, "x", 2]]}}),
        (("files", "golden.npz", "size"), None),
        (("preprocessing", "channels"), 7),
        (("preprocessing", "mean"), {}),
    ],
    ids=str,
)
def test_values_of_wrong_types_are_refused(bundle: Bundle, path: tuple[str | int, ...], value: Any):
    def change(values: Any) -> None:
        for key in path[:-1]:
            values = values[key]
        values[path[-1]] = value

    forge(bundle, change)
    with pytest.raises(BundleError, match=r"manifest\.json (is not a krl manifest|was changed after)"):
        Bundle.open(bundle.path)


def test_mutated_manifests_are_refused_or_run(bundle: Bundle):
    """A fixed seed; each mutation has a digest that fits."""
    rng = random.Random(5)
    file = bundle.path / MANIFEST
    base = file.read_bytes()
    odd = [None, True, -1, 0, 3.5, "", "x", [], {}, [1], {"a": 1}, 10**30, "../x"]

    def places(value: Any) -> list[tuple[Any, Any]]:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return [place for key, part in list(items) for place in ((value, key), *places(part))]

    outcomes = {"ran": 0, "refused": 0}
    for _ in range(400):
        values = json.loads(base)
        container, key = rng.choice(places(values))
        if rng.random() < 0.2 and isinstance(container, dict):
            del container[key]
        else:
            container[key] = rng.choice(odd)
        file.write_bytes(seal(values))
        try:
            with load(bundle.path) as model:
                model.bundle.verify()
                assert model(np.zeros((9, 9, 3), np.uint8)).label in model.labels
            outcomes["ran"] += 1
        except KrlError:
            outcomes["refused"] += 1
    assert outcomes["ran"] > 20
    assert outcomes["refused"] > 200


# Golden inputs.


def test_golden_inputs_may_be_missing(tmp_path: Path):
    with pytest.raises(BundleError, match="has no golden inputs; export it again with real data"):
        write_bundle(tmp_path / "a.krl", golden=0).golden()


@pytest.mark.parametrize("data", [b"", b"garbage", b"PK\x03\x04garbage", b"\x93NUMPY\x01\x00v\x00{"], ids=str)
def test_golden_files_that_are_none(tmp_path: Path, data: bytes):
    bundle = write_bundle(tmp_path / "a.krl", contents={"golden.npz": data})
    with pytest.raises(BundleError, match=r"golden\.npz is not a readable npz file"):
        bundle.golden()


def test_golden_files_with_pickles_are_refused(tmp_path: Path):
    bundle = write_bundle(tmp_path / "a.krl", contents={"golden.npz": npz(pixels=np.array([{}], dtype=object))})
    with pytest.raises(BundleError, match="not a readable npz file"):
        bundle.golden()


def test_a_huge_golden_file_is_not_read(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_MAX_GOLDEN_BYTES", 100)
    with pytest.raises(BundleError, match="unpacks to more than 100 bytes"):
        bundle.golden()


# Updates.


def test_update_adds_and_changes(bundle: Bundle):
    engines = {"k": replace(ENGINE, onnx_sha256=bundle.manifest.files["model.int8.onnx"].sha256)}
    again = bundle.update({ENGINE.file: b"plan"}, engines=engines, evidence={"top1": 0.9})
    again.verify()
    assert again.read(ENGINE.file) == b"plan"
    assert again.manifest.engines == engines
    assert again.manifest.evidence == {"top1": 0.9}
    assert again.manifest.variants == bundle.manifest.variants
    assert set(snapshot(bundle.path)) == {*FILES, ENGINE.file}


def test_replacing_a_file_drops_what_was_made_from_it(bundle: Bundle):
    bundle = bundle.update({ENGINE.file: b"plan"}, engines={"k": ENGINE}, default_variants={"cpu": "int8"})
    again = bundle.update({"model.int8.onnx": b"new"})
    assert set(again.manifest.variants) == {"fp16", "fp32"}
    assert (again.manifest.engines, again.manifest.default_variants) == ({}, {})
    assert again.read("model.int8.onnx") == b"new"
    assert again.manifest.golden == "golden.npz"
    assert again.update({"golden.npz": b"new"}).manifest.golden is None


def test_replacing_a_file_together_with_its_variant(bundle: Bundle):
    variants = {**bundle.manifest.variants, "int8": Variant("int8", "model.int8.onnx", tolerance=0.2)}
    again = bundle.update({"model.int8.onnx": bundle.file("model.fp16.onnx")}, variants=variants)
    assert again.manifest.variants["int8"].tolerance == 0.2
    assert again.manifest.files["model.int8.onnx"] == bundle.manifest.files["model.fp16.onnx"]


@pytest.mark.parametrize(
    ("contents", "changes", "message"),
    [
        ({"../x": b""}, {}, "leaves its folder"),
        ({"model.fp32.onnx": b""}, {}, "the FP32 reference is not replaced; export a new bundle"),
        ({}, {"calibration": "calibration.json"}, r"refers to \['calibration.json'\] but does not list"),
        ({}, {"default_variants": {"cpu": "int4"}}, "has no variant"),
    ],
)
def test_refused_updates_change_nothing(bundle: Bundle, contents: dict, changes: dict, message: str):
    before = snapshot(bundle.path)
    with pytest.raises(BundleError, match=message):
        bundle.update(contents, **changes)
    assert snapshot(bundle.path) == before
    assert [path.name for path in bundle.path.parent.iterdir()] == ["tiny.krl"]


# A full disk, and interruptions.


@pytest.mark.parametrize("failing", range(1, 7))
def test_a_full_disk_while_creating(tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, failing: int):
    contents = {name: bundle.read(name) for name in FILES[1:]}
    before = snapshot(bundle.path)
    fill_disk(monkeypatch, failing)
    for path in (bundle.path, tmp_path / "new.krl"):
        with pytest.raises(OSError, match="No space left"):
            Bundle.create(path, bundle.manifest, contents, replace=True)
    assert snapshot(bundle.path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.krl"]


@pytest.mark.parametrize("failing", range(1, 5))
def test_a_full_disk_while_updating(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, failing: int):
    before = snapshot(bundle.path)
    fill_disk(monkeypatch, failing)
    with pytest.raises(OSError, match="No space left"):
        bundle.update({"model.int8.onnx": b"new", ENGINE.file: b"plan"})
    after = snapshot(bundle.path)
    assert after == before
    load(bundle.path, variant="int8").close()


def fill_disk(monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    """From the ``failing``th on, every write writes half and fails."""
    calls = 0
    write = Path.write_bytes

    def half(self: Path, data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls < failing:
            return write(self, data)
        write(self, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)


def test_a_real_limit_on_file_sizes_leaves_the_old_bundle(bundle: Bundle):
    before = snapshot(bundle.path)
    code = (
        "import resource, signal, sys\n"
        "from krl_runtime import Bundle\n"
        "bundle = Bundle.open(sys.argv[1])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: bundle.update({'model.int8.onnx': bytes(300_000)})\n"
        "except OSError as error: print(error.errno)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, bundle.path], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(errno.EFBIG)]
    assert snapshot(bundle.path) == before


UPDATE = """
import os, sys
from dataclasses import replace
from pathlib import Path
from krl_runtime import Bundle
bundle = Bundle.open(sys.argv[1])
left = int(sys.argv[2])
def interrupted(original):
    def rename(self, target):
        global left
        left -= 1
        if left < 0:
            if sys.argv[3] == "kill":
                os._exit(9)
            raise KeyboardInterrupt
        return original(self, target)
    return rename
Path.replace, Path.rename = interrupted(Path.replace), interrupted(Path.rename)
new = bundle.read("model.fp16.onnx")
names = ("model.int8.onnx", "model.int8.cpu.onnx")
try:
    if sys.argv[4] == "update":
        bundle.update({**dict.fromkeys(names, new), "note.txt": b"new"}, variants=bundle.manifest.variants)
    else:
        contents = {name: new if name in names else bundle.file(name) for name in bundle.manifest.files}
        Bundle.create(bundle.path, bundle.manifest, contents, replace=True)
    print("done")
except KeyboardInterrupt:
    print("interrupted")
"""


def int8_hash(path: Path) -> str:
    """Return which of the two INT8 contents a bundle runs: that of the old file, of the new one, or none."""
    bundle = Bundle.open(path)
    bundle.verify()
    with load(path) as model:
        assert model(np.zeros((9, 9, 3), np.uint8)).label in LABELS
    if "int8" not in bundle.manifest.variants:
        return "dropped"
    load(path, variant="int8").close()
    same = bundle.manifest.files["model.int8.cpu.onnx"] == bundle.manifest.files["model.fp16.onnx"]
    return "new" if same else "old"


@pytest.mark.parametrize("how", ["kill", "raise"])
def test_an_update_interrupted_at_any_rename_leaves_a_bundle_that_loads(bundle: Bundle, how: str):
    before = snapshot(bundle.path)
    states = []
    for renames in range(6):
        for name, data in before.items():
            (bundle.path / name).write_bytes(data)
        command = [sys.executable, "-c", UPDATE, bundle.path, str(renames), how, "update"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 9), done.stderr
        states.append(int8_hash(bundle.path))
        if how == "raise":
            assert not list(bundle.path.glob("*.tmp"))
    # The first manifest, three files, the second manifest.
    assert states == ["old", "dropped", "dropped", "dropped", "dropped", "new"]
    assert done.stdout.strip() == "done"


def test_a_replacement_interrupted_at_any_rename_loses_no_bundle(bundle: Bundle):
    states = []
    for renames in range(3):
        command = [sys.executable, "-c", UPDATE, bundle.path, str(renames), "kill", "create"]
        subprocess.run(command, capture_output=True, check=False)
        if bundle.path.exists():
            states.append(int8_hash(bundle.path))
        else:
            with pytest.raises(BundleError, match="does not exist"):
                Bundle.open(bundle.path)
            (old,) = bundle.path.parent.glob(f".{bundle.path.name}.*.old")
            states.append(f"{int8_hash(old)}, under another name")
            os.rename(old, bundle.path)
    assert states == ["old", "old, under another name", "new"]


def test_manifest_bytes_are_the_only_ones(bundle: Bundle):
    file = bundle.path / MANIFEST
    file.write_bytes(json.dumps(json.loads(file.read_bytes())).encode())
    with pytest.raises(BundleError, match="was changed after krl wrote it"):
        Bundle.open(bundle.path)
    assert Manifest.from_bytes(bundle.manifest.to_bytes(), "here").name == "tiny"


def test_a_run_where_a_bundle_is_expected(tmp_path: Path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(
        BundleError, match=r"is a run, where a bundle is needed; make one with: krl-deploy export .* -o"
    ):
        Bundle.open(tmp_path)
