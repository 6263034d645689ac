"""Generators that are refused: what is named, and that nothing is written."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from _helpers.generator_files import SIDE, SIZE, brought, decoder, generator_file
from _helpers.graphs import graph, node
from krl_deploy.cli import main
from krl_deploy.config import ImportConfig
from krl_deploy.importers import generator
from krl_runtime import Generator
from krl_runtime.errors import CheckFailedError, ModelError, UsageError

TANH = node("Tanh", ["x"], "y")


def refused(model, folder, kind, message, **options):
    with pytest.raises(kind, match=message):
        brought(model, folder, **options)
    assert not (folder / "third_party.krl").exists()


def with_inputs(inputs, dtypes=None, ends=(TANH,), more=None):
    nodes, weights = decoder()
    return graph([*nodes, *ends], inputs, {"y": None}, {**weights, **(more or {})}, opset=17, dtypes=dtypes, ir=8)


def test_a_label_is_named(tmp_path):
    ends = [node("Cast", ["label"], "f", to=1), node("Add", ["x", "f"], "s"), node("Tanh", ["s"], "y")]
    model = with_inputs({"z": ["n", SIZE, 1, 1], "label": ["n", 1, 1, 1]}, {"label": "int64"}, ends)
    message = (
        r"takes 2 inputs: z FLOAT \[n, 12, 1, 1\], label INT64 \[n, 1, 1, 1\]; accepted: the latent alone. Make label"
    )
    refused(model, tmp_path, ModelError, message)


def test_maps_of_noise_are_named(tmp_path):
    ends = [node("Add", ["x", "noise_0"], "s"), node("Mul", ["s", "psi"], "p"), node("Tanh", ["p"], "y")]
    model = with_inputs({"z": ["n", SIZE, 1, 1], "noise_0": [1, 1, SIDE, SIDE], "psi": []}, ends=ends)
    refused(model, tmp_path, ModelError, r"3 inputs: .*Make noise_0 and psi constant: export .* initializers")


def test_two_latents(tmp_path):
    ends = [node("Add", ["x", "w"], "s"), node("Tanh", ["s"], "y")]
    model = with_inputs({"z": ["n", SIZE, 1, 1], "w": ["n", 3, 1, 1]}, ends=ends)
    refused(model, tmp_path, ModelError, "2 inputs: .*Make all but the latent constant")


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        (["n", "size"], "float32"),
        (["n", 3, 8, 8], "float32"),
        ([SIZE], "float32"),
        (["n", SIZE], "int64"),
        (["n", 14, SIZE], "float32"),
    ],
)
def test_inputs_that_are_no_latent(shape, kind, tmp_path):
    nodes = [node("Cast", ["z"], "f", to=1), node("Tanh", ["f"], "y")]
    model = graph(nodes, {"z": shape}, {"y": None}, {}, opset=17, dtypes={"z": kind}, ir=8)
    message = r"input z \w+ \[.*\] is no latent; accepted: float32, float16 or float64 of shape \[batch, size\]"
    refused(model, tmp_path, ModelError, message)


RANDOM = {
    "RandomNormalLike": [node("RandomNormalLike", ["x"], "e")],
    "RandomNormal": [node("RandomNormal", [], "e", shape=[1, 1, SIDE, SIDE], seed=1.0)],
    "RandomUniformLike": [node("RandomUniformLike", ["x"], "e")],
    "RandomUniform": [node("RandomUniform", [], "e", shape=[1, 1, SIDE, SIDE])],
    "Bernoulli": [node("Sigmoid", ["x"], "p"), node("Bernoulli", ["p"], "e")],
    "Multinomial": [
        node("Flatten", ["x"], "p"),
        node("Multinomial", ["p"], "i", sample_size=1),
        node("Cast", ["i"], "j", to=1),
        node("Unsqueeze", ["j", "axes"], "e"),
    ],
    "Dropout": [node("Dropout", ["x", "ratio", "training"], "e")],
}


@pytest.mark.parametrize("kind", RANDOM)
def test_random_numbers_inside(kind, tmp_path):
    """Refused by name, also where a seed is given: a session goes on in its sequence."""
    ends = [*RANDOM[kind], node("Add", ["x", "e"], "s"), node("Tanh", ["s"], "y")]
    more = {"ratio": np.float32(0.5), "training": np.array(True), "axes": np.array([2, 3])}
    model = generator_file(ends, more=more)
    refused(model, tmp_path, ModelError, rf"draws random numbers itself: {kind} n_\w+; accepted: the same image")


@pytest.mark.parametrize("training", [False, None])
def test_dropout_that_does_nothing(training, tmp_path):
    inputs = ["x", "ratio", "training"] if training is not None else ["x"]
    model = generator_file(
        [node("Dropout", inputs, "d"), node("Tanh", ["d"], "y")],
        more={"ratio": np.float32(0.5), "training": np.array(False)},
    )
    brought(model, tmp_path)


def test_outputs_that_differ_from_run_to_run(tmp_path, monkeypatch):
    """By an operator whose name does not say so."""
    monkeypatch.setattr(generator, "check_not_random", lambda _: None)
    ends = [node("RandomNormalLike", ["x"], "e"), node("Add", ["x", "e"], "s"), node("Tanh", ["s"], "y")]
    refused(
        generator_file(ends), tmp_path, ModelError, "output y differs from run to run for the same latent; accepted"
    )


def test_outputs_that_do_not_depend_on_the_latent(tmp_path):
    model = generator_file([node("Mul", ["x", "zero"], "m"), node("Tanh", ["m"], "y")], more={"zero": np.float32(0)})
    refused(model, tmp_path, ModelError, "output y is the same for 16 latents; accepted: images of the latent")
    model = generator_file([node("Tanh", ["image"], "y")], more={"image": np.ones((1, 3, SIDE, SIDE), np.float32)})
    refused(model, tmp_path, ModelError, "output y needs no input; accepted: images of a latent")


def test_outputs_that_are_not_numbers(tmp_path):
    refused(generator_file([node("Log", ["x"], "y")]), tmp_path, ModelError, "output y has numbers that are not finite")


def test_a_batch_whose_images_depend_on_each_other(tmp_path):
    ends = [node("ReduceMean", ["x"], "m", axes=[0, 2, 3]), node("Sub", ["x", "m"], "s"), node("Tanh", ["s"], "y")]
    message = "an image depends on the other latents of its batch, by .* of 255; accepted: .*; export the model in eval"
    refused(generator_file(ends), tmp_path, CheckFailedError, message)
    refused(generator_file(ends, batch=4), tmp_path, CheckFailedError, "its batch is fixed to 4, accepted: 1 or any")


@pytest.mark.parametrize(
    ("ends", "channels", "message"),
    [
        ([TANH], 2, r"output y has shape \['batch', 2, 8, 8\]; accepted: images \[batch, channels, height, width\]"),
        ([node("Reshape", ["x", "five"], "y")], 3, r"shape \['batch', 1, 3, 8, 8\]; accepted: images"),
    ],
)
def test_outputs_that_are_no_images(ends, channels, message, tmp_path):
    more = {"five": np.array([-1, 1, 3, 8, 8])}
    refused(generator_file(ends, channels=channels, more=more), tmp_path, ModelError, message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"output y has 190 values for an image"),
        ({"height": 7}, r"with height 7 and width None; give the --height and --width"),
    ],
)
def test_flat_images_of_no_size(options, message, tmp_path):
    ends = [node("Flatten", ["x"], "f"), node("Slice", ["f", "from", "to", "axis"], "t"), node("Tanh", ["t"], "y")]
    more = {"from": np.array([0]), "to": np.array([190]), "axis": np.array([1])}
    refused(generator_file(ends, more=more), tmp_path, UsageError, message, **options)


def test_sizes_and_orders_that_do_not_fit(tmp_path):
    refused(generator_file(), tmp_path, UsageError, "--height is 9, but the model's images are 8x8; leave it", height=9)
    refused(generator_file(), tmp_path, UsageError, "--width is 9, but the model's images are 8x8; leave it", width=9)
    gray = generator_file(channels=1)
    refused(gray, tmp_path, UsageError, "bgr, but the model's output y has 1 channel", channel_order="bgr")


def test_several_outputs(tmp_path):
    nodes, weights = decoder()
    nodes += [TANH, node("Flatten", ["z"], "mean")]
    model = graph(nodes, {"z": ["n", SIZE, 1, 1]}, {"y": None, "mean": None}, weights, opset=17, ir=8)
    refused(model, tmp_path, ModelError, r"2 outputs: y .*, mean .*; give the one with the images as --output")
    refused(model, tmp_path, ModelError, "makes no tensor 'images' for --output; .*: y, mean", output="images")


@pytest.mark.parametrize("kind", [TensorProto.INT32, TensorProto.INT8])
def test_outputs_of_other_whole_numbers(kind, tmp_path):
    name = "int32" if kind == TensorProto.INT32 else "int8"
    model = generator_file([node("Cast", ["x"], "y", to=kind)], made=name)
    model.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.full(8, 3, np.float32), "b1"))
    message = rf"output y is {name.upper()}; accepted: float32, float16, float64, or uint8 that a Cast makes"
    refused(model, tmp_path, ModelError, message)


def test_whole_numbers_that_begin_anew(tmp_path, caplog):
    ends = [node("Mul", ["x", "much"], "a"), node("Cast", ["a"], "y", to=TensorProto.UINT8)]
    model = generator_file(ends, more={"much": np.float32(500)}, made="uint8")
    refused(
        model, tmp_path, CheckFailedError, "the rewritten model's images differ from the file's: the images differ by"
    )
    assert "nothing limits the values before they become uint8" in caplog.text


def test_quantized_files(tmp_path):
    more = {"scale": np.float32(0.1), "zero": np.int8(0)}
    ends = [
        node("QuantizeLinear", ["x", "scale", "zero"], "q"),
        node("DequantizeLinear", ["q", "scale", "zero"], "d"),
        node("Tanh", ["d"], "y"),
    ]
    refused(
        generator_file(ends, more=more), tmp_path, ModelError, r"quantized already \(DequantizeLinear, QuantizeLinear"
    )


def scaled(factor, offset=0.0, ends=None):
    ends = [
        *(ends or [node("Identity", ["x"], "t")]),
        node("Mul", ["t", "factor"], "u"),
        node("Add", ["u", "offset"], "y"),
    ]
    return generator_file(ends, more={"factor": np.float32(factor), "offset": np.float32(offset)})


SIGMOID = [node("Sigmoid", ["x"], "t")]
TANHS = [node("Tanh", ["x"], "t")]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            scaled(1.0),
            r"the end of its graph, \w+ n_\w+, sets no limits, and its values are .* on 16 latents; give --output-r",
        ),
        (
            scaled(2.0, ends=TANHS),
            r"has the limits -2 and 2, and its values .*: symmetric \(black is -1, and white 1\), 0-1",
        ),
        (generator_file([node("Relu", ["x"], "y")]), "sets no limits"),
    ],
)
def test_ranges_that_cannot_be_read(model, message, tmp_path):
    refused(model, tmp_path, UsageError, message)


@pytest.mark.parametrize(
    ("model", "unit", "message"),
    [
        (scaled(1.0, ends=TANHS), "0-255", "all images would be black; give --output-range symmetric, 0-1"),
        (scaled(1.0, ends=TANHS), "0-1", r"% of them are far outside of 0 to 1; give --output-range symmetric, 0-255"),
        (scaled(1.0, ends=SIGMOID), "0-255", "all images would be black"),
        (scaled(1.0, ends=SIGMOID), "symmetric", "no pixel would be darker than gray; give --output-range 0-1, 0-255"),
        (scaled(255.0, ends=SIGMOID), "symmetric", "far outside of -1 to 1"),
        (scaled(255.0, ends=SIGMOID), "0-1", "far outside of 0 to 1"),
        (scaled(50.0, 128.0), "symmetric", "far outside of -1 to 1"),
        (scaled(50.0, 128.0), "0-1", "far outside of 0 to 1"),
        (scaled(0.1, 0.5), "0-255", "all images would be black"),
        (scaled(0.085, 0.5), "symmetric", "no pixel would be darker than gray"),
        (scaled(3000.0), "0-255", "far outside of 0 to 255"),
    ],
)
def test_ranges_that_the_values_refute(model, unit, message, tmp_path):
    refused(
        model, tmp_path, UsageError, rf"--output-range is {unit}, but its values are .*: .*{message}", output_range=unit
    )


def test_a_tanh_of_images_of_0_to_1(tmp_path):
    """The graph says -1 to 1, and the values contradict it; the user's word is taken."""
    nodes, weights = decoder()
    nodes += [node("Sigmoid", ["x"], "p"), node("Conv", ["p", "eye"], "q"), node("Tanh", ["q"], "y")]
    weights["eye"] = 3 * np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
    model = graph(nodes, {"z": ["n", SIZE, 1, 1]}, {"y": None}, weights, opset=17, ir=8)
    message = "the end of the graph makes symmetric images, but .*: no pixel would be darker than gray; .*symmetric if"
    refused(model, tmp_path, UsageError, message)
    for unit in ("0-1", "symmetric"):
        brought(model, tmp_path, output_range=unit)


