"""A TensorRT without a GPU, behind the names and signatures of the real bindings of one generation.

Classes, enum members, methods and properties exist where the real ones do, and calls are bound to the signatures in
their docstrings: what the real binding would refuse with a ``TypeError`` fails the test here. What the calls do is
written below: a "plan" holds the ONNX file, and running it runs ONNX Runtime.
"""

import base64
import ctypes
import json
import math
import struct
import sys
import threading
from collections import Counter
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from _helpers.fake_cuda import FakeCuda
from _helpers.tensorrt_bindings import cache_folder, dump_tensorrt, signatures
from krl_runtime.backends.tensorrt.library import Library

_DTYPES = {"float32": "FLOAT", "float16": "HALF", "int8": "INT8", "int32": "INT32", "int64": "INT64", "uint8": "UINT8"}
_DTYPES["bool"] = "BOOL"


class SignatureError(AssertionError):
    """A call that the real binding would refuse. No part of krl catches it."""


def install_fakes(generation, config, monkeypatch):
    """Put a fake TensorRT of a generation, and a fake CUDA under it, in place of the real ones."""
    cuda = FakeCuda().install(monkeypatch)
    dump = dump_tensorrt(cache_folder(config), generation)
    return FakeTensorRT(dump, cuda, rtx=generation.rtx).install(monkeypatch)


def faked(*generations):
    """Return a fixture: the fake of each generation in turn, or of the one that is given."""
    named = {"params": generations, "ids": lambda generation: generation.name} if len(generations) > 1 else {}

    @pytest.fixture(**named)
    def fake(request, pytestconfig, monkeypatch):
        return install_fakes(getattr(request, "param", generations[0]), pytestconfig, monkeypatch)

    return fake


