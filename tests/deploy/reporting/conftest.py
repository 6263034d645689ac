"""A folder as users have it: teacher, student, bundles, and what the commands wrote about them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import krl_deploy
import krl_runtime
from krl_deploy.exporters.conversion import source_of
from krl_runtime import Bundle
from krl_runtime.bundle.names import FP32
from krl_runtime.device.bench import bench, golden_image
from krl_runtime.device.evaluate import evaluate
from krl_runtime.device.layers import layer_times
from krl_runtime.device.recording import record as record_profile
from krl_train.run import Run


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory, digits: Path, run: Run, exported: Path) -> Path:
    """A folder that no test changes."""
    folder = tmp_path_factory.mktemp("results")
    _write_teacher(folder, run, exported)
    _write_student(folder, run, exported)
    bundle = folder / "student.krl"
    krl_deploy.quantize(bundle=bundle, data=digits, max_drop=100, max_recall_drop=100, limit=32)
    with krl_runtime.load(bundle, variant="int8", require="cpu", threads=1) as model:
        evaluate(model.bundle, digits, backends=["cpu"], threads=1)
        where = {"bundle": str(bundle), "backend": model.backend.name, "variant": "int8", "cpus": 1}
        layers = layer_times(model.backend, model.bundle, batch=1, iterations=3, threads=1)
        timed = bench(model, golden_image(model.bundle), warmup=0, iterations=3)
    record_profile([bundle], folder / "device.json", backend="cpu", iterations=2, warmup=0)
    found = {
        "layers": {**where, **timed.to_dict(), "layers": layers.to_dict()},
        "compare": krl_deploy.compare(bundle=bundle, layers=True, limit=4).to_dict(),
        "check": krl_deploy.check(model=bundle, target="jetpack-6.2").to_dict(),
    }
    for name, values in found.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


def _write_teacher(folder: Path, run: Run, exported: Path) -> None:
    """Write a teacher, whose last layer has other biases than the student's."""
    (folder / "teacher").mkdir()
    record = replace(run.record, weights_sha256=_TEACHER)
    (folder / "teacher" / "run.json").write_bytes(record.to_bytes())
    bundle = Bundle.open(exported)
    model = onnx.load_model_from_string(bundle.read(FP32))
    bias = next(item for item in model.graph.initializer if list(item.dims) == [len(bundle.manifest.labels)])
    values = numpy_helper.to_array(bias) + 2 * np.eye(len(bundle.manifest.labels), dtype=np.float32)[3]
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    manifest = replace(bundle.manifest, source=source_of(Run(folder / "teacher", record)))
    golden = exported / str(manifest.golden)
    Bundle.create(folder / "teacher.krl", manifest, {FP32: model.SerializeToString(), golden.name: golden})


def _write_student(folder: Path, run: Run, exported: Path) -> None:
    (folder / "student").mkdir()
    parent = {"teachers": [{"path": "/gone/teacher", "weights_sha256": _TEACHER}]}
    record = replace(run.record, command="krl-compress distill", parent=parent)
    (folder / "student" / "run.json").write_bytes(record.to_bytes())
    shutil.copytree(exported, folder / "student.krl")
    Bundle.open(folder / "student.krl").update({}, source=source_of(Run(folder / "student", record)))


_TEACHER = "7" * 64
"""Hash of the teacher's weights."""