@pytest.mark.parametrize("spread", [0.05, 1e-4])
def test_a_network_that_is_not_trained(spread, tmp_path):
    """Its gray images, all on one side of the middle, refute no range."""
    ends = [node("Mul", ["x", "spread"], "a"), node("Add", ["a", "bias"], "b"), node("Conv", ["b", "eye"], "c")]
    eye = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
    more = {"spread": np.float32(spread), "bias": np.float32(0.3), "eye": eye}
    brought(generator_file([*ends, node("Tanh", ["c"], "y")], more=more), tmp_path)


@pytest.mark.parametrize("moved", [3.0, np.nan])
def test_a_bundle_whose_images_differ_in_the_runtime(moved, tmp_path, monkeypatch):
    values = Generator.values
    monkeypatch.setattr(Generator, "values", lambda *given: values(*given) + np.float32(moved))
    refused(generator_file(), tmp_path, CheckFailedError, "the bundle is not written")


def test_a_tensor_that_is_too_large(tmp_path):
    """Refused before it is computed: few bytes, and 100 GB of images."""
    ends = [node("Resize", ["x", "", "scales"], "l", mode="nearest"), node("Tanh", ["l"], "y")]
    model = generator_file(ends, more={"scales": np.array([1, 1, 1600, 1600], np.float32)})
    refused(model, tmp_path, ModelError, "makes the tensor l of .* bytes .*; accepted: 4294967296 for one input")