class FakeTensorRT:
    """Install with ``install``.

    Attributes:
        calls: How often each method was called, as ``"Builder.create_network"``.
        fail: What a call returns instead of its result, or the exception that it raises; by method.
        say: Errors that are logged when a method is called; by method.
        parser_errors: (node, operator, description) of each error of the parser, which then refuses the file.
        dla_cores: Number of DLA cores.
        not_on_dla: Names of layers that cannot run there.
        no_capture: Whether the engine cannot be captured into a CUDA graph.
        wrong_answer: What is added to every output.
        on_step: Called at each step of a build with its number.
    """

    def __init__(self, dump, cuda, rtx=False):
        self.version = dump["version"]
        self.rtx = rtx
        self.contexts = []  # keyword arguments of each execution context that was made
        self.capabilities = []
        self.cuda = cuda
        self.calls = Counter()
        self.fail = {}
        self.say = {}
        self.parser_errors = []
        self.dla_cores = 0
        self.not_on_dla = ()
        self.no_capture = False
        self.wrong_answer = 0.0
        self.on_step = lambda step: None
        self.network_flags = None
        self.set_flags = []
        self._logger = None
        self._lock = threading.RLock()
        self._dump = dump["classes"]
        self.module = _Module(self)

    def install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, self.module.__name__, self.module)
        return self

    @property
    def library(self):
        """The fake as krl's code takes it."""
        return Library("tensorrt-rtx" if self.rtx else "tensorrt", self.module, self.version)

    def log_error(self, message):
        if self._logger is not None:
            self._logger.log(self.module.ILogger.Severity.ERROR, message)

    # How classes are made

    def make(self, name):
        """Make a class of the module, and those that it stands on."""
        item = self._dump[name]
        bases = [getattr(self.module, base) for base in item["bases"][:1] if base in self._dump]
        return self._class(name, item, tuple(bases) or (_Object,))

    def _class(self, name, item, bases):
        if item["members"] is not None:
            cls = type(name, (_Enum,), {})
            cls.__members__ = {member: cls(member, number) for member, number in item["members"].items()}
            for member, value in cls.__members__.items():
                setattr(cls, member, value)
            return cls
        body = {"_fake": self, "_name": name}
        for method, doc in item["methods"].items():
            found = signatures(doc)
            if found and (method in ("__init__", "__bool__") or not method.startswith("__")):
                body[method] = _method(self, name, method, found)
        for prop, (getter, setter) in item["properties"].items():
            body[prop] = _property(self, name, prop, getter, setter)
        for inner, nested in item["nested"].items():
            body[inner] = self._class(inner, nested, (_Object,))
        return type(name, bases, body)

    def new(self, cls, /, **values):
        """Make an object that only TensorRT itself makes."""
        made = object.__new__(getattr(self.module, cls))
        made.__dict__["s"] = SimpleNamespace(values={}, **values)
        return made

    def returns(self, key):
        """The type that the real signature of a method or property gives for its result."""
        cls, name = key.split(".")
        item = self._dump[cls]
        doc = item["methods"].get(name) or (item["properties"].get(name) or [""])[0]
        found = signatures(doc)
        return found[0].returns if found else "None"

    def is_class(self, kind):
        """Whether a type is a class whose object may be null, and not an enum or a value."""
        return kind in self._dump and self._dump[kind]["members"] is None and kind != "Dims"

    def accepts(self, kind, value, optional):
        """Whether pybind11 would take a value for a parameter of this type."""
        if value is None:
            return optional or kind in ("object", "None")
        checks = {
            "SupportsInt": lambda: hasattr(value, "__int__") and not isinstance(value, str | float),
            "int": lambda: isinstance(value, int),
            "SupportsFloat": lambda: hasattr(value, "__float__"),
            "bool": lambda: isinstance(value, bool),
            "str": lambda: isinstance(value, str),
            "buffer": lambda: isinstance(value, bytes | bytearray | memoryview),
            "Buffer": lambda: isinstance(value, bytes | bytearray | memoryview),
            "tuple": lambda: isinstance(value, tuple),
            "list": lambda: isinstance(value, list),
            "Dims": lambda: all(isinstance(size, int) for size in value),
        }
        if kind in checks:
            return checks[kind]()
        if kind in self._dump:
            return isinstance(value, getattr(self.module, kind)) and (isinstance(value, _Enum) or "s" in vars(value))
        return True

    def result(self, cls, method, this, arguments, returns):
        """Do a call whose signature has been checked."""
        key = f"{cls}.{method}"
        with self._lock:
            self.calls[key] += 1
        self._logger = self._logger or arguments.get("logger")  # the first one stays, as with the real one
        for message in self.say.get(key, ()):
            self.log_error(message)
        if key in self.fail:
            outcome = self.fail[key]
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome
        handler = getattr(self, f"_{cls}_{method}", None)
        if handler is not None:
            return handler(this, **arguments)
        plain = {"None": None, "bool": True, "int": 0, "str": "", "float": 0.0}
        if returns in plain:
            return plain[returns]
        if self.is_class(returns):
            return self.new(returns)
        return []

    # What the calls do

    def _ILogger___init__(self, this):
        pass

    def _IProfiler___init__(self, this):
        pass

    def _IProgressMonitor___init__(self, this):
        pass

    def _Builder___init__(self, this, logger):
        pass

    _Runtime___init__ = _Builder___init__

    def _Builder_create_network(self, this, flags=0):
        self.network_flags = flags
        return self.new("INetworkDefinition", model=None, inputs=[], layers=[])

    def _OnnxParser___init__(self, this, network, logger):
        this.s.network = network

    def _OnnxParser_parse(self, this, model, path=None):
        if self.parser_errors:
            return False
        network, parsed = this.s.network, onnx.load_from_string(bytes(model))
        network.s.model = bytes(model)
        for value in parsed.graph.input:
            shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim]
            network.s.inputs.append(self.new("ITensor", name=value.name, shape=shape))
        network.s.layers = [
            self.new("ILayer", name=node.name or node.output[0], type=self.module.LayerType.CONVOLUTION)
            for node in parsed.graph.node
        ]
        return True

    def _OnnxParser_num_errors(self, this):
        return len(self.parser_errors)

    def _OnnxParser_get_error(self, this, index):
        node, operator, text = self.parser_errors[index]
        return self.new("ParserError", told=(node, operator, text))

    def _ParserError_node_name(self, this):
        return this.s.told[0]

    def _ParserError_node_operator(self, this):
        return this.s.told[1]

    def _ParserError_desc(self, this):
        return this.s.told[2]

    def _INetworkDefinition_num_inputs(self, this):
        return len(this.s.inputs)

    def _INetworkDefinition_get_input(self, this, index):
        return this.s.inputs[index]

    def _INetworkDefinition_num_layers(self, this):
        return len(this.s.layers)

    def _INetworkDefinition_get_layer(self, this, index):
        return this.s.layers[index]

    def _ILayer_get_output_type(self, this, index):
        return self.module.DataType.FLOAT

    def _IBuilderConfig_set_compute_capability(self, this, compute_capability, index):
        self.capabilities[index:] = [compute_capability.name]
        return True

    def _Builder_num_DLA_cores(self, this):
        return self.dla_cores

    def _Builder_create_optimization_profile(self, this):
        return self.new("IOptimizationProfile", shapes={})

    def _IOptimizationProfile_set_shape(self, this, input, min, opt, max):
        this.s.shapes[input] = [list(min), list(opt), list(max)]

    def _IBuilderConfig_add_optimization_profile(self, this, profile):
        this.s.profiles = [*getattr(this.s, "profiles", []), profile.s.shapes]
        return len(this.s.profiles) - 1

    def _IBuilderConfig_set_flag(self, this, flag):
        self.set_flags.append(flag.name)

    def _IBuilderConfig_can_run_on_DLA(self, this, layer):
        return layer.name not in self.not_on_dla

    def _IBuilderConfig_create_timing_cache(self, this, serialized_timing_cache):
        return self.new("ITimingCache", content=bytes(serialized_timing_cache))

    def _IBuilderConfig_set_timing_cache(self, this, cache, ignore_mismatch):
        accepted = cache.s.content in (b"", b"timings of " + self.version.encode())
        if accepted:
            this.s.cache = cache
        return accepted

    def _IBuilderConfig_get_timing_cache(self, this):
        return this.s.cache

    def _ITimingCache_serialize(self, this):
        return self.new("IHostMemory", content=b"timings of " + self.version.encode())

    def _Builder_build_serialized_network(self, this, network, config):
        monitor = config.s.values["progress_monitor"]
        assert self.rtx or config.s.cache is not None
        monitor.phase_start("Building engine", None, 4)
        monitor.phase_start("Tactics", "Building engine", 2)
        for step in range(4):
            self.on_step(step)
            if not monitor.step_complete("Building engine", step):
                return None
        monitor.phase_finish("Tactics")
        monitor.phase_finish("Building engine")
        profiles = getattr(config.s, "profiles", [])
        plan = self.plan(
            network.s.model, profiles, stripped="STRIP_PLAN" in self.set_flags, refittable="REFIT" in self.set_flags
        )
        return self.new("IHostMemory", content=plan)

    def plan(self, model, profiles, stripped=False, refittable=False):
        """What the fake takes for an engine: the header of a real one, and the ONNX file."""
        content = {"profiles": profiles, "model": base64.b64encode(b"" if stripped else model).decode()}
        return self._header() + json.dumps({**content, "stripped": stripped, "refittable": refittable}).encode()

    def _header(self):
        numbers = ([int(part) for part in self.version.split(".")] + [0])[:4]
        return (b"vtrt" if self.rtx else b"ftrt") + struct.pack("<I", 0) + bytes(16) + bytes(numbers)

    def _Runtime_deserialize_cuda_engine(self, this, serialized_engine):
        data = bytes(serialized_engine)
        if data[:4] != self._header()[:4]:
            self.log_error("Error Code 1: Serialization (Serialization assertion plan->header.magicTag failed.)")
            return None
        if data[:28] != self._header():
            self.log_error("Version tag does not match. Note: Current Version: 239, Serialized Engine Version: 240")
            return None
        plan = json.loads(data[28:])
        model = base64.b64decode(plan["model"])
        state = {"profiles": plan["profiles"], "plan_model": model, "refitted": not plan["stripped"]}
        return self.new("ICudaEngine", **state, refittable=plan["refittable"])

    def _ICudaEngine_serialize(self, this):
        plan = self.plan(this.s.plan_model, this.s.profiles, refittable=this.s.refittable)
        return self.new("IHostMemory", content=plan)

    def _Refitter___init__(self, this, engine, logger):
        this.s.engine = engine

    def _OnnxParserRefitter___init__(self, this, refitter, logger):
        this.s.engine = refitter.s.engine

    def _OnnxParserRefitter_refit_from_bytes(self, this, model, path=None):
        this.s.engine.s.plan_model = bytes(model)
        return True

    def _Refitter_refit_cuda_engine(self, this):
        this.s.engine.s.refitted = True
        return True

    def _tensors(self, engine):
        if not hasattr(engine.s, "tensors"):
            graph = onnx.load_from_string(engine.s.plan_model).graph
            engine.s.tensors = {}
            for mode, values in (("INPUT", graph.input), ("OUTPUT", graph.output)):
                for value in values:
                    kind = value.type.tensor_type
                    shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim]
                    name = helper.tensor_dtype_to_np_dtype(kind.elem_type).name
                    engine.s.tensors[value.name] = (mode, _DTYPES.get(name, "BF16"), shape)
        return engine.s.tensors

    def _ICudaEngine_num_io_tensors(self, this):
        return len(self._tensors(this))

    def _ICudaEngine_get_tensor_name(self, this, index):
        return list(self._tensors(this))[index]

    def _ICudaEngine_get_tensor_mode(self, this, name):
        return getattr(self.module.TensorIOMode, self._tensors(this)[name][0])

    def _ICudaEngine_get_tensor_dtype(self, this, name):
        return getattr(self.module.DataType, self._tensors(this)[name][1])

    def _ICudaEngine_get_tensor_shape(self, this, name):
        return self._tensors(this)[name][2]

    def _ICudaEngine_get_tensor_location(self, this, name):
        return self.module.TensorLocation.DEVICE

    def _ICudaEngine_create_engine_inspector(self, this):
        return self.new("EngineInspector", engine=this)

    def _EngineInspector_get_engine_information(self, this, format):
        """One layer for each node, in the words of TensorRT's own JSON: a field of the tensors was split in 11."""
        ten = self.version.startswith("10")
        layers = []
        for node in onnx.load_from_string(this.s.engine.s.plan_model).graph.node:
            name = node.name or node.output[0]
            tensor = {"Name": node.output[0], "Dimensions": [1]}
            words = "Row major linear FP32 format (kLINEAR)"
            tensor |= {"Format/Datatype": words} if ten else {"Format": words, "Datatype": "Float"}
            layer = {"Name": name, "LayerType": "Reformat" if node.op_type == "Cast" else node.op_type, "Inputs": []}
            layer |= {"Outputs": [tensor], "Metadata": f"[ONNX Layer: {name}]"}
            layers.append(layer | ({"Weights": {"Type": "Int8", "Count": 1}} if node.op_type == "Conv" else {}))
        return json.dumps({"Layers": layers, "Bindings" if ten else "I/O Tensors": []})

    def _ICudaEngine_num_optimization_profiles(self, this):
        return max(1, len(this.s.profiles))

    def _ICudaEngine_get_tensor_profile_shape(self, this, name, profile_index):
        return this.s.profiles[profile_index][name]

    def _IRuntimeConfig_create_runtime_cache(self, this):
        return self.new("IRuntimeCache", content=b"")

    def _IRuntimeConfig_set_runtime_cache(self, this, cache):
        this.s.cache = cache
        return True

    def _IRuntimeCache_deserialize(self, this, blob):
        this.s.content = bytes(blob)
        return this.s.content.startswith(b"kernels")

    def _IRuntimeCache_serialize(self, this):
        return self.new("IHostMemory", content=this.s.content)

    def _ICudaEngine_create_execution_context(self, this, **given):
        self.contexts.append(given)
        config = given.get("runtime_config")
        if config is not None and not config.s.cache.s.content.startswith(b"kernels"):
            config.s.cache.s.content = b"kernels of " + self.version.encode()  # compiled now
        assert this.s.refitted, "a stripped engine was run without weights"
        options = ort.SessionOptions()
        options.add_session_config_entry("session.x64quantprecision", "1")  # exact INT8 on x86 without VNNI
        session = ort.InferenceSession(this.s.plan_model, options, providers=["CPUExecutionProvider"])
        return self.new("IExecutionContext", owner=this, session=session, shapes={}, addresses={}, profile=None)

    def _IExecutionContext_set_optimization_profile_async(self, this, profile_index, stream_handle):
        assert profile_index < max(1, len(this.s.owner.s.profiles))
        this.s.profile, this.s.shapes = profile_index, {}
        return True

    def _IExecutionContext_set_input_shape(self, this, name, shape):
        if this.s.owner.s.profiles:
            low, _, high = this.s.owner.s.profiles[this.s.profile][name]
            if not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
                return False
        this.s.shapes[name] = list(shape)
        return True

    def _IExecutionContext_infer_shapes(self, this):
        tensors = self._tensors(this.s.owner)
        return [name for name, (mode, *_) in tensors.items() if mode == "INPUT" and name not in this.s.shapes]

    def _IExecutionContext_get_tensor_shape(self, this, name):
        mode, _, shape = self._tensors(this.s.owner)[name]
        if mode == "INPUT":
            return this.s.shapes[name]
        if -1 in shape[1:]:
            return self._shape_that_comes_out(this, name)
        batch = next(iter(this.s.shapes.values()))[0]
        return [batch if size == -1 else size for size in shape]

    def _shape_that_comes_out(self, context, name):
        inputs = {}
        for tensor, shape in context.s.shapes.items():
            dtype = next(key for key, value in _DTYPES.items() if value == self._tensors(context.s.owner)[tensor][1])
            inputs[tensor] = np.zeros(shape, dtype)
        return list(context.s.session.run([name], inputs)[0].shape)

    def _IExecutionContext_set_tensor_address(self, this, name, memory):
        this.s.addresses[name] = memory
        return True

    def _IExecutionContext_execute_async_v3(self, this, stream_handle):
        if self.no_capture and stream_handle in self.cuda._capturing:
            self.log_error("operation not permitted when stream is capturing")
            return False
        profiler = this.s.values.get("profiler")
        if profiler is not None:
            for index, node in enumerate(onnx.load_from_string(this.s.owner.s.plan_model).graph.node):
                profiler.report_layer_time(node.name or node.output[0], 0.5 + index)
        shapes = {name: self._IExecutionContext_get_tensor_shape(this, name) for name in self._tensors(this.s.owner)}
        self.cuda.enqueue(stream_handle, lambda: self._compute(this, shapes))
        return True

    def _compute(self, context, shapes):
        arrays = {name: self._array(context, name, shape) for name, shape in shapes.items()}
        modes = {name: mode for name, (mode, *_) in self._tensors(context.s.owner).items()}
        inputs = {name: array.copy() for name, array in arrays.items() if modes[name] == "INPUT"}
        names = [name for name in arrays if modes[name] == "OUTPUT"]
        for name, value in zip(names, context.s.session.run(names, inputs), strict=True):
            arrays[name][...] = value + np.asarray(self.wrong_answer, value.dtype)

    def _array(self, context, name, shape):
        dtype = next(key for key, value in _DTYPES.items() if value == self._tensors(context.s.owner)[name][1])
        size = math.prod(shape) * np.dtype(dtype).itemsize
        memory = (ctypes.c_uint8 * size).from_address(context.s.addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)


