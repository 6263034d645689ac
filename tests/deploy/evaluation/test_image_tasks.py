"""Restorers and generators through deployment: export, half, quantize with a gate in dB, and a plan."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from _helpers.image_nets import LABELS_CONDITION, LATENT, smooth, write_generator, write_restorer
from _helpers.images import blurred_noise
from krl_deploy.cli import main
from krl_deploy.evaluation import EvaluationOptions, task_of
from krl_deploy.evaluation.restoration import patch_of
from krl_deploy.exporters.parity import check_parity, torch_outputs
from krl_deploy.exporters.plan import ExportPlan
from krl_deploy.precision import quantize as quantize_module
from krl_runtime import Bundle, CheckFailedError, DataError, Generator, Restorer, UsageError, load
from krl_runtime.device.selftest import selftest
from krl_runtime.evaluation.images import ImageScore, ImageTally
from krl_runtime.images import luma
from krl_runtime.images.pairs import inputs_of, read_planes
from krl_runtime.images.preprocessing import Preprocessing
from krl_runtime.pipelines.random_inputs import random_conditions, random_inputs
from krl_train.config import DataConfig, FitConfig, LoopConfig, RestorationConfig
from krl_train.models.generators import build_generator
from krl_train.models.restorers import build_restorer
from krl_train.run import ModelSpec, Run, RunRecord
from krl_train.training.fit import fit


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(quantize_module, "interleaved_latency", lambda sessions, inputs: {"fp32": 2.0, "int8.cpu": 1.0})


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder with train/ and val/ of images that have edges and waves."""
    root = tmp_path_factory.mktemp("photographs")
    for split, count in (("train", 10), ("val", 3)):
        (root / split).mkdir()
        for number in range(count):
            image = smooth(60 + number, 70, 3, seed=number)
            image[20:40, 10 + number : 30] = 255 - image[20:40, 10 + number : 30]
            Image.fromarray(image).save(root / split / f"{number}.png")
    return root


def record(task, spec, preprocessing, data=None):
    return RunRecord(task, spec, preprocessing, (), "krl-train fit", {}, 0, data or {})


@pytest.fixture(scope="module")
def restorer_run(tmp_path_factory, photographs):
    torch.manual_seed(0)
    arguments = {"scale": 2, "color": "y", "overlap": 5, "degradation": {"kind": "bicubic"}}
    spec, preprocessing = ModelSpec("espcn-16", 0, 1, arguments), Preprocessing(20, 24, 1, mean=(0.5,), std=(1.0,))
    network = build_restorer(spec, preprocessing)
    for parameter in network.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    path = tmp_path_factory.mktemp("runs") / "sr"
    made = record("restoration", spec, preprocessing, {"source": str(photographs), "val_source": None})
    return Run.write(path, made, network.backbone.state_dict())


@pytest.fixture(scope="module")
def generator_run(tmp_path_factory):
    torch.manual_seed(0)
    spec = ModelSpec("dcgan-16", 0, 1, {"latent": LATENT})
    preprocessing = Preprocessing(16, 16, 1, mean=(0.5,), std=(0.5,))
    network = build_generator(spec, preprocessing)
    path = tmp_path_factory.mktemp("runs") / "gan"
    return Run.write(path, record("generation", spec, preprocessing), network.backbone.state_dict())


def exported(run, tmp_path, *more):
    path = tmp_path / f"{run.path.name}.krl"
    assert main(["export", str(run.path), "-o", str(path), *map(str, more)]) == 0
    return Bundle.open(path)


def test_export_of_a_restorer(restorer_run, tmp_path, capsys):
    bundle = exported(restorer_run, tmp_path, "--json")
    result = json.loads(capsys.readouterr().out)
    assert result["task"] == "restoration"
    assert result["parity"]["max_abs_error"] < 0.01
    manifest = bundle.manifest
    assert [(spec.name, spec.dtype, spec.shape) for spec in (*manifest.inputs, *manifest.outputs)] == [
        ("pixels", "uint8", ("batch", 1, "height", "width")),
        ("restored", "float32", ("batch", 1, "scaled_height", "scaled_width")),
    ]
    assert manifest.settings == dict(restorer_run.record.model.arguments)
    assert [replay.state for replay in selftest(bundle, threads=1) if replay.kind == "cpu"] == ["passed"]
    model = load(bundle.path, Restorer, threads=1)
    pixels = smooth(300, 280)[None]
    with torch.inference_mode():
        wanted = restorer_run.module()(torch.from_numpy(pixels[None])).numpy()[0]
    np.testing.assert_allclose(model.restore_planes(pixels), wanted, atol=2e-3)


