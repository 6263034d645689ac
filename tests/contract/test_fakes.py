"""The fakes that krl's logic is tested on refuse what the real bindings would refuse."""

import pytest

from _helpers.fake_tensorrt import SignatureError, install_fakes
from _helpers.tensorrt_bindings import GENERATIONS, Parameter, Signature, signatures


@pytest.fixture(params=GENERATIONS, ids=lambda generation: generation.name)
def trt(request, pytestconfig, monkeypatch):
    return install_fakes(request.param, pytestconfig, monkeypatch)


def logger(module):
    class Log(module.ILogger):
        def __init__(self):
            module.ILogger.__init__(self)

    return Log()


def test_names_that_are_absent(trt):
    module = trt.module
    builder = module.Builder(logger(module))
    with pytest.raises(AttributeError):
        module.IStreamReaderV9  # noqa: B018
    with pytest.raises(AttributeError):
        builder.build_cuda_engine  # noqa: B018
    assert hasattr(module.BuilderFlag, "FP16") == trt.version.startswith("10")
    assert hasattr(builder, "platform_has_fast_fp16") == trt.version.startswith("10")


def test_arguments_that_are_wrong(trt):
    module = trt.module
    builder = module.Builder(logger(module))
    config = builder.create_builder_config()
    cache = config.create_timing_cache(b"")
    for call in (
        lambda: module.Builder(),
        lambda: module.Builder("log"),
        lambda: module.Builder(module.ILogger.__new__(type(logger(module)))),  # its __init__ was not called
        lambda: config.set_timing_cache(cache),
        lambda: config.set_timing_cache(cache, False, 1),
        lambda: config.set_timing_cache(cache, ignore=False),
        lambda: config.set_timing_cache(b"", False),
        lambda: config.set_flag(module.DeviceType.DLA),
        lambda: config.create_timing_cache("text"),
        lambda: setattr(config, "builder_optimization_level", "high"),
    ):
        with pytest.raises(SignatureError):
            call()
    assert config.set_timing_cache(cache, ignore_mismatch=False)


def test_attributes_that_cannot_be_set(trt):
    config = trt.module.Builder(logger(trt.module)).create_builder_config()
    config.builder_optimization_level = 4
    assert config.builder_optimization_level == 4
    with pytest.raises(AttributeError):
        config.num_optimization_profiles = 2
    with pytest.raises(AttributeError):
        config.optimization_level = 2


def test_cuda_is_bound_to_the_real_signatures(trt):
    from cuda.bindings import runtime as cudart

    assert cudart is not trt.cuda.real
    with pytest.raises(AssertionError, match="cudaMalloc: missing a required argument: 'size'"):
        cudart.cudaMalloc()
    with pytest.raises(AttributeError):
        cudart.cudaMallocPinned  # noqa: B018
    assert cudart.cudaMemcpyKind is trt.cuda.real.cudaMemcpyKind


def test_docstrings_of_pybind11_are_read():
    doc = """set_input_shape(*args, **kwargs)
Overloaded function.

1. set_input_shape(self: tensorrt_bindings.tensorrt.X, name: str, shape: list[typing.SupportsInt]) -> bool

    Set it, as f(a) -> b says.

2. set_input_shape(self: tensorrt_bindings.tensorrt.X, at: nvinfer1::Flag = <Flag.A: 0>) -> nvonnxparser::IParserError
"""
    assert signatures(doc) == [
        Signature((Parameter("name", "str", False), Parameter("shape", "list[SupportsInt]", False)), "bool"),
        Signature((Parameter("at", "Flag", True),), "ParserError"),
    ]
    assert signatures(None) == []