class _Module(ModuleType):
    """Makes its classes when they are asked for; what the real module has not is not there."""

    def __init__(self, fake):
        super().__init__("tensorrt_rtx" if fake.rtx else "tensorrt")
        self.__version__ = fake.version
        self._fake = fake

    def __getattr__(self, name):
        fake = self.__dict__["_fake"]
        if name not in fake._dump:
            raise AttributeError(f"TensorRT {fake.version} has no {name}")
        setattr(self, name, fake.make(name))
        return self.__dict__[name]


class _Object:
    """The base of all classes that are not enums; ``s`` holds what the fake knows of the object."""

    def __setattr__(self, name, value):
        # As with pybind11: only properties can be set, but subclasses written in Python take anything.
        if "_fake" in vars(type(self)) and not isinstance(getattr(type(self), name, None), property):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r} that can be set")
        super().__setattr__(name, value)

    def __bytes__(self):
        return self.s.content


class _Enum:
    def __init__(self, name, value):
        self.name = name
        self.value = value

    def __int__(self):
        return self.value

    def __eq__(self, other):
        return type(other) is type(self) and other.value == self.value

    def __hash__(self):
        return hash((type(self).__name__, self.value))


def _bind(fake, key, overloads, args, kwargs):
    problems = []
    for signature in overloads:
        names = [parameter.name for parameter in signature.parameters]
        given = dict(zip(names, args, strict=False)) | kwargs
        missing = [p.name for p in signature.parameters if not p.optional and p.name not in given]
        wrong = [
            f"{p.name}={given[p.name]!r} is not {p.type}"
            for p in signature.parameters
            if p.name in given and not fake.accepts(p.type, given[p.name], p.optional)
        ]
        unknown = sorted(set(kwargs) - set(names)) + list(args[len(names) :])
        if not (missing or wrong or unknown):
            return given, signature.returns
        problems.append(f"missing {missing}, wrong {wrong}, unknown {unknown}")
    raise SignatureError(f"{key}: {'; '.join(problems)}")


def _method(fake, cls, method, overloads):
    def function(self, *args, **kwargs):
        arguments, returns = _bind(fake, f"{cls}.{method}", overloads, args, kwargs)
        if method == "__init__":
            self.__dict__["s"] = SimpleNamespace(values={})
        return fake.result(cls, method, self, arguments, returns)

    return function


def _property(fake, cls, name, getter, setter):
    kinds = signatures(getter)
    accepted = signatures(setter)

    def get(self):
        if name in self.s.values:
            return self.s.values[name]
        if hasattr(self.s, name):
            return getattr(self.s, name)
        return fake.result(cls, name, self, {}, kinds[0].returns if kinds else "None")

    def put(self, value):
        if accepted:
            _bind(fake, f"{cls}.{name}", accepted, (value,), {})
        self.s.values[name] = value

    return property(get, put if setter is not None else None)
