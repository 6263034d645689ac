"""Forms of generators: the bundle's images against those of the file, by plain ONNX Runtime and NumPy."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from _helpers.generator_files import SIDE, SIZE, brought, check, decoder, draw, generator_file, keras, one_by_one
from _helpers.graphs import graph, node, ops
from krl_runtime import Generator, load

TANH = node("Tanh", ["x"], "y")


FORMS = {
    "[N, C]": (SIZE,),
    "[N, C, 1, 1]": (SIZE, 1, 1),
    "[N, 1, 1, C]": (1, 1, SIZE),
}


@pytest.mark.parametrize("batch", ["n", 1, 4])
@pytest.mark.parametrize("form", FORMS)
def test_latents(form, batch, tmp_path):
    model = generator_file(shape=FORMS[form], batch=batch)
    latents = draw()
    free = generator_file(shape=FORMS[form])
    expected = one_by_one(free, latents.reshape(-1, *FORMS[form])) * 127.5 + 127.5
    bundle, said = brought(model, tmp_path)
    check(bundle, latents, expected)
    assert said["input"] == "float32 [batch, 12]"
    assert (f"the batch of {batch} was opened" in said["changes"]) == (batch != "n")


RANGES = {
    "tanh": ([TANH], {}, "symmetric"),
    "tanh, moved about": (
        [
            node("Tanh", ["x"], "t"),
            node("Identity", ["t"], "i"),
            node("Transpose", ["i"], "a", perm=[0, 2, 3, 1]),
            node("Cast", ["a"], "h", to=TensorProto.FLOAT16),
            node("Cast", ["h"], "f", to=TensorProto.FLOAT),
            node("Transpose", ["f"], "y", perm=[0, 3, 1, 2]),
        ],
        {},
        "symmetric",
    ),
    "(tanh + 1) / 2": (
        [node("Tanh", ["x"], "t"), node("Add", ["t", "one"], "u"), node("Div", ["u", "two"], "y")],
        {"one": np.float32(1), "two": np.float32(2)},
        "0-1",
    ),
    "tanh * 127.5 + 127.5": (
        [node("Tanh", ["x"], "t"), node("Mul", ["t", "half"], "u"), node("Add", ["u", "half"], "y")],
        {"half": np.float32(127.5)},
        "0-255",
    ),
    "sigmoid": ([node("Sigmoid", ["x"], "y")], {}, "0-1"),
    "sigmoid by hand": (
        [
            node("Neg", ["x"], "a"),
            node("Exp", ["a"], "b"),
            node("Add", ["b", "one"], "c"),
            node("Reciprocal", ["c"], "y"),
        ],
        {"one": np.float32(1)},
        "0-1",
    ),
    "sigmoid * 2 - 1": (
        [node("Sigmoid", ["x"], "t"), node("Mul", ["t", "two"], "u"), node("Sub", ["u", "one"], "y")],
        {"one": np.float32(1), "two": np.float32(2)},
        "symmetric",
    ),
    "sigmoid * 255": (
        [node("Sigmoid", ["x"], "t"), node("Mul", ["t", "white"], "y")],
        {"white": np.float32(255)},
        "0-255",
    ),
    "clip -1 to 1": (
        [node("Clip", ["x", "low", "high"], "y")],
        {"low": np.float32(-1), "high": np.float32(1)},
        "symmetric",
    ),
    "clip 0 to 1": (
        [node("Add", ["x", "half"], "m"), node("Clip", ["m", "low", "high"], "y")],
        {"half": np.float32(0.5), "low": np.float32(0), "high": np.float32(1)},
        "0-1",
    ),
    "max and min": (
        [node("Add", ["x", "half"], "m"), node("Max", ["m", "low"], "l"), node("Min", ["l", "high"], "y")],
        {"half": np.float32(0.5), "low": np.float32(0), "high": np.float32(1)},
        "0-1",
    ),
    "hard sigmoid": ([node("HardSigmoid", ["x"], "y")], {}, "0-1"),
    "softsign": ([node("Softsign", ["x"], "y")], {}, "symmetric"),
    "tanh, then enlarged": (
        [node("Tanh", ["x"], "t"), node("Resize", ["t", "", "scales"], "y", mode="nearest")],
        {"scales": np.array([1, 1, 2, 2], np.float32)},
        "symmetric",
    ),
}
TO_LEVELS = {
    "symmetric": lambda values: values * 127.5 + 127.5,
    "0-1": lambda values: values * 255,
    "0-255": lambda values: values,
}


@pytest.mark.parametrize("form", RANGES)
def test_ranges_are_read(form, tmp_path):
    ends, more, unit = RANGES[form]
    model = generator_file(ends, more=more)
    latents = draw()
    expected = TO_LEVELS[unit](one_by_one(model, latents.reshape(-1, SIZE, 1, 1)))
    bundle, _ = brought(model, tmp_path)
    check(bundle, latents, expected, tolerance=0.1 if "moved" in form else 0.02)


@pytest.mark.parametrize("unit", ["symmetric", "0-1", "0-255"])
def test_a_range_that_the_graph_does_not_say(unit, tmp_path):
    """As StyleGAN ends: a convolution, whose values overshoot a little."""
    scale, offset = {"symmetric": (0.5, 0.0), "0-1": (0.25, 0.5), "0-255": (60.0, 127.0)}[unit]
    ends = [node("Mul", ["x", "scale"], "u"), node("Add", ["u", "offset"], "y")]
    model = generator_file(ends, more={"scale": np.float32(scale), "offset": np.float32(offset)})
    latents = draw()
    expected = TO_LEVELS[unit](one_by_one(model, latents.reshape(-1, SIZE, 1, 1)))
    check(brought(model, tmp_path, output_range=unit)[0], latents, expected)


LAYOUTS = {
    "NHWC": ([node("Transpose", ["t"], "y", perm=[0, 2, 3, 1])], {}, 3),
    "NHWC before the tanh": (
        [node("Transpose", ["x"], "u", perm=[0, 2, 3, 1]), node("Tanh", ["u"], "y")],
        {},
        3,
    ),
    "NHWC in gray": ([node("Transpose", ["t"], "y", perm=[0, 2, 3, 1])], {}, 1),
    "NHW": ([node("Squeeze", ["t", "one"], "y")], {"one": np.array([1])}, 1),
    "flat": ([node("Flatten", ["t"], "y")], {}, 3),
    "flat in gray": ([node("Flatten", ["t"], "y")], {}, 1),
    "flat with ones": ([node("Reshape", ["t", "to"], "y")], {"to": np.array([-1, 3 * SIDE * SIDE, 1, 1])}, 3),
}


@pytest.mark.parametrize("batch", ["n", 1])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, batch, tmp_path):
    ends, more, channels = LAYOUTS[layout]
    ends = ends if "before" in layout else [node("Tanh", ["x"], "t"), *ends]
    model = generator_file(ends, more=more, channels=channels, batch=batch)
    latents = draw()
    plain = one_by_one(generator_file(channels=channels), latents.reshape(-1, SIZE, 1, 1)) * 127.5 + 127.5
    bundle, _ = brought(model, tmp_path)
    check(bundle, latents, plain)
    stored = onnx.load(bundle.path / "model.fp32.onnx")
    assert ops(stored).count("Transpose") == (2 if "before" in layout else 0)


LOST = {
    "[C, H, W]": ([node("Squeeze", ["t", "axes"], "y")], np.array([0]), 3),
    "[H, W]": ([node("Squeeze", ["t", "axes"], "y")], np.array([0, 1]), 1),
    "[values]": ([node("Reshape", ["t", "axes"], "y")], np.array([-1]), 3),
}


@pytest.mark.parametrize("form", LOST)
def test_one_image_without_a_batch(form, tmp_path):
    ends, axes, channels = LOST[form]
    model = generator_file([node("Tanh", ["x"], "t"), *ends], more={"axes": axes}, channels=channels, batch=1)
    latents = draw()
    plain = one_by_one(generator_file(channels=channels), latents.reshape(-1, SIZE, 1, 1)) * 127.5 + 127.5
    check(brought(model, tmp_path)[0], latents, plain)


def test_flat_images_that_are_no_square(tmp_path):
    model = generator_file([node("Tanh", ["x"], "t"), node("Flatten", ["t"], "y")], channels=1)
    latents = draw()
    values = one_by_one(model, latents.reshape(-1, SIZE, 1, 1)) * 127.5 + 127.5
    check(brought(model, tmp_path, height=4, width=16)[0], latents, values.reshape(-1, 1, 4, 16))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_blue_first(layout, tmp_path):
    ends = [node("Tanh", ["x"], "t"), node("Transpose", ["t"], "y", perm=[0, 2, 3, 1])] if layout == "NHWC" else [TANH]
    latents = draw()
    plain = one_by_one(generator_file(), latents.reshape(-1, SIZE, 1, 1)) * 127.5 + 127.5
    bundle, _ = brought(generator_file(ends), tmp_path, channel_order="bgr")
    check(bundle, latents, plain[:, ::-1])


WHOLE = {
    "cut off": [],
    "rounded": [node("Round", ["v"], "r")],
    "rounded, then clipped": [node("Round", ["v"], "q"), node("Clip", ["q", "low", "white"], "r")],
    "floored": [node("Floor", ["v"], "r")],
    "by way of int32": [node("Cast", ["v"], "r", to=TensorProto.INT32)],
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("form", WHOLE)
def test_images_of_uint8(form, channels_last, tmp_path):
    ends = [node("Mul", ["x", "much"], "a"), node("Clip", ["a", "low", "white"], "v"), *WHOLE[form]]
    ends.append(node("Cast", [ends[-1].output[0]], "y", to=TensorProto.UINT8))
    if channels_last:
        ends[-1] = node("Cast", [ends[-2].output[0]], "k", to=TensorProto.UINT8)
        ends.append(node("Transpose", ["k"], "y", perm=[0, 2, 3, 1]))
    more = {"much": np.float32(200), "low": np.float32(0), "white": np.float32(255)}
    model = generator_file(ends, more=more, made="uint8")
    bundle, _ = brought(model, tmp_path)
    latents = draw()
    whole = one_by_one(model, latents.reshape(-1, SIZE, 1, 1))
    whole = whole.transpose(0, 3, 1, 2) if channels_last else whole
    assert {0.0, 255.0} < set(whole.ravel())
    check(bundle, latents, whole, tolerance=0.51)
    with load(bundle.path, Generator, require="cpu", threads=1) as net:
        pixels = np.stack([image.pixels for image in net.generate_from(latents)]).transpose(0, 3, 1, 2)
    assert (pixels != whole).mean() < 0.01, "the runtime's rounding makes the file's whole numbers"
    assert (pixels[whole == 255] == 255).all()
    assert "UINT8" not in str(onnx.load(bundle.path / "model.fp32.onnx").graph)


TYPES = {"float16": (TensorProto.FLOAT16, np.float16), "float64": (TensorProto.DOUBLE, np.float64)}


@pytest.mark.parametrize("place", ["everywhere", "input", "output"])
@pytest.mark.parametrize("kind", TYPES)
def test_number_types(kind, place, tmp_path):
    number, dtype = TYPES[kind]
    nodes, weights = decoder()
    nodes.append(TANH)
    if place == "everywhere":
        weights = {name: value.astype(dtype) for name, value in weights.items()}
    if place == "input":
        nodes[0].input[0] = "f"
        nodes.insert(0, node("Cast", ["z"], "f", to=TensorProto.FLOAT))
    if place == "output":
        nodes[-1] = node("Tanh", ["x"], "t")
        nodes.append(node("Cast", ["t"], "y", to=number))
    dtypes = {"z": "float32" if place == "output" else kind, "y": "float32" if place == "input" else kind}
    model = graph(nodes, {"z": ["n", SIZE, 1, 1]}, {"y": None}, weights, opset=17, dtypes=dtypes, ir=8)
    latents = draw()
    given = latents.reshape(-1, SIZE, 1, 1).astype(np.float32 if place == "output" else dtype)
    # ONNX's own evaluator: ONNX Runtime has no transposed convolution in double on a CPU.
    expected = ReferenceEvaluator(model).run(None, {"z": given})[0].astype(np.float64) * 127.5 + 127.5
    bundle, said = brought(model, tmp_path)
    check(bundle, latents, expected, tolerance=2.0 if kind == "float16" else 0.02)
    assert "all number types became float32" in said["changes"]
    stored = onnx.load(bundle.path / "model.fp32.onnx")
    assert {tensor.data_type for tensor in stored.graph.initializer} <= {TensorProto.FLOAT, TensorProto.INT64}
    assert "Cast" not in ops(stored)


@pytest.mark.parametrize("batch", ["unk__1", 1])
def test_as_keras_writes_it(batch, tmp_path):
    """With tensors inside that have the names of the bundle's ends."""
    latents = draw()
    expected = one_by_one(keras("n"), latents).transpose(0, 3, 1, 2) * 255
    check(brought(keras(batch), tmp_path)[0], latents, expected)


