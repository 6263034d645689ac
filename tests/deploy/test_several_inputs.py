"""A classifier with several inputs: from training to a bundle of all variants that runs and is served."""

from __future__ import annotations

import io
import json
import shutil
import threading
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from PIL import Image

import krl_deploy
from _helpers.fused_run import train_fused, write_smooth_list
from _helpers.required import real_rtx
from krl_deploy.exporters.parity import torch_outputs
from krl_runtime import Classifier, DataError, UsageError, load
from krl_runtime.bundle import Bundle
from krl_runtime.bundle.further_inputs import inputs_of, sample_arrays
from krl_runtime.bundle.golden import golden_arrays
from krl_runtime.images.folders import open_folder
from krl_train.run import Run

NAMES = ["pixels", "attributes", "pixels_other", "descriptors"]


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_smooth_list(tmp_path_factory.mktemp("listed"))


@pytest.fixture(scope="module")
def run(listed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_fused(listed, tmp_path_factory.mktemp("run") / "run", epochs=6)


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a bundle that no test changes."""
    path = tmp_path_factory.mktemp("exported") / "fused.krl"
    krl_deploy.export(run=run, out=path)
    return Bundle.open(path)


@pytest.fixture
def bundle(exported: Bundle, tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(exported.path, tmp_path / "fused.krl"))


def test_the_bundle_has_the_inputs_of_the_run(exported: Bundle, run: Path):
    manifest, record = exported.manifest, Run.open(run).record
    assert [spec.name for spec in manifest.inputs] == NAMES
    assert {spec.shape[0] for spec in manifest.inputs} == {"batch"}
    assert manifest.settings["inputs"] == [dict(each) for each in record.inputs]
    parity = manifest.evidence["fp32"]["parity"]
    assert parity["inputs"] == 32
    assert parity["agreement"] == 1


def test_a_sample_of_the_list_gets_the_outputs_of_torch(exported: Bundle, run: Path, listed: Path):
    """The arrays are made from the list's text here, and from its rows in training."""
    opened = Run.open(run)
    further = inputs_of(exported.manifest)
    images = open_folder(listed, attributes=["kind", "weight"], images=["other"]).split("val")[:20]
    samples = [{"image": image.path, **image.fields} for image in images]
    each = [sample_arrays(sample, further, exported.manifest.preprocessing) for sample in samples]
    arrays = {name: np.stack([one[name] for one in each]) for name in NAMES}
    wanted = torch_outputs(opened.network(), arrays)
    with load(exported.path, Classifier, backend="cpu") as model:
        made = np.stack([result.logits for result in model(samples)])
    np.testing.assert_allclose(made, wanted, atol=1e-4)


def test_golden_outputs_are_those_of_all_inputs(exported: Bundle, run: Path):
    golden = golden_arrays(exported)
    network = Run.open(run).network()
    with torch.inference_mode():
        tensors = [torch.tensor(golden[name]) for name in NAMES]
        wanted = network(*tensors).numpy()
        other = network(tensors[0], tensors[1].flip(0), *tensors[2:]).numpy()
    np.testing.assert_allclose(golden["logits"], wanted, atol=1e-4)
    assert np.abs(other - wanted).max() > 0.1


def test_variants_are_judged_and_run_on_all_inputs(bundle: Bundle, listed: Path):
    """INT8 and FP16 keep what the attributes say, and a list and the server's form get the same answers."""
    for verb in (krl_deploy.quantize, krl_deploy.fp16):
        verb(bundle=bundle.path, data=listed)
    found = Bundle.open(bundle.path)
    for name in ("int8", "fp16"):
        assert found.manifest.evidence[name]["drop_points"] <= 1
    images = open_folder(listed, attributes=["kind", "weight"], images=["other"])
    chosen = images.split("val")[::8]
    samples = [{"image": image.path, **image.fields} for image in chosen]
    for variant in ("fp32", "fp16", "int8"):
        with load(bundle.path, Classifier, variant=variant, backend="cpu") as model:
            results = model(samples)
        right = [result.label == images.labels[image.label] for result, image in zip(results, chosen, strict=True)]
        assert np.mean(right) > 0.9, variant


def test_the_server_answers_as_the_model_does(exported: Bundle, listed: Path):
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    from krl_runtime.serve.app import make_app
    from krl_runtime.serve.config import ServeConfig
    from krl_runtime.serve.server import listen, make_server

    image = open_folder(listed, attributes=["kind", "weight"], images=["other"]).split("val")[0]
    sample = {"image": image.path, **image.fields}
    parts = {
        name: Path(value).read_bytes() if name in ("image", "other") else value.encode()
        for name, value in sample.items()
    }
    body = b"".join(
        b'--xyz\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), content)
        for name, content in parts.items()
    )
    config = ServeConfig(port=0, grace_seconds=5)
    with load(exported.path, Classifier, backend="cpu") as model, listen(config.host, config.port) as listener:
        server = make_server(make_app(model, config), config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            request = Request(
                f"http://127.0.0.1:{listener.getsockname()[1]}/classify",
                body + b"--xyz--\r\n",
                {"Content-Type": "multipart/form-data; boundary=xyz"},
            )
            with urlopen(request, timeout=30) as response:
                answer = json.load(response)
        finally:
            server.should_exit = True
            thread.join(30)
        assert answer["score"] == pytest.approx(model(sample).score, rel=1e-5)
        assert answer["label"] == model(sample).label


def test_data_without_the_columns_is_refused(exported: Bundle, run: Path, listed: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"need the columns 'kind', 'weight', 'other'; give a list"):
        krl_deploy.quantize(bundle=exported.path, data=listed.parent)
    with pytest.raises(DataError, match=r"give a list"):
        krl_deploy.export(run=run, out=tmp_path / "a.krl", data=listed.parent)
    lines = listed.read_text("utf-8").splitlines()
    column = lines[0].split(",").index("other")
    short = listed.with_name("short.csv")
    short.write_text("\n".join(",".join(line.split(",")[:column] + line.split(",")[column + 1 :]) for line in lines))
    with pytest.raises(DataError, match="'other' not at all"):
        krl_deploy.fp16(bundle=exported.path, data=short)
    assert not (tmp_path / "a.krl").exists()


def test_a_value_that_training_has_not_seen_is_refused(exported: Bundle, listed: Path):
    other = listed.with_name("beyond.csv")
    text = listed.read_text("utf-8").splitlines()
    text[1] = text[1].rpartition(",")[0] + ",99"
    other.write_text("\n".join(text), encoding="utf-8")
    with pytest.raises(DataError, match="'weight': '99' is out of range"):
        krl_deploy.quantize(bundle=exported.path, data=other)


def test_a_generator_makes_no_attributes(exported: Bundle, tmp_path: Path):
    with pytest.raises(UsageError, match="--from-generator makes images alone"):
        krl_deploy.quantize(bundle=exported.path, from_generator=tmp_path / "gan.krl")


@pytest.mark.slow
def test_none_of_these_is_calibrated_on_all_inputs(run: Path, listed: Path, tmp_path: Path):
    for name, data in (("own", None), ("given", listed)):
        made = krl_deploy.export(run=run, out=tmp_path / f"{name}.krl", none_of_these=0.05, data=data)
        assert made.details["none_of_these"]["images"] == 160


def test_rtx_builds_an_engine_with_a_range_for_each_input(bundle: Bundle):
    real_rtx()
    krl_deploy.fp16(bundle=bundle.path, accept_unmeasured=True)
    krl_deploy.build_engine(model=bundle.path, target="rtx", precision="fp16", profile="1,2,4")
    (engine,) = Bundle.open(bundle.path).engines.values()
    assert engine.profiles == ((1, 2, 4),)


def test_a_truncated_further_image_is_named(exported: Bundle, listed: Path, tmp_path: Path):
    lines = listed.read_text("utf-8").splitlines()[:3]
    for row in lines[1:]:
        for name in row.split(",")[:2]:
            (tmp_path / name).write_bytes((listed.parent / name).read_bytes())
    broken = tmp_path / lines[1].split(",")[1]
    data = io.BytesIO()
    Image.open(broken).save(data, "png")
    broken.write_bytes(data.getvalue()[:80])
    (tmp_path / "list.csv").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match=rf"input 'other'.*{broken.name}"):
        krl_deploy.fp16(bundle=exported.path, data=tmp_path / "list.csv")
