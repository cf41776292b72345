"""The one place that knows how TensorRT 8.5 to 11 and TensorRT-RTX 1 differ: build, deserialise, inspect, describe.

    what                  8.5, 8.6             9, 10                      11 and RTX
    types of a network    flags INT8, FP16     STRONGLY_TYPED: the file   always the file
    batch flag            EXPLICIT_BATCH       ignored                    gone
    errors of the parser  the first            every node, with its name  every node, with its name
    built for             the GPU it runs on   the same                   RTX: a list of GPUs too
    timing cache          yes                  yes                        RTX: does nothing

Differences are found by asking for the attribute, not by comparing versions. Needs the standard library and numpy, runs
on Python 3.8, and imports TensorRT only when ``load`` is called. Nothing here calibrates: 8-bit types come from Q/DQ.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

TENSORRT = ("tensorrt",)
RTX = ("tensorrt_rtx", "tensorrt_rtx_bindings")
RANGE, RTX_RANGE = ((8, 5), (11,)), ((1,), (1,))
SUPPORTED = "TensorRT 8.5 to 11, TensorRT-RTX 1"
QUOTED = 6  # of the last log messages, in an error

_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "INT32": np.int32, "INT64": np.int64,
          "UINT8": np.uint8, "BOOL": np.bool_}  # fmt: skip
"""By name: ``tensorrt.nptype`` of version 8 asks numpy for a name that newer numpy no longer has."""


class TensorRTError(Exception):
    """Something that stops a build or a run: what, where, got, allowed and one next step, as rows of text."""

    def __init__(
        self, what: str, *, where: object = None, got: object = None, allowed: object = None, hint: str | None = None
    ) -> None:
        self.what, self.where, self.got, self.allowed, self.hint = what, where, got, allowed, hint
        rows = [("where", where), ("got", got), ("allowed", allowed), ("next", hint)]
        text = "\n".join([what] + [f"  {key}: {value}" for key, value in rows if value is not None])
        super().__init__("".join(c if c.isprintable() or c == "\n" else "?" for c in text))


@dataclass(frozen=True)
class BuildOptions:
    """What a build is asked for.

    Args:
        precision: ``int8``, ``fp16`` or ``fp32``; not read where networks carry their types.
        batch: smallest, best and largest batch of a network whose batch is symbolic; None where it is fixed.
        workspace_mib: scratch memory that layers may use; None for all that there is.
        dla: DLA core that the network runs on, with the GPU for what it cannot do; None for the GPU alone.
        targets: for TensorRT-RTX, members of its ``ComputeCapability`` such as ``SM86``; empty for its default.
        timing_cache: file of measured layers, read where it exists and written after the build.
        float_layers: names of the layers that stay float32; not read where networks carry their types.
    """

    precision: str = "fp32"
    batch: tuple[int, int, int] | None = None
    workspace_mib: int | None = None
    dla: int | None = None
    targets: tuple[str, ...] = ()
    timing_cache: Path | None = None
    float_layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine; -1 in ``shape`` is a dimension that the engine leaves open."""

    name: str
    dtype: Any
    shape: tuple[int, ...]
    is_input: bool


def load(names: Sequence[str] = TENSORRT + RTX) -> Any:
    """Import the first of the modules ``names`` that there is.

    Raises:
        TensorRTError: none can be imported, or its version is out of range.
    """
    failures = []
    for name in names:
        try:
            trt = importlib.import_module(name)
        except ImportError as error:
            failures.append(f"{name}: {error}")
            continue
        oldest, newest = RTX_RANGE if is_rtx(trt) else RANGE
        if not (oldest <= version(trt) and version(trt)[:1] <= newest):
            raise TensorRTError(
                "this version of TensorRT is not supported",
                got=f"{name} {trt.__version__}",
                allowed=SUPPORTED,
                hint="on a Jetson TensorRT comes with JetPack: 5.1 has 8.5, 6.0 has 8.6, 6.1 and 6.2 have 10.3",
            )
        return trt
    raise TensorRTError(
        "TensorRT cannot be imported",
        got="; ".join(failures),
        allowed=SUPPORTED,
        hint="pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings"
        if set(names) <= set(RTX)
        else "on a Jetson install python3-libnvinfer (part of JetPack) for this Python; elsewhere pip install tensorrt",
    )


def version(trt: Any) -> tuple[int, ...]:
    """The first three numbers of the version: trtexec prints no more."""
    return tuple(int(part) for part in str(trt.__version__).split(".")[:3] if part.isdigit())


def is_rtx(trt: Any) -> bool:
    """Whether the module is TensorRT-RTX, which counts its versions on its own."""
    return "rtx" in trt.__name__


