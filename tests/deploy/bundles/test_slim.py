"""One file with only what a target loads: its content, its bytes, and that it runs where the whole bundle ran."""

from __future__ import annotations

import json
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import krl_deploy
from _helpers.bundles import write_bundle
from krl_deploy.cli import main
from krl_runtime import Bundle, BundleError, UsageError, load
from krl_runtime.bundle import Engine
from krl_runtime.cli import main as runtime

ORIN = Engine("engines/orin.engine", "int8", "0" * 64, "10.3.0.30", ("8.7",), "Orin", "linux-aarch64", ((1, 1, 1),))
ENGINES = {
    "orin": ORIN,
    "thor": replace(ORIN, file="engines/thor.engine", version="10.13.0.1", compute_capabilities=("11.0",)),
    "desktop": replace(ORIN, file="engines/desktop.engine", version="10.3.0.26", compute_capabilities=("8.9",)),
    "half": replace(ORIN, file="engines/half.engine", variant="fp16"),
    "rtx": replace(ORIN, file="engines/rtx.engine", version="1.5.0.1", library="tensorrt-rtx", platform=""),
}


@pytest.fixture
def whole(tmp_path: Path) -> Bundle:
    contents = {"extra.txt": b"x", "calibration.json": b"{}", **{engine.file: b"plan" for engine in ENGINES.values()}}
    return write_bundle(
        tmp_path / "flowers.krl",
        variants=("fp32", "fp16", "int8"),
        engines=ENGINES,
        contents=contents,
        calibration="calibration.json",
        default_variants={"cpu": "int8", "cuda": "int8"},
    )


def package(whole: Bundle, target: str, out: Path, **options):
    result = krl_deploy.package(bundle=whole.path, slim=True, target=target, out=out, **options).details
    with tarfile.open(out) as archive:
        archive.extractall(out.with_suffix(""), filter="data")
    return result, Bundle.open(out.with_suffix("") / "flowers.krl")