def test_a_graph_for_parts_of_one_size_restores_images_of_any(restorer_run, photographs, tmp_path, capsys):
    bundle = exported(restorer_run, tmp_path, "--tile", "40")
    assert [spec.shape for spec in (*bundle.manifest.inputs, *bundle.manifest.outputs)] == [
        ("batch", 1, 40, 40),
        ("batch", 1, 80, 80),
    ]
    assert bundle.golden()["pixels"].shape == (16, 1, 40, 40)
    assert main(["quantize", str(bundle.path), "--data", str(photographs), "--max-drop", "5"]) == 0
    model = load(bundle.path, Restorer, threads=1, variant="fp32")
    (tmp_path / "open").mkdir()
    whole = load(exported(restorer_run, tmp_path / "open").path, Restorer, threads=1)
    for height, width in ((133, 97), (40, 41)):
        image = smooth(height, width, 3)
        assert np.abs(model(image).pixels.astype(int) - whole(image).pixels).max() <= 1
    small = model(smooth(7, 9, 3)).pixels  # smaller than a part: filled up, and cut off again
    assert small.shape == (14, 18, 3)


def test_images_smaller_than_a_part_are_measured_where_they_are(restorer_run, tmp_path):
    """The folder's images are 30×35 when they are made small: the graph gets 40×40, what counts is the image."""
    rows = tmp_path / "images"
    rows.mkdir()
    image = smooth(60, 70, 3)
    Image.fromarray(image).save(rows / "0.png")
    bundle = exported(restorer_run, tmp_path, "--tile", "40", "--data", rows)
    task = task_of(bundle, EvaluationOptions(rows, 8, 1.0, "refuse"))
    ((given, truth),) = list(task.batches())
    assert given.shape == (1, 1, 40, 40)
    assert truth.shape == (1, 60, 70)
    made = np.zeros((1, 80, 80), np.float32)
    made[:, :60, :70] = truth
    assert task.quality(made, truth) == 100  # what was filled up does not count
    made[0, 30, 30] += 50
    inner = (60 - 4) * (70 - 4)
    assert task.quality(made, truth) == pytest.approx(10 * np.log10(255**2 * inner / 50**2), abs=1e-3)