def is_typed(trt: Any, dla: int | None = None) -> bool:
    """Whether networks carry their types: build from ``typed.onnx`` then, and from ``model.onnx`` where they do not.

    For a DLA core types are permissions as long as the version has the flags for that.
    """
    if dla is not None and hasattr(trt.BuilderFlag, "FP16"):
        return False
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") or not hasattr(trt.BuilderFlag, "INT8")


@lru_cache
def log(trt: Any) -> Any:
    """The logger of this process, with ``messages`` and ``tail()``: TensorRT keeps the first one that it is given."""
    severity = trt.ILogger.Severity
    kept = (severity.WARNING, severity.ERROR, severity.INTERNAL_ERROR)

    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps the last warnings and errors."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: deque[str] = deque(maxlen=64)

        def log(self, severity: Any, msg: str) -> None:
            """Called by TensorRT, possibly from its own threads."""
            if severity in kept:
                self.messages.append(msg)

        def tail(self) -> str:
            """The last messages, one a line."""
            return "\n       ".join(list(self.messages)[-QUOTED:]) or "TensorRT gave no reason"

    return Log()


def create_network(trt: Any, builder: Any, typed: bool) -> Any:
    """An empty network, strongly typed where ``typed``."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED" if typed else "EXPLICIT_BATCH", None)
    return builder.create_network(0 if flag is None else 1 << int(flag))


def parse(trt: Any, network: Any, onnx_bytes: bytes) -> None:
    """Fill ``network`` from a serialised ONNX model.

    Raises:
        TensorRTError: what the parser refuses, all of it: node, operator and the parser's own words.
    """
    logger = log(trt)
    parser = trt.OnnxParser(network, logger)
    if parser.parse(onnx_bytes):
        return
    rows = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        name = f" {error.node_name()!r} ({error.node_operator()})" if hasattr(error, "node_name") else ""
        rows.append(f"node {error.node()}{name}: {error.desc()}" if error.node() >= 0 else error.desc())
    raise TensorRTError(
        "TensorRT's parser refuses the model",
        where=f"{trt.__name__} {trt.__version__}",
        got="\n       ".join(rows) or logger.tail(),
        allowed="operators that this version has; Q/DQ in int8 with zero point 0",
        hint="edgeyolo lint MODEL --target tensorrt explains it",
    )


def configure(trt: Any, builder: Any, network: Any, options: BuildOptions) -> Any:
    """A builder configuration for ``options``, with DETAILED layer information in the engine.

    Raises:
        TensorRTError: an option that this TensorRT, this device or this network cannot follow.
    """
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if not is_typed(trt, options.dla):
        _set_types(trt, network, config, options)
    if options.dla is not None:
        _use_dla(trt, builder, config, options.dla)
    if options.targets:
        _set_targets(trt, config, options.targets)
    _set_batch(builder, network, config, options.batch)
    if options.timing_cache is not None and not is_rtx(trt):
        stored = options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""
        if not config.set_timing_cache(config.create_timing_cache(stored), False):  # measured on another device
            config.set_timing_cache(config.create_timing_cache(b""), False)
    return config


def _set_types(trt: Any, network: Any, config: Any, options: BuildOptions) -> None:
    """Types are permissions: 8-bit layers come from Q/DQ, FP16 is allowed for all others."""
    flags = {"int8": ("INT8", "FP16"), "fp16": ("FP16",), "fp32": ()}[options.precision]
    for flag in flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    if not flags or not options.float_layers:
        return
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.name in options.float_layers:
            layer.precision = trt.DataType.FLOAT
            for output in range(layer.num_outputs):
                if layer.get_output(output).dtype in (trt.DataType.FLOAT, trt.DataType.HALF):  # not indices
                    layer.set_output_type(output, trt.DataType.FLOAT)


def _use_dla(trt: Any, builder: Any, config: Any, core: int) -> None:
    if not 0 <= core < builder.num_DLA_cores:
        raise TensorRTError(
            "there is no such DLA core",
            got=core,
            allowed=f"0 to {builder.num_DLA_cores - 1}" if builder.num_DLA_cores else "none on this device",
            hint="leave DLA out: the GPU runs everything",
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _set_targets(trt: Any, config: Any, targets: Sequence[str]) -> None:
    known = [name for name in dir(getattr(trt, "ComputeCapability", None)) if name.startswith("SM")]
    unknown = [name for name in targets if name not in known]
    if unknown:
        raise TensorRTError(
            f"{trt.__name__} does not build for this GPU from here",
            got=", ".join(unknown),
            allowed=", ".join(known) or "the GPU that it runs on",
            hint="build on the device with its own TensorRT: build.sh in the bundle",
        )
    config.num_compute_capabilities = len(targets)
    for index, name in enumerate(targets):
        if not config.set_compute_capability(getattr(trt.ComputeCapability, name), index):
            raise TensorRTError("TensorRT-RTX refuses a target", got=name, allowed=", ".join(known))


def _set_batch(builder: Any, network: Any, config: Any, batch: tuple[int, int, int] | None) -> None:
    """An optimisation profile for every input whose first dimension is symbolic."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    shapes = {tensor.name: tuple(tensor.shape) for tensor in inputs}
    inner = {name: shape for name, shape in shapes.items() if -1 in shape[1:]}
    is_open = {name for name, shape in shapes.items() if shape[0] == -1}
    if inner or bool(is_open) != (batch is not None):
        raise TensorRTError(
            "the batch that was asked for does not fit the network",
            where=", ".join(f"{name} {shape}" for name, shape in shapes.items()),
            got="a fixed batch" if batch is None else f"batch {batch[0]} to {batch[2]}, best {batch[1]}",
            allowed="a range of batches exactly where the first dimension, and no other, is symbolic",
        )
    if batch is None:
        return
    profile = builder.create_optimization_profile()
    for name in is_open:
        profile.set_shape(name, *[(size, *shapes[name][1:]) for size in batch])
    config.add_optimization_profile(profile)


def build_engine(onnx_bytes: bytes, options: BuildOptions, trt: Any = None) -> bytes:
    """Build and serialise an engine; see ``is_typed`` for which of a bundle's models to give.

    Args:
        onnx_bytes: a serialised ONNX model with its weights inside.
        trt: a module from ``load``; None loads one.

    Raises:
        TensorRTError: no TensorRT, a model that it refuses, options it cannot follow, or a failed build.
    """
    trt = trt or load()
    logger = log(trt)
    logger.messages.clear()
    builder = trt.Builder(logger)
    network = create_network(trt, builder, is_typed(trt, options.dla))
    parse(trt, network, onnx_bytes)
    config = configure(trt, builder, network, options)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise TensorRTError(
            "TensorRT cannot build the engine",
            where=f"{trt.__name__} {trt.__version__}",
            got=logger.tail(),
            hint="the last message names the layer; less workspace or a smaller batch helps where memory ran out",
        )
    if options.timing_cache is not None and not is_rtx(trt):
        options.timing_cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def deserialise(trt: Any, plan: bytes, where: object, rebuild: str) -> tuple[Any, Any]:
    """Make an engine of the bytes of an engine file, which contains code for one GPU and one TensorRT.

    Returns the runtime, which must outlive the engine, and the engine.

    Raises:
        TensorRTError: it was built elsewhere or is damaged; ``rebuild`` is the next step to name.
    """
    logger = log(trt)
    logger.messages.clear()
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is not None:
        return runtime, engine
    said = " ".join(logger.messages).lower()
    if "version" in said and "driver version" not in said:
        what = "the engine was built by another version of TensorRT"
    elif "incompatible device" in said or "compute capability" in said:
        what = "the engine was built for another GPU"
    else:
        what = "TensorRT cannot read the engine"
    raise TensorRTError(
        what,
        where=where,
        got=logger.tail(),
        allowed=f"an engine built by {trt.__name__} {trt.__version__} on a GPU of this kind",
        hint=rebuild,
    )


def inspect(trt: Any, engine: Any) -> str:
    """The engine's layers as JSON text, in the detail that they were built with."""
    return str(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))


def tensors(trt: Any, engine: Any) -> list[Tensor]:
    """Inputs and outputs of an engine, in its order.

    Raises:
        TensorRTError: a type that numpy does not have.
    """
    found = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind = engine.get_tensor_dtype(name).name
        if kind not in _NUMPY:
            raise TensorRTError(
                "the engine has a tensor of a type that numpy lacks",
                where=name,
                got=kind,
                allowed=", ".join(_NUMPY),
                hint="keep inputs and outputs float32",
            )
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        found.append(Tensor(name, np.dtype(_NUMPY[kind]), tuple(engine.get_tensor_shape(name)), is_input))
    return found


def is_capturable(context: Any, stream: int) -> bool:
    """Whether a CUDA graph of ``context`` can be captured; only TensorRT-RTX says, elsewhere trying tells."""
    return bool(context.is_stream_capturable(stream)) if hasattr(context, "is_stream_capturable") else True


def output_allocator(
    trt: Any, reallocate: Callable[[str, int], int], notify: Callable[[str, tuple[int, ...]], None]
) -> Any:
    """An allocator for outputs whose size depends on the data.

    Args:
        trt: a module from ``load``.
        reallocate: name and bytes needed to the address of so much device memory, 0 where there is none.
        notify: told a name and the shape once it is known, before ``execute_async_v3`` returns.
    """

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        """Version 8 calls ``reallocate_output``, later ones the other: either must give memory at once."""

        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            return reallocate(tensor_name, size)

        def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            return reallocate(tensor_name, size)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            notify(tensor_name, tuple(shape))

    return Allocator()