@pytest.mark.parametrize("names", [("images", "latent"), ("latent", "images"), ("images", "y"), ("z", "latent")])
def test_names_of_the_bundle_in_the_file(names, tmp_path):
    nodes, weights = decoder()
    nodes[0].input[0] = names[0]
    nodes += [node("Sigmoid", ["x"], "s"), node("Mul", ["s", "white"], names[1])]
    weights["white"] = np.float32(255)
    model = graph(nodes, {names[0]: ["n", SIZE, 1, 1]}, {names[1]: None}, weights, opset=17, ir=8)
    latents = draw()
    check(brought(model, tmp_path)[0], latents, one_by_one(model, latents.reshape(-1, SIZE, 1, 1)))


SIZES = {
    "a vector, reshaped": [node("Reshape", ["s", "any"], "b")],
    "one number, squeezed": [
        node("Slice", ["s", "zero", "one"], "f"),
        node("Squeeze", ["f"], "q"),
        node("Unsqueeze", ["q", "zero"], "u"),
        node("Concat", ["u", "rest"], "b", axis=0),
    ],
    "one number, gathered": [
        node("Gather", ["s", "zero"], "f"),
        node("Reshape", ["f", "one"], "u"),
        node("Concat", ["u", "rest"], "b", axis=0),
    ],
}


