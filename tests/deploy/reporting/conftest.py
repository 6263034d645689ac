"""A folder as users have it: teacher, student, bundles, and what the commands wrote about them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

import krl_deploy
from krl_runtime.device.bench import bench, golden_image
from krl_runtime.device.evaluate import evaluate
from krl_runtime.device.layers import layer_times
from krl_runtime.device.recording import record as record_profile
from krl_train.run import Run


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory, digits: Path, run: Run) -> Path:
    """A folder that no test changes."""
    from _helpers.digits import train_run

    folder = tmp_path_factory.mktemp("results")
    shutil.copytree(run.path, folder / "teacher")
    trained = train_run(tmp_path_factory.mktemp("trained") / "run", digits, steps=60)
    record = replace(trained.record, command="krl-compress distill", parent={"teachers": [run.identity]})
    student = Run.write(folder / "student", record, load_file(trained.path / "model.safetensors"))
    for name, path in (("teacher", folder / "teacher"), ("student", student.path)):
        krl_deploy.export(run=path, out=folder / f"{name}.krl", data=digits)
    bundle = folder / "student.krl"
    krl_deploy.quantize(bundle=bundle, data=digits, max_drop=100, max_recall_drop=100, limit=64)
    import krl_runtime

    with krl_runtime.load(bundle, variant="int8", require="cpu", threads=1) as model:
        evaluate(model.bundle, digits, threads=1)
        where = {"bundle": str(bundle), "backend": model.backend.name, "variant": "int8", "cpus": 1}
        layers = layer_times(model.backend, model.bundle, batch=1, iterations=3, threads=1)
        timed = bench(model, golden_image(model.bundle), warmup=0, iterations=3)
    record_profile([bundle], folder / "device.json", backend="cpu", iterations=2, warmup=0)
    found = {
        "layers": {**where, **timed.to_dict(), "layers": layers.to_dict()},
        "compare": krl_deploy.compare(bundle=bundle, layers=True).to_dict(),
        "check": krl_deploy.check(model=bundle, target="jetpack-6.2").to_dict(),
    }
    for name, values in found.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder
