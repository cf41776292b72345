"""A TensorRT that executes ONNX with ONNX Runtime on a ``fake_cuda``, with the attributes of the real bindings only.

``tests/fixtures/tensorrt_api.json`` holds what ``dir()`` gave for the classes of the real bindings; an attribute that a
version does not have raises AttributeError here too. An engine is one line of JSON followed by the model.
"""

from __future__ import annotations

import json
import types
import weakref
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from fake_cuda import GPU

API = json.loads((Path(__file__).parent / "fixtures" / "tensorrt_api.json").read_text("utf-8"))
KINDS = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}
ENUMS = ("BuilderFlag", "ComputeCapability", "DataType", "DeviceType", "LayerInformationFormat", "MemoryPoolType",
         "NetworkDefinitionCreationFlag", "ProfilingVerbosity", "TensorIOMode")  # fmt: skip


class Member:
    """One member of an enumeration."""

    def __init__(self, name, value):
        self.name, self.value = name, value

    def __int__(self):
        return self.value


def _restricted(cls, allowed):
    """``cls`` with only the public attributes ``allowed``, reading and writing."""

    def check(self, name):
        if not name.startswith("_") and name not in allowed:
            raise AttributeError(f"{cls.__name__} has no attribute {name!r}")

    def read(self, name):
        check(self, name)
        return object.__getattribute__(self, name)

    def write(self, name, value):
        check(self, name)
        object.__setattr__(self, name, value)

    return type(cls.__name__, (cls,), {"__getattribute__": read, "__setattr__": write})


class Plain:
    """Reports its fields as methods, as TensorRT's errors do, or as attributes."""

    def __init__(self, **fields):
        self.__dict__.update(fields)


def _severity():
    names = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")
    return types.SimpleNamespace(**{name: Member(name, i) for i, name in enumerate(names)})


class Logger:
    Severity = _severity()


class Allocator:
    """Base of the application's allocators; nothing of its own."""


class Network:
    def __init__(self, flags):
        self._flags, self._inputs, self._layers, self._model = flags, [], [], None

    num_inputs = property(lambda self: len(self._inputs))
    num_layers = property(lambda self: len(self._layers))

    def get_input(self, index):
        return self._inputs[index]

    def get_layer(self, index):
        return self._layers[index]


class Layer:
    num_outputs = 1

    def __init__(self, node, types):
        self._node, self.name, self._types = node, node.name, types

    def get_output(self, index):
        integers = self._node.op_type == "NonMaxSuppression"
        return Plain(dtype=self._types.INT32 if integers else self._types.FLOAT)

    def set_output_type(self, index, kind):
        assert self.get_output(index).dtype is kind, "an integer cannot become real"
        self._kind = kind


class Parser:
    def __init__(self, network, logger):
        self._network, self._errors = network, []

    num_errors = property(lambda self: len(self._errors))

    def get_error(self, index):
        return self._errors[index]

    def parse(self, data):
        model = onnx.load_from_string(data)
        constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        for index, node in enumerate(model.graph.node):
            if node.domain:
                self._refuse(index, node, "no importer registered for this operator")
            if node.op_type in ("QuantizeLinear", "DequantizeLinear") and np.any(constants[node.input[2]]):
                self._refuse(index, node, "Non-zero zero point is not supported.")
        if self._errors:
            return False
        make = self._trt._make
        self._network._model = data
        self._network._layers = [make("ILayer", node, self._trt.DataType) for node in model.graph.node]
        for value in model.graph.input:
            shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim)
            self._network._inputs.append(Plain(name=value.name, shape=shape))
        return True

    def _refuse(self, index, node, text):
        fields = {"node": index, "desc": text, "node_name": node.name, "node_operator": node.op_type}
        known = self._trt._api["ParserError"]
        self._errors.append(Plain(**{k: (lambda v=v: v) for k, v in fields.items() if k in known}))


class Cache:
    def __init__(self, data):
        self._data = data

    def serialize(self):
        return self._data + b"+measured"


class Config:
    def __init__(self):
        self._flags, self._limits, self._profiles, self._targets = set(), {}, [], {}
        self._cache = None

    def set_flag(self, flag):
        self._flags.add(flag.name)

    def set_memory_pool_limit(self, pool, size):
        self._limits[pool.name] = size

    def add_optimization_profile(self, profile):
        self._profiles.append(profile)

    def create_timing_cache(self, data):
        return Cache(data)

    def set_timing_cache(self, cache, ignore_mismatch):
        fits = not cache._data.startswith(b"other GPU")
        self._cache = cache if fits else self._cache
        return fits

    def get_timing_cache(self):
        return self._cache

    def set_compute_capability(self, member, index):
        self._targets[index] = member.name
        return True


class Profile:
    def __init__(self):
        self._shapes = {}

    def set_shape(self, name, smallest, best, largest):
        self._shapes[name] = (smallest, best, largest)


class Builder:
    num_DLA_cores = 1

    def __init__(self, logger):
        self._logger = logger

    def create_network(self, flags=0):
        return self._trt._make("INetworkDefinition", flags)

    def create_builder_config(self):
        return self._trt._make("IBuilderConfig")

    def create_optimization_profile(self):
        return self._trt._make("IOptimizationProfile")

    def build_serialized_network(self, network, config):
        self._trt._built = (network, config)
        if network._layers and network._layers[0].name == "too big":
            self._logger.log(Logger.Severity.INFO, "trying tactics")
            self._logger.log(Logger.Severity.ERROR, "layer 'too big' found no tactic")
            return None
        profile = config._profiles[0]._shapes if config._profiles else {}
        head = {"version": self._trt.__version__, "gpu": GPU, "profile": profile}
        return memoryview(json.dumps(head).encode() + b"\n" + network._model)


class Runtime:
    def __init__(self, logger):
        self._logger = logger

    def deserialize_cuda_engine(self, data):
        head, _, model = bytes(data).partition(b"\n")
        try:
            head = json.loads(head)
        except ValueError:
            return self._fail("Magic tag does not match")
        if head["version"] != self._trt.__version__:
            return self._fail(f"plan file is not compatible with this version of TensorRT, got {head['version']}")
        if head["gpu"] == "no driver":
            return self._fail("CUDA driver version is insufficient for CUDA runtime version")
        if head["gpu"] != GPU:
            return self._fail("plan file is generated on an incompatible device, expecting compute 8.7 got 7.2")
        return self._trt._make("ICudaEngine", head, model)

    def _fail(self, text):
        self._logger.log(Logger.Severity.ERROR, text)


class FakeEngine:
    def __init__(self, head, model):
        self._head, self._graph = head, onnx.load_from_string(model).graph
        self._session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        self._values = {v.name: v.type.tensor_type for v in [*self._graph.input, *self._graph.output]}
        self._inputs = [v.name for v in self._graph.input]

    num_io_tensors = property(lambda self: len(self._values))

    def get_tensor_name(self, index):
        return list(self._values)[index]

    def get_tensor_mode(self, name):
        mode = self._trt.TensorIOMode
        return mode.INPUT if name in self._inputs else mode.OUTPUT

    def get_tensor_dtype(self, name):
        """Where a version has no INT64, its engines hold INT32 instead."""
        kind = onnx.helper.tensor_dtype_to_np_dtype(self._values[name].elem_type)
        found = next((k for k, v in KINDS.items() if v == kind), "FP8")
        return getattr(self._trt.DataType, found if hasattr(self._trt.DataType, found) else "INT32")

    def get_tensor_shape(self, name):
        return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in self._values[name].shape.dim)

    def get_tensor_profile_shape(self, name, index):
        assert index == 0
        return self._head["profile"][name]

    def create_execution_context(self):
        context = self._trt._make("IExecutionContext", self)
        self._trt._contexts.add(context)
        return context

    def create_engine_inspector(self):
        layers = json.dumps({"Layers": [{"Name": node.name} for node in self._graph.node]})
        return Plain(get_engine_information=lambda form: layers if form.name == "JSON" else "")


class Context:
    def __init__(self, engine):
        self._engine = engine
        self._shapes, self._addresses, self._allocators = {}, {}, {}

    def set_input_shape(self, name, shape):
        self._shapes[name] = shape
        return True

    def get_tensor_shape(self, name):
        """Symbol N is the batch; another symbol depends on the data."""
        if name in self._shapes:
            return self._shapes[name]
        batch = next(iter(self._shapes.values()))[0]
        dims = self._engine._values[name].shape.dim
        return tuple(batch if d.dim_param == "N" else d.dim_value if d.HasField("dim_value") else -1 for d in dims)

    def set_tensor_address(self, name, address):
        self._addresses[name] = address
        return True

    def set_output_allocator(self, name, allocator):
        self._allocators[name] = allocator
        return True

    def is_stream_capturable(self, stream):
        return self._trt._capturable

    def execute_async_v3(self, stream):
        cuda = self._trt._cuda
        assert cuda.live[stream][0] == "stream"
        if cuda.captured is not None:
            cuda.captured.append(self._work(stream, dict(self._addresses)))
            return not self._allocators
        cuda.calls.append("enqueue")
        if not self._allocators:
            cuda.queue.append(self._work(stream, dict(self._addresses)))
            return True
        cuda.flush()  # the sizes are needed on the host
        return self._work(stream, dict(self._addresses))()

    def _work(self, stream, addresses):
        """A run with the addresses of now: a graph keeps them."""
        cuda, engine = self._trt._cuda, self._engine
        (name,) = engine._inputs

        def run():
            kind, shape = KINDS[engine.get_tensor_dtype(name).name], self._shapes[name]
            count = int(np.prod(shape))
            pixels = np.frombuffer(cuda.bytes_at(addresses[name], "device"), kind, count).reshape(shape)
            names = [v.name for v in engine._graph.output]
            for output, computed in zip(names, engine._session.run(names, {name: pixels}), strict=True):
                values = computed.astype(KINDS[engine.get_tensor_dtype(output).name])
                address = addresses.get(output)
                if output in self._allocators:
                    size = max(values.nbytes, 1)
                    allocator = self._allocators[output]
                    if self._trt.__version__.startswith("8."):
                        address = allocator.reallocate_output(output, 0, size, 256)
                    else:
                        address = allocator.reallocate_output_async(output, 0, size, 256, stream)
                    if not address:
                        return False
                    allocator.notify_shape(output, values.shape)
                cuda.bytes_at(address, "device")[: values.nbytes] = values.tobytes()
            return True

        return run


CLASSES = {"Builder": Builder, "IBuilderConfig": Config, "ICudaEngine": FakeEngine, "IExecutionContext": Context,
           "ILayer": Layer, "INetworkDefinition": Network, "IOptimizationProfile": Profile, "OnnxParser": Parser,
           "Runtime": Runtime}  # fmt: skip


def make(flavour, cuda=None, version=None):
    """A module with the surface of ``flavour``, a key of the fixture, over ``cuda``."""
    api = API[flavour]
    trt = types.ModuleType("tensorrt_rtx_bindings" if "rtx" in flavour else "tensorrt")
    trt.__version__ = version or api["version"]
    trt._api, trt._cuda, trt._capturable, trt._contexts = api, cuda, True, weakref.WeakSet()
    for name in ENUMS:
        if name in api:
            members = {member: Member(member, i) for i, member in enumerate(api[name])}
            setattr(trt, name, type(name, (), members))
    classes = {name: type(cls.__name__, (_restricted(cls, set(api[name])),), {"_trt": trt})
               for name, cls in CLASSES.items()}  # fmt: skip
    trt._make = lambda name, *arguments: classes[name](*arguments)
    trt.ILogger, trt.IOutputAllocator = Logger, Allocator
    trt.Builder, trt.Runtime, trt.OnnxParser = (classes[name] for name in ("Builder", "Runtime", "OnnxParser"))
    return trt