@pytest.mark.parametrize("form", SIZES)
def test_sizes_that_are_computed(form, tmp_path):
    """A batch is opened, and the arithmetic of shapes around a constant stays as it is."""
    ends = [node("Shape", ["x"], "s"), *SIZES[form], node("Expand", ["tone", "b"], "e"), node("Add", ["x", "e"], "a")]
    more = {
        "any": np.array([-1]),
        "zero": np.array([0]),
        "one": np.array([1]),
        "rest": np.array([1, SIDE, SIDE] if "number" in form else [3]),
        "tone": np.full((1, 1, 1, 1), 0.2, np.float32),
    }
    model = generator_file([*ends, node("Tanh", ["a"], "y")], more=more)
    latents = draw()
    expected = one_by_one(model, latents.reshape(-1, SIZE, 1, 1)) * 127.5 + 127.5
    check(brought(model, tmp_path)[0], latents, expected)


def test_several_outputs_and_inputs_that_one_of_them_needs(tmp_path):
    """A VAE's heads: the images need the latent alone."""
    nodes, weights = decoder()
    nodes += [TANH, node("Mul", ["z", "photo"], "mean"), node("RandomNormalLike", ["mean"], "noise")]
    inputs = {"z": ["n", SIZE, 1, 1], "photo": ["n", SIZE, 1, 1], "never": ["n", 3]}
    model = graph(nodes, inputs, {"mean": None, "y": None, "noise": None}, weights, opset=17, ir=8)
    latents = draw()
    expected = one_by_one(generator_file(), latents.reshape(-1, SIZE, 1, 1)) * 127.5 + 127.5
    check(brought(model, tmp_path, output="y")[0], latents, expected)


def test_inputs_that_have_a_value_are_constants(tmp_path):
    """Such as StyleGAN's truncation, and all weights of files before IR version 4."""
    ends = [node("Mul", ["x", "psi"], "u"), node("Tanh", ["u"], "y")]
    model = generator_file(ends, more={"psi": np.float32([0.7])})
    latents = draw()
    expected = one_by_one(model, latents.reshape(-1, SIZE, 1, 1)) * 127.5 + 127.5
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    check(brought(model, tmp_path)[0], latents, expected)