@pytest.mark.parametrize(
    ("side", "overlap", "message"),
    [
        (10, 5, "--tile is 10; accepted: more than 10, twice the receptive field's radius"),
        (64, None, "--tile: this network needs the whole image at once"),
    ],
)
def test_a_part_that_is_too_small(restorer_run, tmp_path, capsys, side, overlap, message):
    model = restorer_run.record.model
    changed = ModelSpec(model.name, 0, 1, {**model.arguments, "overlap": overlap})
    made = record("restoration", changed, restorer_run.record.preprocessing, dict(restorer_run.record.data))
    run = Run.write(tmp_path / "run", made, restorer_run.state())
    assert main(["export", str(run.path), "-o", str(tmp_path / "a.krl"), "--tile", str(side)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "a.krl").exists()


def test_parts_are_for_restorers(generator_run, tmp_path, capsys):
    assert main(["export", str(generator_run.path), "-o", str(tmp_path / "a.krl"), "--tile", "64"]) == 2
    assert "--tile is for restorers" in capsys.readouterr().err


def test_export_of_a_generator(generator_run, tmp_path):
    bundle = exported(generator_run, tmp_path)
    assert bundle.manifest.settings == {"latent": {"size": LATENT, "distribution": "normal"}}
    model = load(bundle.path, Generator, threads=1)
    latents = np.random.default_rng(0).standard_normal((3, LATENT), dtype=np.float32)
    with torch.inference_mode():
        wanted = generator_run.module()(torch.from_numpy(latents)).numpy()
    np.testing.assert_allclose(model.values(latents), wanted, atol=2e-3)
    assert len(model.generate(4, seed=3)) == 4


def test_export_of_a_conditioned_generator(tmp_path):
    torch.manual_seed(0)
    spec = ModelSpec("dcgan-4", 0, 1, {"latent": LATENT, "condition": LABELS_CONDITION})
    preprocessing = Preprocessing(16, 16, 1, mean=(0.5,), std=(0.5,))
    network = build_generator(spec, preprocessing)
    run = Run.write(tmp_path / "run", record("generation", spec, preprocessing), network.backbone.state_dict())
    bundle = exported(run, tmp_path)
    assert [spec.name for spec in bundle.manifest.inputs] == ["latent", "condition"]
    model = load(bundle.path, Generator, threads=1)
    cat, dog = (model.generate(1, condition=name)[0].pixels for name in ("cat", "dog"))
    assert (cat != dog).any()


def test_export_without_its_images(restorer_run, tmp_path, photographs, capsys):
    gone = record("restoration", restorer_run.record.model, restorer_run.record.preprocessing, {"source": "/nowhere"})
    run = Run.write(tmp_path / "run", gone, restorer_run.state())
    assert main(["export", str(run.path), "-o", str(tmp_path / "a.krl")]) == 2
    assert "parity and golden inputs need real images" in capsys.readouterr().err
    assert main(["export", str(run.path), "-o", str(tmp_path / "a.krl"), "--data", str(photographs)]) == 0


def test_parity_that_fails(restorer_run):
    network = restorer_run.module()
    pixels = smooth(20, 24)[None, None]
    from krl_deploy.exporters.conversion import convert

    batch = torch.export.Dim("batch")
    model = convert(network, {"pixels": torch.zeros((2, 1, 20, 24), dtype=torch.uint8)}, "restored", [{0: batch}], 18)
    plan = ExportPlan(network, model, {"pixels": pixels}, "restored", restorer_run.record.preprocessing, 0)
    data, tolerance = model.SerializeToString(), 0.01 / 255
    wanted = torch_outputs(network, plan.inputs)
    assert check_parity(data, plan, wanted, tolerance)["max_abs_error"] < 0.01
    with torch.no_grad():
        next(network.parameters()).mul_(1.5)
    with pytest.raises(CheckFailedError, match="images differ from torch's by"):
        check_parity(data, plan, torch_outputs(network, plan.inputs), tolerance)


def test_half_and_quantize_of_a_restorer(restorer_run, photographs, tmp_path, capsys):
    bundle = exported(restorer_run, tmp_path)
    assert main(["fp16", str(bundle.path), "--data", str(photographs)]) == 0
    out = capsys.readouterr().out
    assert "PSNR in dB" in out
    assert main(["fp16", str(bundle.path)]) == 0
    arguments = ["quantize", str(bundle.path), "--data", str(photographs), "--max-drop", "1.5"]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out.partition("{")[2].join("{}")[:-1])
    assert result["drop_db"] <= 1.5
    assert result["calibration"]["source"] == "patches of images"
    assert result["scores"]["fp32"]["psnr_to_fp32"] == 200
    assert result["images"] == {"data": photographs.name, "count": 3}
    made = Bundle.open(bundle.path)
    assert made.manifest.variants["int8"].psnr > 20
    states = {(replay.variant, replay.state) for replay in selftest(made, threads=1) if replay.kind == "cpu"}
    assert states == {("fp32", "passed"), ("fp16", "passed"), ("int8", "passed")}
    int8 = load(made.path, Restorer, variant="int8", threads=1)
    assert int8(smooth(40, 30, 3)).mode == "RGB"


