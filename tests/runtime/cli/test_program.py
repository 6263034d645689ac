from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from _helpers.bundles import LABELS, write_bundle
from _helpers.fused import expected, samples, write_fused, write_fused_list
from krl_runtime import Bundle, __version__, load
from krl_runtime.cli import main
from krl_runtime.device import doctor
from krl_runtime.device.doctor import Component

pytestmark = pytest.mark.usefixtures("without_openvino")

FILES = (
    "manifest.json", "golden.npz", "model.fp16.onnx", "model.fp32.onnx", "model.int8.cpu.onnx", "model.int8.onnx"
)  # fmt: skip


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """Run the command here; return exit code, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


# classify


def test_classify_prints_a_table(run, bundle: Bundle, images: list[Path]):
    code, out, err = run("classify", bundle.path, *images)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["file", "prediction", "score", "then"]
    model = load(bundle.path)
    for line, image in zip(lines[2:], images, strict=True):
        assert line.split()[:3] == [str(image), model(image).label, f"{model(image).score:.1%}"]
    reason, following = err.splitlines()
    assert reason.startswith("tiny: onnxruntime-cpu runs variant fp32 (")
    assert following == f"next: krl-runtime bench {bundle.path}"


def test_quiet_leaves_the_result_alone(run, bundle: Bundle, images: list[Path]):
    code, out, err = run("--quiet", "classify", bundle.path, images[0])
    assert (code, err) == (0, "")
    assert "prediction" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("clasify", "a.krl"), "unknown command 'clasify' (did you mean 'classify'?); accepted: classify, generate"),
        (("classify", "a.krl", "--topk", "3"), "unknown option --topk (did you mean '--top-k'?); accepted: --back"),
        (("bench", "a.krl", "--batchsize=3"), "unknown option --batchsize (did you mean '--batch'?)"),
    ],
)
def test_misspelled_words_get_a_suggestion(run, arguments: tuple[str, ...], message: str):
    code, _, err = run(*arguments)
    assert code == 2
    assert message in err


def test_classify_prints_json(run, bundle: Bundle, images: list[Path]):
    code, out, _ = run("classify", bundle.path, images[0], "--json", "--top-k", 2, "--variant", "int8", "--threads", 1)
    assert code == 0
    answer = json.loads(out)
    assert list(answer) == ["bundle", "backend", "variant", "reason", "results", "skipped"]
    assert (answer["bundle"], answer["backend"], answer["variant"]) == (str(bundle.path), "onnxruntime-cpu", "int8")
    assert answer["reason"].startswith("onnxruntime-cpu runs variant int8 (as asked)")
    assert answer["skipped"] == []
    (result,) = answer["results"]
    expected = load(bundle.path, variant="int8")(images[0], top_k=2)
    assert list(result) == ["file", "label", "index", "score", "top", "known"]
    assert (result["file"], result["label"], result["index"]) == (str(images[0]), expected.label, expected.index)
    assert result["score"] == pytest.approx(expected.score)
    assert [(item["label"], item["score"]) for item in result["top"]] == [
        (label, pytest.approx(score)) for label, score in expected.top
    ]


def test_classify_says_none_of_these(run, tmp_path: Path, images: list[Path]):
    path = write_bundle(tmp_path / "careful.krl", settings={"least_score": 1.0}).path
    _, shown, _ = run("classify", path, images[0], "--top-k", 1)
    with load(path) as model:
        best = model(images[0])
    (line,) = [line for line in shown.splitlines() if line.startswith(str(images[0]))]
    assert "none of these" in line
    assert line.rstrip().endswith(f"{best.label} {best.score:.1%}")
    answer = json.loads(run("classify", path, images[0], "--json")[1])["results"][0]
    assert (answer["known"], answer["label"]) == (False, best.label)


def test_the_bundle_may_stand_anywhere(run, bundle: Bundle, images: list[Path]):
    expected = run("classify", bundle.path, *images)[1]
    first, *others = images
    assert run("classify", first, bundle.path, *others) == (0, expected, run("classify", bundle.path, *images)[2])
    for flag in ("-b", "--bundle"):
        code, out, _ = run("classify", *images, flag, bundle.path)
        assert (code, out) == (0, expected)


def test_bundles_and_images_are_distinguished(run, bundle: Bundle, images: list[Path]):
    code, _, err = run("classify", images[0], bundle.path, bundle.path.parent / "." / "tiny.krl" / ".." / "tiny.krl")
    assert code == 2
    assert "2 bundles were given: " in err
    code, _, err = run("classify", bundle.path)
    assert code == 2
    assert "no images were given beside" in err
    code, _, err = run("classify", *images)
    assert code == 2
    assert "a.png is a file, not a bundle" in err


def test_classify_takes_folders_and_names_a_file_once(run, bundle: Bundle, images: list[Path]):
    folder = images[0].parent
    code, out, _ = run("classify", bundle.path, folder, images[0], "--json")
    assert code == 0
    assert [result["file"] for result in json.loads(out)["results"]] == [str(path) for path in images]


@pytest.fixture
def with_bad_ones(images: list[Path]) -> list[Path]:
    """Good, truncated, no image, missing, good."""
    folder = images[0].parent
    (folder / "text.png").write_text("not an image")
    images[1].write_bytes(images[1].read_bytes()[:-40])
    return [images[0], images[1], folder / "text.png", folder / "none.png", images[2]]


def test_bad_files_among_good_ones_are_named_and_nothing_is_answered(run, bundle: Bundle, with_bad_ones: list[Path]):
    for flags in ((), ("--json",), ("--on-bad-image", "refuse")):
        code, out, err = run("classify", bundle.path, *with_bad_ones, *flags)
        assert (code, out) == (2, "")
        assert "krl-runtime: error: 3 files cannot be used: " in err
        assert "b.png is damaged or truncated" in err
        assert "text.png is not an image of an accepted format" in err
        assert "none.png: no such file" in err
        assert "Traceback" not in err


def test_bad_files_are_skipped_when_asked(run, bundle: Bundle, with_bad_ones: list[Path]):
    code, out, err = run("classify", bundle.path, *with_bad_ones, "--on-bad-image", "skip", "--json")
    assert code == 0
    answer = json.loads(out)
    assert [result["file"] for result in answer["results"]] == [str(with_bad_ones[0]), str(with_bad_ones[4])]
    assert [item["file"] for item in answer["skipped"]] == [str(path) for path in with_bad_ones[1:4]]
    assert "no such file" in answer["skipped"][2]["cause"]
    assert "skipped 3 files: " in err
    code, out, err = run("classify", bundle.path, *with_bad_ones[1:4], "--on-bad-image", "skip")
    assert (code, out) == (2, "")
    assert "no image is left" in err


def test_other_files_in_a_folder(run, bundle: Bundle, images: list[Path]):
    folder = images[0].parent
    (folder / "notes.txt").touch()
    code, _, err = run("classify", bundle.path, folder)
    assert code == 2
    assert "notes.txt is not an image" in err
    code, out, _ = run("classify", bundle.path, folder, "--on-bad-image", "skip", "--json")
    assert (code, len(json.loads(out)["results"])) == (0, 3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--require", "cuda"), "cannot run on cuda, which is required: the onnxruntime"),
        (("--require", "tensorrt-rtx"), "which is required: the bundle has no TensorRT-RTX engine; krl-deploy"),
        (("--require", "tensorrt"), "which is required: the bundle has no TensorRT engine; krl-deploy build-engine"),
        (("--variant", "int4"), "has no variant 'int4'; it has: fp16, fp32, int8"),
    ],
)
def test_what_cannot_be_done_is_said(run, bundle: Bundle, images: list[Path], flags: tuple, message: str):
    code, out, err = run("classify", bundle.path, images[0], *flags)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize(
    "arguments",
    [
        (), ("classify",), ("classify", "a.krl", "x.png", "--top-k", "0"),
        ("classify", "a.krl", "x.png", "--threads", "-1"), ("classify", "a.krl", "x.png", "--top-k", "many"),
        ("classify", "a.krl", "x.png", "--backend", "gpu"), ("bench", "a.krl", "--warmup", "-1"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_usage_errors_exit_with_2(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: krl-runtime" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"krl-runtime {__version__}\n"


# info, and damage


def test_info(run, bundle: Bundle):
    scores = {"fp32": {"top1": 0.91}, "int8.cpu": {"top1": 0.905, "agreement": 0.99}, "odd": 3}
    scores["int8"] = {"top1": None, "agreement": 0.99}
    evidence = {
        "fp32": {"macs": 40551040, "parity": {"max_abs_error": 1.1444e-05, "inputs": 32}, "file_bytes": 99},
        "int8": {"drop_points": 0.5, "speedup": 2.216, "images": {"count": 385, "data": "x"}, "scores": scores},
        "engines": {"k": {"seconds": 12.5, "layers": 7}},
        "mine": {"color": "red", "deep": {"a": 1}, "long": ["word"] * 100},
        "odd": 7,
    }
    bundle.update({}, default_variants={"cpu": "int8"}, evidence=evidence, source={"run": "abc", "all": {"b": 2}})
    code, out, _ = run("info", bundle.path)
    assert code == 0
    for part in ("tiny", "classification", "4: cat, dog, frog, ship", "cpu: int8"):
        assert part in out
    lines = dict(line.split("  ", 1) for line in out.splitlines() if line.startswith(("evidence", "source")))
    assert {key: value.strip() for key, value in lines.items()} == {
        "evidence fp32": "40,551,040 MACs; largest error of an output 1.1e-05 against the reference",
        "evidence int8": "drop of 0.50 points of top-1; 2.22 times FP32's speed on the CPU that measured it; "
        "measured on 385 images; fp32 91.00%; int8 agrees 99.0%; int8.cpu 90.50%",
        "evidence engines": "k: built in 12.5 s",
        "evidence mine": lines["evidence mine"].strip(),
        "evidence odd": "7",
        "source": "run abc",
    }
    assert lines["evidence mine"].strip().startswith("color red, long ['word',")
    assert max(map(len, lines.values())) <= 165
    assert "5, every SHA-256 checked" in out
    assert "model.int8.cpu.onnx" in out
    assert "engine of" not in out


def test_info_as_json_is_the_manifest(run, bundle: Bundle):
    code, out, _ = run("info", bundle.path, "--json")
    assert code == 0
    values = json.loads(out)
    assert values.pop("path") == str(bundle.path)
    assert values.pop("verified") is True
    assert values == json.loads((bundle.path / "manifest.json").read_bytes())


def test_info_shows_engines_and_cuts_long_lists_of_labels(run, tmp_path: Path):
    from krl_runtime.bundle import Engine

    engine = Engine("k.engine", "fp32", "0" * 64, "10.3.0.30", ("8.7",), "Orin", "linux-aarch64", ((1, 4, 8),))
    bundle = write_bundle(tmp_path / "a.krl", labels=[f"c{i}" for i in range(20)])
    bundle.update({"k.engine": b"plan"}, engines={"k": engine})
    code, out, _ = run("info", bundle.path)
    assert code == 0
    assert "20: c0, c1, c2, c3, c4, c5, c6, c7 …" in out
    assert "1..4..8" in out
    assert "Orin" in out


@pytest.mark.parametrize("command", ["info", "selftest"])
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_in_any_file_is_found(run, bundle: Bundle, command: str, name: str):
    flip(bundle.path / name)
    code, out, err = run(command, bundle.path)
    assert (code, out) == (2, "")
    assert err.startswith("krl-runtime: error: ")
    assert name in err


def test_another_schema_version(run, bundle: Bundle, images: list[Path]):
    file = bundle.path / "manifest.json"
    file.write_text(file.read_text().replace('"schema_version": 3', '"schema_version": 9'))
    for arguments in (("info", bundle.path), ("classify", bundle.path, images[0]), ("bench", bundle.path)):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert "has schema version 9; this krl reads version 3; export the bundle again" in err


def test_no_bundle(run, tmp_path: Path, images: list[Path]):
    code, _, err = run("classify", tmp_path / "none.krl", images[0])
    assert code == 2
    assert "none.krl does not exist; a bundle is the folder that krl-deploy export makes" in err


# selftest


def test_selftest_passes(run, bundle: Bundle):
    code, out, err = run("selftest", bundle.path)
    assert (code, err) == (0, f"next: krl-runtime tune {bundle.path}\n")
    lines = out.splitlines()
    assert len(lines) == 2 + 12
    assert sum("passed" in line for line in lines) == 3
    assert sum("unavailable" in line for line in lines) == 9
    assert out.count("the bundle has no TensorRT engine") == 3
    code, out, _ = run("selftest", bundle.path, "--json", "--threads", 1)
    values = json.loads(out)
    assert (code, values["passed"], len(values["replays"])) == (0, True, 12)


def test_selftest_fails(run, tmp_path: Path):
    bundle = write_bundle(tmp_path / "a.krl", variants=("fp32", "int8"))
    other = write_bundle(tmp_path / "b.krl", seed=9).read("model.fp32.onnx")
    variants = bundle.manifest.variants
    bundle.update({"model.int8.cpu.onnx": other}, variants=variants)
    code, out, err = run("selftest", bundle.path)
    assert code == 1
    assert "is above the tolerance" in out
    assert "krl-runtime: error: 1 of 8 replays failed: int8 on cpu" in err
    code, out, _ = run("selftest", bundle.path, "--json")
    assert (code, json.loads(out)["passed"]) == (1, False)


def test_selftest_without_any_backend_is_no_success(run, bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, err = run("selftest", bundle.path)
    assert code == 2
    assert "nothing was tested: no backend is here; krl-runtime doctor says why" in err


# bench


def test_bench(run, bundle: Bundle):
    code, out, _ = run("bench", bundle.path, "--iterations", 3, "--warmup", 0, "--threads", 1)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["milliseconds", "p50", "p95", "p99", "mean"]
    assert [line.split()[0] for line in lines[2:6]] == ["whole", "preprocess", "inference", "postprocess"]
    for part in ("throughput:", "cold start:", "peak memory:", "the first golden input as a JPEG of 640x480"):
        assert part in out


def test_bench_as_json_with_an_image(run, bundle: Bundle, images: list[Path]):
    flags = ("--iterations", 2, "--warmup", 1, "--batch", 2, "--image", images[0], "--variant", "fp16", "--json")
    code, out, _ = run("bench", bundle.path, *flags)
    assert code == 0
    values = json.loads(out)
    assert (values["variant"], values["batch"], values["image"]) == ("fp16", 2, str(images[0]))
    assert values["load_ms"] > 0
    assert values["throughput_per_s"] > 0
    code, _, err = run("bench", bundle.path, "--image", "none.png")
    assert code == 2
    assert "no such file or folder (none.png)" in err


def test_bench_on_a_board_that_tells_its_state(run, bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("krl_runtime.device.bench.board_state", lambda: {"power_mode": "MODE_30W"})
    _, out, _ = run("bench", bundle.path, "--iterations", 1)
    assert [line.split() for line in out.splitlines()[-3::2]] == [
        ["board", "before", "after"],
        ["power", "mode", "MODE_30W", "MODE_30W"],
    ]


def test_bench_where_the_memory_is_not_known(run, bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("krl_runtime.device.bench.peak_memory_mib", lambda: None)
    _, out, _ = run("bench", bundle.path, "--iterations", 1)
    assert "peak memory: not known here" in out


# doctor


def test_doctor(run):
    code, out, _ = run("doctor")
    assert code == 0
    assert out.splitlines()[0].split() == ["component", "state", "found", "what", "to", "do"]
    assert "onnxruntime-cpu" in out
    code, out, _ = run("doctor", "--json")
    values = json.loads(out)
    assert (code, values["can_run"]) == (0, True)
    assert {"component", "state", "detail", "advice", "runs_models"} == set(values["findings"][0])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("cpu family\t: 6\nflags\t: avx2 avx512f\n", "no VNNI, AVX-VNNI or AMX"),
        ("cpu family\t: 6\nflags\t: avx2 avx_vnni\n", "the processor has avx_vnni: INT8 products"),
        ("CPU implementer\t: 0x41\nFeatures\t: asimd asimddp\n", "the processor has asimddp: INT8 products"),
        ("CPU implementer\t: 0x41\nFeatures\t: asimd\n", "the processor has neither dot product"),
        ("", "not known on this system"),
    ],
)
def test_doctor_says_what_int8_runs_on(run, monkeypatch: pytest.MonkeyPatch, flags: str, said: str):
    monkeypatch.setattr("krl_runtime.processor.read_start", lambda path: flags)
    code, out, _ = run("doctor", "--json")
    (found,) = [item for item in json.loads(out)["findings"] if item["component"] == "int8"]
    assert code == 0
    assert found["state"] == "ok"
    assert said in found["detail"]
    assert ("exact mode" in found["detail"]) == ("no VNNI" in said)
    _, out, _ = run("doctor")
    assert said.split()[-1] in out


def test_doctor_where_nothing_runs(run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "doctor", lambda: (Component("onnxruntime-cpu", "missing", "x", "install it"),))
    code, out, err = run("doctor")
    assert code == 1
    assert "install it" in out
    assert "no backend can run here" in err


# The real command in a process of its own.


def test_the_command_in_a_fresh_process(bundle: Bundle, images: list[Path]):
    line = [sys.executable, "-m", "krl_runtime", "classify", bundle.path, images[0], "--json"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["results"][0]["label"] in LABELS
    assert done.stderr == "tiny: onnxruntime-cpu runs variant fp32 (the bundle names no default for cpu)\n"
    verbose = subprocess.run([*line, "--verbose"], capture_output=True, text=True, check=True)
    assert "skipped: tensorrt (the bundle has no TensorRT engine; krl-deploy build-engine adds one" in verbose.stderr
    quiet = subprocess.run(
        line, capture_output=True, text=True, check=True, env={**os.environ, "KRL_LOG_LEVEL": "warning"}
    )
    assert (quiet.stdout, quiet.stderr) == (done.stdout, "")


def test_it_runs_without_the_libraries_of_training_and_deployment(bundle: Bundle, images: list[Path]):
    blocked = ("accelerate", "onnx", "rich", "sklearn", "torch", "torchvision", "tyro", "yaml")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); from krl_runtime.cli import main; "
        "raise SystemExit(main())"
    )
    for arguments in (("classify", bundle.path, images[0]), ("selftest", bundle.path), ("doctor",)):
        line = [sys.executable, "-c", code, *arguments]
        assert subprocess.run(line, capture_output=True, check=False).returncode == 0


def test_large_images_are_scaled(run, bundle: Bundle, tmp_path: Path):
    Image.fromarray(np.zeros((600, 800, 3), np.uint8)).save(tmp_path / "large.jpg")
    code, out, _ = run("classify", bundle.path, tmp_path / "large.jpg", "--json")
    assert code == 0
    black = load(bundle.path)(np.zeros((12, 10, 3), np.uint8))
    assert json.loads(out)["results"][0]["score"] == pytest.approx(black.score, abs=1e-6)


# several inputs


@pytest.fixture
def fused(tmp_path: Path) -> tuple[Path, Path, list[str]]:
    """Return a bundle with several inputs, a list of samples, and the classes that numpy computes for them."""
    given = samples(4)
    wanted = [LABELS[int(expected(sample).argmax())] for sample in given]
    return write_fused(tmp_path / "fused.krl").path, write_fused_list(tmp_path / "data", given), wanted


def test_classify_a_list_of_samples(run, fused: tuple[Path, Path, list[str]]):
    bundle, path, wanted = fused
    code, out, err = run("classify", bundle, path, "--json")
    assert code == 0, err
    assert [result["label"] for result in json.loads(out)["results"]] == wanted


def test_classify_an_image_with_further_inputs(run, fused: tuple[Path, Path, list[str]]):
    bundle, path, wanted = fused
    size = path.read_text("utf-8").splitlines()[2].split(",")[3]
    more = ["--input", "color=blue", "--input", f"size={size}", "--input", f"right={path.parent / 'right1.png'}"]
    code, out, err = run("classify", bundle, path.parent / "image1.png", *more, "--json")
    assert code == 0, err
    assert json.loads(out)["results"][0]["label"] == wanted[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "the model needs 'color', 'size', 'right' beside the image; give --input color=VALUE, or a list"),
        (["--input", "color"], "--input 'color' is not accepted; accepted: NAME=VALUE"),
        (["--input", "tint=red"], "no such input; accepted: color, size, right"),
        (["--input", "color=red", "--input", "color=blue"], "is given twice"),
        (["--input", "color=red", "--input", "size=7", "--input", "right={right}"], "'size': '7' is out of range"),
    ],
)
def test_classify_refuses_other_inputs(run, fused: tuple[Path, Path, list[str]], options: list[str], message: str):
    bundle, path, _ = fused
    given = [option.format(right=path.parent / "right1.png") for option in options]
    code, _, err = run("classify", bundle, path.parent / "image1.png", *given)
    assert code == 2
    assert message in err


def test_a_model_of_images_alone_takes_no_further_input(run, bundle: Bundle, images: list[Path]):
    code, _, err = run("classify", bundle.path, images[0], "--input", "color=red")
    assert code == 2
    assert "no such input; it takes images alone" in err


def test_classify_lists_of_images_alone(run, bundle: Bundle, fused: tuple[Path, Path, list[str]]):
    _, path, _ = fused
    path.write_text("image\nimage0.png\n", encoding="utf-8")
    code, out, err = run("classify", bundle.path, path, "--json")
    assert code == 0, err
    assert [Path(result["file"]).name for result in json.loads(out)["results"]] == ["image0.png"]


@pytest.mark.parametrize("command", ["classify", "evaluate"])
def test_a_list_without_a_column_is_refused(run, fused: tuple[Path, Path, list[str]], command: str):
    bundle, path, _ = fused
    path.write_text("image,color,size\nimage0.png,red,1\n", encoding="utf-8")
    code, _, err = run(command, bundle, path)
    assert code == 2
    assert "has the column 'right' not at all" in err


def test_evaluate_needs_a_list_where_a_folder_has_no_attributes(run, fused: tuple[Path, Path, list[str]]):
    bundle, path, _ = fused
    code, _, err = run("evaluate", bundle, path.parent)
    assert code == 2
    assert "give a list of images" in err


def test_bad_rows_are_refused_or_skipped(run, fused: tuple[Path, Path, list[str]]):
    bundle, path, wanted = fused
    lines = path.read_text("utf-8").splitlines()
    lines[1] = lines[1].replace("red", "green")
    path.write_text("\n".join(lines), encoding="utf-8")
    code, _, err = run("classify", bundle, path)
    assert code == 2
    assert "image0.png: input 'color': 'green' is not known; accepted: blue, red" in err
    code, out, _ = run("classify", bundle, path, "--on-bad-image", "skip", "--json")
    assert [result["label"] for result in json.loads(out)["results"]] == wanted[1:]
    code, _, err = run("evaluate", bundle, path, "--backend", "cpu", "--variant", "fp32")
    assert code == 2
    assert "image0.png: input 'color': 'green'" in err
    code, out, err = run(
        "evaluate", bundle, path, "--backend", "cpu", "--variant", "fp32", "--on-bad-image", "skip", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["rows"][0]["metrics"]["count"] == 3


def test_info_says_what_a_sample_has(run, fused: tuple[Path, Path, list[str]]):
    code, out, _ = run("info", fused[0])
    assert code == 0
    for name, value in (("attribute color", "one of blue, red"), ("attribute size", "1 to 3"), ("image right", "")):
        assert any(line.startswith(name) and value in line for line in out.splitlines())