IMAGES_ALONE = [
    *(["--data", "images"], ["--mean", "0.5"], ["--std", "0.5"], ["--input-range", "0-255"], ["--resize", "stretch"]),
    *(["--crop-fraction", "0.9"], ["--interpolation", "nearest"], ["--decode-tolerance", "6"], ["--val-limit", "9"]),
    *(["--on-bad-image", "skip"], ["--labels", "a", "b"], ["--output-kind", "logits"], ["--scale", "2"]),
    *(["--color", "rgb"], ["--degradation", "none"]),
]


@pytest.mark.parametrize("option", IMAGES_ALONE, ids=lambda option: option[0])
def test_options_that_are_not_for_generators(option, tmp_path, capsys):
    arguments = ["import", str(tmp_path / "a.onnx"), "-o", str(tmp_path / "a.krl"), "--task", "generation"]
    assert main([*arguments, *option]) == 2
    assert f"{option[0]} is not for --task generation; leave it out, or give --task" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["classification", "restoration"])
@pytest.mark.parametrize("option", [["--latent-distribution", "uniform"], ["--latent-distribution=uniform"]])
def test_options_of_generators(option, task, tmp_path, capsys):
    arguments = ["import", str(tmp_path / "a.onnx"), "-o", str(tmp_path / "a.krl"), "--task", task, "--data", "images"]
    assert main([*arguments, *option]) == 2
    message = f"--latent-distribution is not for --task {task}; leave it out, or give --task generation"
    assert message in capsys.readouterr().err


def test_an_option_of_all_that_make_images(tmp_path, capsys):
    arguments = ["import", str(tmp_path / "a.onnx"), "-o", str(tmp_path / "a.krl"), "--data", "images"]
    assert main([*arguments, "--output-range", "0-1"]) == 2
    message = "--output-range is not for --task classification; leave it out, or give --task restoration or generation"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("task", "labels"), [("classification", ("a", "b")), ("restoration", ())])
def test_the_other_tasks_need_images(task, labels, tmp_path):
    message = rf"--data is missing; --task {task} needs a folder of real images"
    with pytest.raises(UsageError, match=message):
        ImportConfig(tmp_path / "a.onnx", tmp_path / "a.krl", labels=labels, task=task)