@pytest.mark.parametrize(
    ("target", "options", "wanted"),
    [
        ("cpu", {}, ["model.int8.cpu.onnx"]),
        ("onnxruntime-cpu", {"variant": "fp32"}, ["model.fp32.onnx"]),
        ("openvino", {}, ["model.int8.onnx"]),  # it has no graph of its own here
        ("cuda", {"variant": "fp16"}, ["model.fp16.onnx"]),
        ("jetpack-6.2", {}, ["engines/orin.engine", "model.int8.onnx"]),
        ("jetpack-6.2", {"variant": "fp16"}, ["engines/half.engine", "model.fp16.onnx"]),
        ("jetpack-7.0", {}, ["engines/thor.engine", "model.int8.onnx"]),
        ("tensorrt-10.3", {}, ["engines/desktop.engine", "engines/orin.engine", "model.int8.onnx"]),
        ("tensorrt-11.4", {}, ["model.int8.onnx"]),
        ("rtx", {}, ["engines/rtx.engine", "model.int8.onnx"]),
    ],
)
def test_only_the_files_of_the_target_are_in_it(whole, tmp_path, target, options, wanted):
    result, thin = package(whole, target, tmp_path / "thin.tar", **options)
    thin.verify()
    assert sorted(thin.manifest.files) == sorted(["golden.npz", *wanted])
    assert sorted(str(path.relative_to(thin.path)) for path in thin.path.rglob("*") if path.is_file()) == sorted(
        ["golden.npz", "manifest.json", *wanted]
    )
    assert list(thin.manifest.variants) == [result["variant"]]
    assert result["bytes"] == sum((thin.path / name).stat().st_size for name in thin.manifest.files)
    assert result["bytes_of_the_whole"] > result["bytes"]
    for name in wanted:
        assert (thin.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_the_unpacked_bundle_runs_and_passes_its_self_test(whole, tmp_path, capsys):
    _, thin = package(whole, "cpu", tmp_path / "thin.tar")
    assert runtime(["selftest", str(thin.path), "--json"]) == 0
    replays = json.loads(capsys.readouterr().out)["replays"]
    assert [item["state"] for item in replays if item["kind"] == "cpu"] == ["passed"]
    pixels = thin.golden()["pixels"]
    session = onnxruntime.InferenceSession(whole.read("model.int8.cpu.onnx"), providers=["CPUExecutionProvider"])
    with load(thin.path) as model:
        assert model.backend.variant == "int8"
        np.testing.assert_array_equal(model.logits(pixels), session.run(None, {"pixels": pixels})[0])
    assert runtime(["tune", str(thin.path), "--rounds", "1", "--quiet", "--threads", "1", "--max-drop", "100"]) in (
        0,
        2,
    )


def test_the_same_bundle_makes_the_same_bytes_and_an_old_file_stays(whole, tmp_path, capsys):
    one, two = tmp_path / "one.tar", tmp_path / "two.tar"
    package(whole, "cpu", one)
    package(whole, "cpu", two)
    assert one.read_bytes() == two.read_bytes()
    with tarfile.open(one) as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == sorted(member.name for member in members)
    assert {(member.mtime, member.uid, member.gid, member.uname, member.mode) for member in members} == {
        (0, 0, 0, "", 0o644)
    }
    before = one.read_bytes()
    arguments = ["package", str(whole.path), "--slim", "--target", "rtx", "-o", str(one)]
    assert main(arguments) == 2
    assert "exists already; give another name to -o, or --overwrite" in capsys.readouterr().err
    assert one.read_bytes() == before
    assert main([*arguments, "--overwrite"]) == 0
    assert one.read_bytes() != before


def test_a_signed_bundle_is_signed_again_or_refused(whole, tmp_path):
    pytest.importorskip("cryptography")
    key = tmp_path / "krl-key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    krl_deploy.sign(bundle=whole.path, key=key)
    with pytest.raises(UsageError, match="signature does not hold for fewer files; give --key KEY"):
        package(whole, "cpu", tmp_path / "thin.tar")
    assert not (tmp_path / "thin.tar").exists()
    result, thin = package(whole, "cpu", tmp_path / "thin.tar", key=key)
    assert result["public_key"]
    Bundle.open(thin.path, trust=[key.with_suffix(".pub")])
    Bundle.open(whole.path, trust=[key.with_suffix(".pub")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slim", "--target", "jetson"], "accepted: jetpack-6.1"),
        (["--slim", "--target", "jetpack-5.1"], "krl needs TensorRT 10.3"),
        (["--slim"], "--slim and --target belong together"),
        (["--target", "cpu"], "give --to triton, or --slim"),
        (["--to", "triton", "--slim", "--target", "cpu"], "one of them"),
        (["--slim", "--target", "cpu", "--max-batch", "4"], "--max-batch is for --to triton"),
        (["--to", "triton", "--key", "k"], "--key is for --slim"),
        (["--slim", "--target", "cpu", "--variant", "int4"], "no variant 'int4'"),
    ],
)
def test_faults_of_the_command_line(whole, tmp_path, capsys, arguments, message):
    assert main(["package", str(whole.path), "-o", str(tmp_path / "x.tar"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.tar").exists()


def test_commands_that_need_the_reference_say_that_it_is_not_there(whole, tmp_path, capsys):
    _, thin = package(whole, "cpu", tmp_path / "thin.tar")
    for command in (["quantize", str(thin.path)], ["fp16", str(thin.path)]):
        assert main([*command, "--accept-unmeasured"]) == 2
        error = capsys.readouterr().err
        assert (
            "was packaged for cpu alone and has no FP32 reference; use the whole bundle" in error or "--data" in error
        )
    with pytest.raises(BundleError, match="packaged for cpu alone"):
        _ = thin.reference


def test_a_quantized_bundle_runs_from_each_file_of_it(bundle, digits, tmp_path, capsys):
    krl_deploy.quantize(bundle=bundle.path, data=digits, limit=64)
    whole = Bundle.open(bundle.path)
    for target in ("cpu", "openvino", "cuda", "jetpack-6.2"):
        out = tmp_path / f"{target}.tar"
        krl_deploy.package(bundle=whole.path, slim=True, target=target, variant="int8", out=out)
        with tarfile.open(out) as archive:
            archive.extractall(tmp_path / target, filter="data")
        capsys.readouterr()
        code = runtime(["selftest", str(tmp_path / target / "digits.krl"), "--json"])
        replays = json.loads(capsys.readouterr().out)["replays"]
        assert code == 0, replays
        assert "passed" in {item["state"] for item in replays}
        assert out.stat().st_size < sum(entry.size for entry in whole.manifest.files.values()) / 2


def test_a_packaged_bundle_is_not_packaged_for_another_target(whole, tmp_path):
    _, thin = package(whole, "cpu", tmp_path / "thin.tar")
    with pytest.raises(BundleError, match="packaged for cpu alone, and lacks what rtx loads"):
        krl_deploy.package(bundle=thin.path, slim=True, target="rtx", out=tmp_path / "other.tar")
    assert not (tmp_path / "other.tar").exists()
    again = krl_deploy.package(bundle=thin.path, slim=True, target="cpu", out=tmp_path / "again.tar").details
    assert again["files"] == sorted(thin.manifest.files)


@pytest.mark.parametrize(("target", "warned"), [("tensorrt-11.4", True), ("rtx", False), ("cpu", False)])
def test_a_file_without_an_engine_for_its_target_is_said(whole, tmp_path, caplog, target, warned):
    package(whole, target, tmp_path / "thin.tar")
    assert ("has no engine of variant int8 for tensorrt-11.4" in caplog.text) is warned
