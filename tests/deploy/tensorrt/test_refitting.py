"""``krl-deploy refit`` on fakes of TensorRT 10.3, 10.16, 11.4 and RTX 1.7 bound to the real signatures."""

import numpy as np
import onnx
import pytest

from _helpers.bundles import TinyNet, write_bundle
from _helpers.fake_tensorrt import faked
from _helpers.tensorrt_bindings import ALL, GENERATIONS
from krl_deploy.cli import main
from krl_deploy.tensorrt.config import BuildEngineConfig, RefitConfig
from krl_deploy.tensorrt.engines import build_engine
from krl_deploy.tensorrt.refitting import difference, refit
from krl_runtime.backends.tensorrt.engines import open_engine
from krl_runtime.bundle import Bundle
from krl_runtime.errors import BackendError, CheckFailedError, ModelError, UsageError
from krl_runtime.images.preprocessing import Preprocessing

trt = faked(*ALL)
newest = faked(GENERATIONS[-1])


def two_students(tmp_path):
    """Two bundles of one architecture with other weights."""
    old = write_bundle(tmp_path / "old.krl", variants=("fp32", "int8"), seed=0)
    return old, write_bundle(tmp_path / "new.krl", variants=("fp32", "int8"), seed=7)


def build(bundle, trt, **changes):
    target = "rtx" if trt.rtx else "tensorrt"
    build_engine(BuildEngineConfig(bundle.path, precision="int8", profile="1,2,4", target=target, **changes))


@pytest.mark.parametrize("kept", [{"refit": True}, {"strip_weights": True}], ids=str)
def test_an_engine_takes_the_weights_of_another_student(trt, tmp_path, kept):
    old, new = two_students(tmp_path)
    build(old, trt, **kept)
    found, text = refit(RefitConfig(new.path, old.path))
    opened = Bundle.open(new.path)
    (key,) = opened.engines
    assert found["engine"] == key
    assert key in text
    engine = opened.engines[key]
    assert engine.onnx_sha256 == opened.manifest.files[opened.manifest.variants["int8"].file].sha256
    assert key.endswith(engine.onnx_sha256[:8])
    assert engine.refittable
    assert opened.manifest.evidence["engines"][key]["refitted_from"]["bundle"] == "old"
    assert trt.calls["Builder.build_serialized_network"] == 1  # of the old one
    golden = opened.golden()
    backend = open_engine(opened, "int8", engine.library)
    result = backend.run({"pixels": golden["pixels"][:4]})["logits"]
    np.testing.assert_allclose(result, golden["logits"][:4] + 0.01, atol=1e-3)  # what the int8 file adds
    assert np.abs(result - old.golden()["logits"][:4]).max() > 0.1
    backend.close()


def test_only_a_refittable_engine_of_the_same_graph_is_taken(newest, tmp_path):
    old, new = two_students(tmp_path)
    with pytest.raises(UsageError, match=r"old\.krl has no such engine; it has: none"):
        refit(RefitConfig(new.path, old.path))
    build(old, newest)
    with pytest.raises(UsageError, match=r"can be refitted here: .*: it was built without --refit and --strip-weights"):
        refit(RefitConfig(new.path, old.path))
    build(old, newest, refit=True)
    other = write_bundle(tmp_path / "other.krl", variants=("fp32", "int8"), labels=("a", "b", "c"))
    with pytest.raises(ModelError, match=r"different graphs: .*krl-deploy build-engine"):
        refit(RefitConfig(other.path, old.path))
    lacking = write_bundle(tmp_path / "lacking.krl")
    with pytest.raises(UsageError, match=r"lacking\.krl has no variant int8"):
        refit(RefitConfig(lacking.path, old.path))
    build(old, newest, refit=True, tf32=False)
    with pytest.raises(UsageError, match=r"2 engines of .*old\.krl fit; choose one with --engine"):
        refit(RefitConfig(new.path, old.path))
    assert Bundle.open(new.path).engines == {}


def test_wrong_outputs_and_missing_weights_are_not_kept(newest, tmp_path, capsys):
    old, new = two_students(tmp_path)
    build(old, newest, refit=True)
    newest.fail["Refitter.get_missing_weights"] = ["kernel", "head"]
    with pytest.raises(BackendError, match="the ONNX file lacks 2 of its weights: kernel, head"):
        refit(RefitConfig(new.path, old.path))
    newest.fail.clear()
    newest.wrong_answer = 1.0
    with pytest.raises(CheckFailedError, match="its outputs are wrong, and it was not kept"):
        refit(RefitConfig(new.path, old.path))
    assert Bundle.open(new.path).engines == {}
    newest.wrong_answer = 0.0
    capsys.readouterr()
    assert main(["refit", str(new.path), "--engine-of", str(old.path), "--json"]) == 0
    assert '"refitted_from"' in capsys.readouterr().out


def test_graphs_differ_in_structure_not_in_weights():
    def net(seed):
        return onnx.load_model_from_string(TinyNet.random(Preprocessing(12, 10), 4, seed).onnx())

    assert difference(net(0), net(1)) == ""
    changed, renamed, wider = net(1), net(1), net(1)
    changed.graph.node[3].attribute[0].ints[0] = 2
    assert difference(net(0), changed) == "Conv of convolved and Conv of convolved"
    renamed.graph.initializer[0].name = "x"
    assert difference(net(0), renamed) == "weights of other names"
    wider.graph.initializer[0].dims[0] = 7
    assert difference(net(0), wider).startswith("weight scale has shape [1, 3, 1, 1] and [7, 3, 1, 1]")