def test_the_gate_in_db(restorer_run, photographs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("krl_deploy.evaluation.images.largest_drop", lambda scores: 0.3)
    bundle = exported(restorer_run, tmp_path)
    before = (bundle.path / "manifest.json").read_bytes()
    assert main(["quantize", str(bundle.path), "--data", str(photographs), "--max-drop", "0.2"]) == 1
    error = capsys.readouterr().err
    assert "INT8 is not kept, judged on 3 images: the accuracy drop is 0.30 dB of PSNR, accepted: 0.2; the" in error
    assert (bundle.path / "manifest.json").read_bytes() == before


def test_a_plan_for_a_restorer(restorer_run, photographs, tmp_path, capsys):
    bundle = exported(restorer_run, tmp_path)
    code = main(
        ["quantize", str(bundle.path), "--data", str(photographs), "--mixed-precision", "--json", "--max-drop", "0.05"]
    )
    captured = capsys.readouterr()
    if code == 0:
        plan = json.loads(captured.out.partition("{")[2].join("{}")[:-1])["plan"]
        assert plan["drop"] == "dB of PSNR"
        accepted = [attempt for attempt in plan["attempts"] if attempt["refused"] is None]
        assert all(attempt["drop"] + attempt["standard_error"] <= 0.05 for attempt in accepted)
        assert all(attempt["psnr_to_fp32"] > 20 for attempt in accepted)
        assert plan["tried_on"] == 5
    else:
        assert "no plan with a layer in INT8 is accepted on 5 planning images" in captured.err


def test_half_and_quantize_of_a_generator(generator_run, tmp_path, capsys):
    bundle = exported(generator_run, tmp_path)
    assert main(["fp16", str(bundle.path)]) == 0
    capsys.readouterr()
    assert main(["quantize", str(bundle.path), "--min-psnr", "15", "--limit", "40", "--val-limit", "30", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["calibration"]["source"] == "latents of seed 0"
    assert result["calibration"]["count"] == 40
    assert result["images"] == {"data": "latents of seed 1", "count": 30}
    assert result["min_psnr"] == 15
    assert result["scores"]["int8.cpu"]["psnr_to_fp32"] > 15
    assert main(["quantize", str(bundle.path), "--min-psnr", "190", "--limit", "40", "--val-limit", "30"]) == 1
    assert "dB, required: 190; the bundle is unchanged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("write", "options", "message"),
    [
        (write_generator, ["--max-drop", "1"], "--max-drop needs true images"),
        (write_restorer, ["--max-drop", "1"], "--max-drop needs true images"),
        (write_restorer, [], "a restorer is calibrated on images; give --data FOLDER"),
        (write_generator, ["--from-generator", "x.krl"], "--from-generator makes images for classifiers"),
        (write_generator, ["--min-psnr", "-1"], "--min-psnr is -1.0; accepted: above 0 dB"),
    ],
)
def test_options_of_other_tasks(tmp_path, capsys, write, options, message):
    assert main(["quantize", str(write(tmp_path / "a.krl").path), *options]) == 2
    assert message in capsys.readouterr().err


def test_min_psnr_where_true_images_are_known(tmp_path, photographs):
    bundle = write_restorer(tmp_path / "a.krl")
    with pytest.raises(UsageError, match="give --max-drop, in dB"):
        task_of(bundle, EvaluationOptions(photographs, 10, 0.2, "refuse", min_psnr=30))


def test_a_classifier_on_what_a_generator_makes(bundle, tmp_path, capsys):
    """Images that the generator makes are the calibration source, and stand in its identity."""
    generator = write_generator(tmp_path / "gan.krl")
    arguments = ["quantize", str(bundle.path), "--from-generator", str(generator.path), "--limit", "48"]
    assert main([*arguments, "--val-limit", "20", "--json"]) == 1
    assert "20 images are too few to judge by" in capsys.readouterr().err
    assert main([*arguments, "--val-limit", "20", "--accept-unmeasured", "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    digest = generator.manifest.digest
    assert result["calibration"]["source"] == f"48 images of seed 0 by the generator {digest}"
    assert result["images"] == {"data": "images of gan.krl", "count": 20}
    assert result["drop_points"] is None
    assert "was accepted with --accept-unmeasured: 20 images are too few to judge by" in captured.err
    assert main(["quantize", str(bundle.path)]) == 2
    assert "give --data FOLDER, or --from-generator NAME.krl" in capsys.readouterr().err
    assert main(["quantize", str(bundle.path), "--from-generator", str(bundle.path)]) == 2
    assert "a bundle for generation is needed here" in capsys.readouterr().err


def test_scores_by_hand():
    """An error of 3 everywhere is 38.59 dB; half of the images equal to the reference are 200 dB each."""
    tally = ImageTally(lambda output, truth: float(output.mean() - truth))
    reference = np.full((2, 1, 2, 2), 100, np.float32)
    tally.add(reference + np.float32([[[[3]]], [[[0]]]]), reference, None)
    score = tally.score()
    assert (score.psnr, score.max_error) == (None, 3)
    assert score.psnr_to_fp32 == pytest.approx((20 * np.log10(255 / 3) + 200) / 2)
    tally = ImageTally(lambda output, truth: float(output.mean() - truth))
    tally.add(reference[:1], reference[:1], np.float32(60))
    assert tally.score().psnr == 40


def test_the_error_of_a_paired_drop():
    """Qualities of 3, 5 and 10 against 4, 7 and 9: drops of 1, 2 and -1."""
    tally = ImageTally(lambda output, _: float(output.mean()))
    for made, wanted in ((3, 4), (5, 7), (10, 9)):
        tally.add(*(np.full((1, 1, 2, 2), value, np.float32) for value in (made, wanted)), np.float32(0))
    assert tally.score().psnr == 6
    assert tally.score().drop_error == pytest.approx(np.std([1, 2, -1], ddof=1) / np.sqrt(3))
    assert tally.score().drop == pytest.approx(2 / 3)


def test_verdicts_by_hand(tmp_path, photographs):
    fp32, int8 = ImageScore(30.0, 0.0, 0.0, 200.0, 200.0, 0.0), ImageScore(29.75, 0.25, 0.1, 40.0, 35.0, 3.0)
    options = EvaluationOptions(photographs, 10, 0.2, "refuse")
    known = task_of(write_restorer(tmp_path / "a.krl"), options)
    verdict = known.verdict("int8", 10, {"fp32": fp32, "int8": int8, "int8.cpu": fp32})
    assert verdict.reason == "the accuracy drop is 0.25 dB of PSNR, accepted: 0.1"
    assert known.evidence({"fp32": fp32, "int8": int8}, verdict)["drop_db"] == 0.25
    for precision, least, passes in (("int8", 42.0, False), ("int8", None, True), ("fp16", 41.0, False)):
        options = EvaluationOptions(None, 10, 0.2, "refuse", min_psnr=least)
        unknown = task_of(write_generator(tmp_path / f"{least}.krl"), options)
        verdict = unknown.verdict(precision, 10, {"fp32": fp32, "int8": int8})
        assert verdict.passes == passes
        assert unknown.evidence({"fp32": fp32, "int8": int8}, verdict)["min_psnr"] == (least or 30.0)


def test_inputs_of_a_restorer(tmp_path):
    image = smooth(21, 31, 3)
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(image[..., 0]).save(tmp_path / "gray.png")
    planes = read_planes(tmp_path / "a.png", "rgb")
    assert (planes == image.transpose(2, 0, 1)).all()
    assert (read_planes(tmp_path / "gray.png", "y") == image[..., 0]).all()
    assert (read_planes(tmp_path / "a.png", "y") == luma.to_uint8(luma.luma(image))).all()
    given, truth = inputs_of(planes, 2, {"kind": "bicubic"}, 0)
    assert (given.shape, truth.shape) == ((3, 10, 15), (3, 20, 30))
    assert (truth == planes[:, :20, :30]).all()
    noisy, _ = inputs_of(planes, 1, {"kind": "noise", "sigma": 10}, 5)
    assert (noisy == inputs_of(planes, 1, {"kind": "noise", "sigma": 10}, 5)[0]).all()
    assert 8 < (noisy.astype(float) - planes).std() < 11
    patch = patch_of(given, 30, 4, np.random.default_rng(0))
    assert patch.shape == (3, 30, 4)


def test_images_that_are_too_small(tmp_path, caplog):
    folder = tmp_path / "small"
    folder.mkdir()
    Image.fromarray(smooth(1, 1)).save(folder / "a.png")
    bundle = write_restorer(tmp_path / "a.krl")
    with pytest.raises(DataError, match="cannot be made 2 times smaller"):
        list(task_of(bundle, EvaluationOptions(folder, 10, 0.2, "refuse")).batches())
    with pytest.raises(DataError, match="no image is left"):
        list(task_of(bundle, EvaluationOptions(folder, 10, 0.2, "skip")).batches())


CONDITIONS = [
    LABELS_CONDITION,
    {"kind": "attributes", "length": 2, "dim": 4, "vocabulary": ["a=", "a=x", "a=y", "b=", "b=z"]},
    {"kind": "text", "length": 3, "dim": 4, "vocabulary": ["", "red", "rose"]},
    {
        "kind": "graph",
        "length": 2,
        "dim": 4,
        "vocabulary": ["", "is", "rose", "red", "much"],
        "relations": ["is"],
        "facts": [["rose", "is", "red"], ["much", "is", "red"], ["much", "is", "rose"]],
    },
]


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda each: each["kind"])
def test_random_conditions_are_known(condition):
    settings = {"latent": {"size": 3, "distribution": "normal"}, "condition": condition}
    inputs = random_inputs(settings, 20, 4)
    assert inputs["latent"].shape == (20, 3)
    assert inputs["condition"].shape == (20, condition["length"])
    assert len(np.unique(inputs["condition"], axis=0)) > 1
    assert random_conditions(condition, 20, 4) == random_conditions(condition, 20, 4)


def test_a_generator_takes_no_images(tmp_path, photographs, capsys):
    bundle = write_generator(tmp_path / "a.krl")
    assert main(["quantize", str(bundle.path), "--data", str(photographs)]) == 2
    assert "--data: a generator is calibrated and measured on latents; leave the option out" in capsys.readouterr().err


def test_an_unknown_task(tmp_path):
    bundle = write_restorer(tmp_path / "a.krl", task="translation")
    with pytest.raises(
        UsageError, match="is for the task 'translation'; accepted: classification, embedding, restoration"
    ):
        task_of(bundle, EvaluationOptions(None, 1, 0.2, "refuse"))


def test_typing_needs_no_torch(tmp_path, photographs):
    bundle = write_restorer(tmp_path / "a.krl").path
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'krl_train'))); from pathlib import Path; "
        "from krl_deploy.config import QuantizeConfig; from krl_deploy.precision.quantize import quantize; "
        f"quantize(QuantizeConfig(Path({str(bundle)!r}), Path({str(photographs)!r}), max_drop=5.0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert onnx.load(bundle / "model.int8.onnx").graph.node


def test_restorers_are_not_for_triton(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundle = write_restorer(tmp_path / "a.krl")
    assert main(["package", str(bundle.path), "--to", "triton", "-o", "repository"]) == 2
    assert "is for the task 'restoration'; accepted: classification" in capsys.readouterr().err
    assert [item.name for item in tmp_path.iterdir()] == ["a.krl"]


def test_a_denoiser_restores_colors_on_the_device_as_it_was_scored(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        (tmp_path / "images" / split).mkdir(parents=True)
        for index in range(count):
            blurred_noise(48, (count, index), 2).save(tmp_path / "images" / split / f"{index}.png")
    asked = FitConfig(
        task="restoration",
        model="edsr-1-8",
        data=DataConfig(data=str(tmp_path / "images")),
        restoration=RestorationConfig(restore="denoise", noise_level=30.0),
        loop=LoopConfig(epochs=8, batch_size=4, device="cpu", precision="fp32"),
        out=tmp_path / "denoiser",
    )
    run = fit(asked)
    model = load(exported(run, tmp_path).path, Restorer, threads=1)
    scores = []
    for number in range(2):  # the noise of an evaluation follows from the image's number
        truth = np.asarray(Image.open(tmp_path / "images" / "val" / f"{number}.png"))
        noise = np.random.default_rng((number,)).standard_normal(truth.shape, np.float32)
        restored = model(np.clip(np.rint(truth + 30 * noise), 0, 255).astype(np.uint8)).pixels
        scores.append(10 * np.log10(255**2 / np.mean((restored.astype(float) - truth) ** 2)))
    assert run.record.metrics["psnr"] == pytest.approx(np.mean(scores), abs=0.02)
