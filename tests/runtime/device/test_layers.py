"""``bench --layers``: times by ONNX Runtime's profiler, and by TensorRT's on fakes with the real signatures."""

from __future__ import annotations

import json

import numpy as np
import pytest

from _helpers.bundles import add_engines, write_bundle
from _helpers.fake_cuda import GPU_NAME
from _helpers.fake_tensorrt import faked
from _helpers.tensorrt_bindings import ALL
from krl_runtime.backends.cuda import platform_key
from krl_runtime.bundle import Bundle, Engine
from krl_runtime.cli import main
from krl_runtime.device.layers import _summed
from krl_runtime.errors import BackendError

fake = faked(*ALL)


def shown(capsys, *arguments):
    code = main(["bench", *map(str, arguments), "--layers", "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out)["layers"] if code == 0 else err


def test_layers_on_a_cpu(tmp_path, capsys):
    bundle = write_bundle(tmp_path / "tiny.krl")
    code, found = shown(capsys, bundle.path, "--iterations", 7, "--batch", 2, "--threads", 1)
    assert code == 0
    assert found["runs"] == 7
    operators = {layer["operator"] for layer in found["layers"]}
    assert {"Gemm", "Cast"} <= operators
    assert any("Conv" in operator for operator in operators)  # FusedConv, with the ReLU
    times = [layer["ms"] for layer in found["layers"]]
    assert times == sorted(times, reverse=True)
    assert sum(layer["share"] for layer in found["layers"]) == pytest.approx(1)
    assert found["sum_ms"] == pytest.approx(sum(times))
    assert found["network_ms"] > 0
    assert main(["bench", str(bundle.path), "--layers", "--iterations", "2"]) == 0
    assert "without the profiler the network takes" in capsys.readouterr().out


def test_layers_of_an_engine(fake, tmp_path, capsys):
    """The fake reports half a millisecond for the first layer, and one more for each further one."""
    bundle = write_bundle(tmp_path / "tiny.krl")
    file = bundle.manifest.variants["fp32"].file
    rtx = fake.rtx
    engine = Engine(
        "engines/a.engine",
        "fp32",
        bundle.manifest.files[file].sha256,
        fake.version,
        () if rtx else ("9.0",),
        "" if rtx else GPU_NAME,
        "" if rtx else platform_key(),
        ((1, 2, 4),),
        library=fake.library.name,
    )
    plan = fake.plan(bundle.read(file), [{"pixels": [[n, 3, 12, 10] for n in (1, 2, 4)]}])
    add_engines(bundle, {engine.file: plan}, {"a": engine})
    require = fake.library.name
    code, found = shown(capsys, bundle.path, "--require", require, "--iterations", 5, "--batch", 2)
    assert (code, found["runs"]) == (0, 5)
    assert [layer["ms"] for layer in found["layers"]] == [7.5 - index for index in range(8)]
    assert found["layers"][0]["name"] == "logits"
    assert fake.cuda.leaks() == {"memory": 0, "streams": 0, "graphs": 0}
    code, said = shown(capsys, bundle.path, "--require", require, "--batch", 9)
    assert (code, "would run in 3 parts" in said) == (2, True)


def test_what_has_no_times_is_refused(tmp_path, capsys):
    bundle = write_bundle(tmp_path / "tiny.krl")
    assert main(["bench", str(bundle.path), "--layers", "--profile", str(tmp_path / "p.json")]) == 2
    assert "give one of them" in capsys.readouterr().err
    bare = Bundle.open(write_bundle(tmp_path / "bare.krl", golden=0).path)
    assert main(["bench", str(bare.path), "--layers"]) == 2
    with pytest.raises(BackendError, match="names no layers"):
        _summed([{"cat": "Session", "name": "model_run", "dur": 3}], 2)


def test_a_node_that_runs_twice_in_a_run_is_summed():
    """The first run is left out; events of other kinds say nothing."""
    events = [
        {"cat": "Node", "name": f"{name}_kernel_time", "dur": dur, "args": {"op_name": "Conv"}}
        for run in (100, 1000, 2000)
        for name, dur in (("a", run), ("twice", run + 1), ("twice", run + 2))
    ]
    events += [
        {"cat": "Node", "name": "a_fence_before", "dur": 5},
        {"cat": "Node", "name": "odd_kernel_time", "dur": 1},
    ]
    times, operators = _summed(events, 2)
    assert times == {"a": [1.0, 2.0], "twice": [2.003, 4.003]}
    assert operators["a"] == "Conv"
    np.testing.assert_allclose(times["twice"], [2.003, 4.003])
