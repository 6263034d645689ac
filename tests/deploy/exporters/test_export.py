"""From a run to a bundle: parity with torch, golden inputs, evidence, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save

from _helpers.digits import LABELS, PREPROCESSING, pixels_of
from krl_deploy.cli import main
from krl_deploy.config import ExportConfig
from krl_deploy.exporters import classifier
from krl_deploy.exporters.conversion import to_onnx
from krl_deploy.exporters.export import export
from krl_deploy.exporters.parity import check_parity, torch_outputs
from krl_deploy.exporters.plan import ExportPlan
from krl_deploy.exporters.real_inputs import real_inputs
from krl_deploy.graph.files import to_bytes
from krl_runtime import Bundle, load
from krl_runtime.device.selftest import selftest
from krl_runtime.errors import CheckFailedError, ModelError, UsageError
from krl_runtime.files import sha256_bytes
from krl_train.run import RECORD, WEIGHTS, ModelSpec, Run


def test_the_manifest_says_what_it_is(exported, run):
    manifest = Bundle.open(exported).manifest
    assert manifest.task == "classification"
    assert manifest.name == "dscnn-0.5"
    assert manifest.labels == LABELS
    assert manifest.preprocessing == run.record.preprocessing
    assert (manifest.inputs[0].name, manifest.inputs[0].dtype) == ("pixels", "uint8")
    assert manifest.inputs[0].shape == ("batch", 1, 16, 16)
    assert manifest.outputs[0].shape == ("batch", 10)
    assert manifest.source["weights_sha256"] == run.record.weights_sha256
    assert ModelSpec(**manifest.source["model"]) == run.record.model
    assert manifest.source["metrics"] == {"top1": 0.9}
    assert manifest.default_variants == {"cpu": "fp32"}
    evidence = manifest.evidence["fp32"]
    assert evidence["parity"]["max_abs_error"] <= 1e-4
    assert evidence["parity"]["inputs"] == 32
    assert evidence["parity"]["batches"] == [1, 32]
    assert evidence["parameters"] == sum(item.numel() for item in run.network().parameters())
    assert evidence["macs"] > 100_000
    assert evidence["file_bytes"] == (exported / "model.fp32.onnx").stat().st_size


def test_nothing_of_this_machine_is_in_the_graph(exported):
    data = (exported / "model.fp32.onnx").read_bytes()
    for trace in (b"site-packages", b".py", b"stack_trace", b"class_hierarchy"):
        assert trace not in data


def test_the_graph_is_tidy(exported):
    model = onnx.load(exported / "model.fp32.onnx")
    kinds = {item.op_type for item in model.graph.node}
    assert not kinds & {"Identity", "BatchNormalization", "Constant", "Dropout"}
    assert model.opset_import[0].version == 20
    readers = [name for item in model.graph.node if item.op_type == "Conv" for name in item.input[1:]]
    assert len(readers) == len(set(readers))


def test_logits_from_the_image_files_on_are_torchs(exported, run, digits):
    files = sorted((digits / "val").glob("*/*.png"))[:100]
    pixels, _ = pixels_of(digits / "val")
    with torch.inference_mode():
        expected = run.network()(torch.from_numpy(pixels[:100])).numpy()
    with load(exported) as model:
        answers = model(files)
    np.testing.assert_allclose(np.stack([answer.logits for answer in answers]), expected, atol=1e-4)


def test_golden_inputs_are_real_and_replay(exported, digits):
    golden = Bundle.open(exported).golden()
    assert golden["pixels"].shape == (16, 1, 16, 16)
    known = {image.tobytes() for image in pixels_of(digits / "val")[0]}
    assert all(image.tobytes() in known for image in golden["pixels"])
    replays = [replay for replay in selftest(Bundle.open(exported)) if replay.kind == "cpu"]
    assert [replay.state for replay in replays] == ["passed"]


def test_the_same_run_gives_the_same_bundle_and_existing_ones_are_kept(tmp_path, exported, run, digits, capsys):
    path = tmp_path / "again.krl"
    arguments = ["export", str(run.path), "-o", str(path), "--data", str(digits), "--golden", "16"]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parity"]["agreement"] == 1
    for file in ("model.fp32.onnx", "golden.npz", "manifest.json"):
        assert (path / file).read_bytes() == (exported / file).read_bytes(), file
    assert main(arguments) == 2
    assert "exists already; give another name, or --overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite", "--opset", "18", "--golden", "3"]) == 0
    assert "opset 18" in capsys.readouterr().out
    assert onnx.load(path / "model.fp32.onnx").opset_import[0].version == 18
    assert len(Bundle.open(path).golden()["logits"]) == 3


def test_without_data_the_runs_own_is_read(run, exported):
    from krl_train.data import load_split

    pixels = real_inputs(ExportConfig(run.path, run.path), run)["pixels"]
    expected, labels = load_split(run.record, "val", 32)
    # Golden inputs are the first 16; images of a folder are in the order of their classes.
    assert np.array_equal(pixels, np.concatenate([expected[::2], expected[1::2]]))
    assert len(set(np.asarray(labels)[::2].tolist())) >= 8
    assert pixels.shape == (32, 1, 16, 16)


def test_data_that_is_not_there_any_more_asks_for_some(tmp_path, run, capsys):
    moved = replace(run.record, data={**run.record.data, "source": "/data/that/was/moved"})
    Run.write(tmp_path / "moved", moved, run.state())
    assert main(["export", str(tmp_path / "moved"), "-o", str(tmp_path / "a.krl")]) == 2
    error = capsys.readouterr().err
    assert "need real images" in error
    assert "give some with --data FOLDER" in error
    assert not (tmp_path / "a.krl").exists()


def test_a_run_without_a_word_on_its_data_asks_for_some(tmp_path, run, capsys):
    Run.write(tmp_path / "silent", replace(run.record, data={}), run.state())
    assert main(["export", str(tmp_path / "silent"), "-o", str(tmp_path / "a.krl")]) == 2
    assert "give some with --data FOLDER" in capsys.readouterr().err


def test_weights_that_are_not_numbers_are_refused(tmp_path, run, digits, capsys):
    state = run.state()
    state["linear.weight"][0, 0] = float("nan")
    data = save(state)
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / WEIGHTS).write_bytes(data)
    (folder / RECORD).write_bytes(replace(run.record, weights_sha256=sha256_bytes(data)).to_bytes())
    assert main(["export", str(folder), "-o", str(tmp_path / "a.krl"), "--data", str(digits)]) == 2
    assert "not finite numbers" in capsys.readouterr().err


def test_a_run_that_overflows_is_refused(run):
    network = run.network()
    network.backbone.linear.weight.data.fill_(3e38)
    with pytest.raises(ModelError, match="outputs for real inputs have numbers that are not finite"):
        torch_outputs(network, {"pixels": np.full((1, 1, 16, 16), 255, np.uint8)})


def test_no_run_and_no_images(tmp_path, run, capsys):
    assert main(["export", str(tmp_path / "none"), "-o", str(tmp_path / "a.krl")]) == 2
    assert "does not exist; a run is the folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["export", str(run.path), "-o", str(tmp_path / "a.krl"), "--data", str(tmp_path / "empty")]) == 2
    assert "holds no images" in capsys.readouterr().err


class Linear(torch.nn.Module):
    """A network whose logits are the pixels times a factor, to make parity fail at will."""

    def __init__(self, factor):
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor))

    def forward(self, pixels):
        return pixels.to(self.factor.dtype).flatten(1) * self.factor


def parity(exported, network, pixels, tolerance):
    """Compare a graph with another network than it was made from."""
    plan = ExportPlan(network, exported, {"pixels": pixels}, "logits", PREPROCESSING, 0)
    return check_parity(to_bytes(exported), plan, torch_outputs(network, plan.inputs), tolerance)


def test_parity_fails_where_the_graph_is_another_function():
    exported = to_onnx(Linear(1.0), (1, 2, 2), 20)
    pixels = np.arange(8, dtype=np.uint8).reshape(2, 1, 2, 2)
    network = Linear(1.001)
    with pytest.raises(CheckFailedError, match=r"differ from torch's by 0\.007 on 2 real inputs; accepted: 0\.0001"):
        parity(exported, network, pixels, 1e-4)
    assert parity(exported, network, pixels, 0.01)["batches"] == [1, 3]


def test_rounding_of_float32_itself_is_no_failure():
    """Logits of 1e8 are rounded by several units; no export can be closer to torch than torch to the truth."""
    factor = 400_000.123
    pixels = np.full((2, 1, 2, 2), 251, np.uint8)

    class Rounded(Linear):
        def forward(self, pixels):
            logits = super().forward(pixels)
            return logits + 8 if logits.dtype == torch.float32 else logits

    exported = to_onnx(Linear(factor), (1, 2, 2), 20)
    assert parity(exported, Rounded(factor), pixels, 1e-4)["float32_rounding"] > 4


def test_a_network_that_torch_cannot_export_is_reported():
    class Branching(torch.nn.Module):
        def forward(self, pixels):
            return pixels.float().flatten(1) if pixels.sum() > 3 else pixels.float().flatten(1) * 2

    with pytest.raises(ModelError, match="torch cannot export the network"):
        to_onnx(Branching(), (1, 2, 2), 20)


def test_options_out_of_range():
    with pytest.raises(UsageError, match="--golden is 0"):
        ExportConfig(None, None, golden=0)
    with pytest.raises(UsageError, match="--tolerance is 0"):
        ExportConfig(None, None, tolerance=0)


def test_another_opset_than_asked_for_is_said(tmp_path, run, digits, monkeypatch, caplog):
    """torch writes another opset than asked for where its conversion fails."""
    written = to_onnx(run.network(), (1, 16, 16), 18)
    monkeypatch.setattr(classifier, "to_onnx", lambda *_, **__: written)
    result = export(ExportConfig(run.path, tmp_path / "a.krl", data=digits, opset=19))
    assert result["opset"] == 18
    assert "torch wrote opset 18 instead of 19" in caplog.text
