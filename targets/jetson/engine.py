"""A TensorRT engine behind four methods: load, set inputs, infer, outputs. numpy, TensorRT and cuda-python only."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from targets.jetson import cuda_device as device
    from targets.jetson import tensorrt_api as api

    Floats = npt.NDArray[np.float32]
else:  # in a bundle the modules lie beside this file, elsewhere in the same package
    _HERE = __package__ + "." if __package__ else ""
    api = importlib.import_module(_HERE + "tensorrt_api")
    device = importlib.import_module(_HERE + "cuda_device")


class Plan:
    """What belongs to one input shape: a context of its own (a captured graph needs that), all shapes, the graph.

    ``open`` names the outputs whose size depends on the data.
    """

    def __init__(self, context: Any, shapes: dict[str, tuple[int, ...]]) -> None:
        self.context, self.shapes = context, shapes
        self.open = [name for name, shape in shapes.items() if -1 in shape]
        self.graph: Any = None
        self.refused: str | None = None

    def size(self, tensor: api.Tensor) -> int:
        """Bytes of a tensor whose shape is known."""
        return device.count(self.shapes[tensor.name]) * int(tensor.dtype.itemsize)


class Engine:
    """A deserialised engine with one input (N, C, H, W): load, set inputs, infer, outputs; a context manager.

    Args:
        cuda_graph: capture a CUDA graph per input shape and launch that. May be changed between calls.

    Attributes:
        names: outputs in the engine's order; ``dtypes`` what the engine keeps them in.
        smallest, largest: input shapes that it takes.
        precision: ``int8``, ``fp16`` or ``fp32`` as written beside the engine; empty where nothing is.
        graph_reason: why the last ``infer`` did not launch a graph; None where it did.
    """

    def __init__(self, cuda_graph: bool = True) -> None:
        self.cuda_graph = cuda_graph
        self.names: list[str] = []
        self.graph_reason: str | None = None
        self.gpu = self.precision = ""
        self.trt: Any = None
        self._cuda: Any = None
        self._forget()

    def _forget(self) -> None:
        self._runtime: Any = None
        self._engine: Any = None
        self._allocator: Any = None
        self._stream: Any = None
        self._plan: Plan | None = None
        self._plans: dict[tuple[int, ...], Plan] = {}
        self._buffers: dict[str, device.Buffer] = {}
        self._known: dict[str, tuple[int, ...]] = {}
        self._allocation_error: str | None = None
        self._ran = False

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    def load(self, path: Path) -> None:
        """Deserialise the engine file ``path``, after its ``.json`` (where there is one) agreed with this device.

        Raises:
            TensorRTError: no such file, no TensorRT or CUDA, an engine of another model, GPU or TensorRT.
        """
        self.close()
        try:
            self._load(Path(path))
        except BaseException:
            self.close()
            raise

    def _load(self, path: Path) -> None:
        if not path.is_file():
            raise api.TensorRTError(
                "no such engine", where=path, allowed="a file that build.sh made", hint=device.rebuild(path)
            )
        sidecar = device.read_sidecar(path)
        self.trt = api.load(api.TENSORRT + api.RTX if not sidecar else api.RTX if sidecar["rtx"] else api.TENSORRT)
        self._cuda = device.Cuda()
        self.gpu, capability = self._cuda.gpu()
        self.precision = str(sidecar["precision"]) if sidecar else ""
        if sidecar:
            device.check_sidecar(path, sidecar, self.trt, self.gpu, capability)
        self._stream = self._cuda("cudaStreamCreateWithFlags", 1)  # cudaStreamNonBlocking
        self._runtime, self._engine = api.deserialise(self.trt, path.read_bytes(), path, device.rebuild(path))
        self._tensors = api.tensors(self.trt, self._engine)
        inputs = [tensor for tensor in self._tensors if tensor.is_input]
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            raise api.TensorRTError(
                "the engine's inputs are not one batch of pictures",
                where=path,
                got=", ".join(f"{t.name} {t.shape}" for t in inputs),
                allowed="one (N, C, H, W)",
            )
        self._input, self._outputs = inputs[0], [tensor for tensor in self._tensors if not tensor.is_input]
        self.names = [tensor.name for tensor in self._outputs]
        self.dtypes = [tensor.dtype for tensor in self._outputs]
        self.smallest = self.largest = self._input.shape
        if -1 in self._input.shape:
            ends = self._engine.get_tensor_profile_shape(self._input.name, 0)
            self.smallest, self.largest = tuple(ends[0]), tuple(ends[2])
        self._buffers = {tensor.name: device.Buffer(self._cuda) for tensor in self._tensors}
        self._allocator = api.output_allocator(self.trt, self._reallocate, self._known.__setitem__)

    def set_inputs(self, array: Floats) -> None:
        """Copy (N, C, H, W) float32 to the device.

        Raises:
            TensorRTError: nothing is loaded, or the engine does not take this shape or type.
        """
        if self._engine is None:
            raise api.TensorRTError("no engine is loaded", hint="call load first")
        shape = array.shape
        fits = len(shape) == 4 and all(lo <= n <= hi for lo, n, hi in zip(self.smallest, shape, self.largest))  # noqa: B905
        if not fits or array.dtype != np.float32:
            raise api.TensorRTError(
                "the engine does not take these pictures",
                got=f"{array.dtype} {shape}",
                allowed=f"float32 {self.smallest} to {self.largest}",
                hint="split the batch, or rebuild for it",
            )
        if shape not in self._plans:
            self._plans[shape] = self._prepare(shape)
        self._plan, self._ran = self._plans[shape], False
        buffer = self._buffers[self._input.name]
        view = buffer.view(self._input.dtype, shape)
        np.copyto(view, array, casting="unsafe")
        kind = self._cuda.api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._cuda("cudaMemcpyAsync", buffer.device, buffer.host, view.nbytes, kind, self._stream)

    def _prepare(self, shape: tuple[int, ...]) -> Plan:
        """A context for ``shape`` with memory behind every tensor; older plans go where their memory moved."""
        context = self._engine.create_execution_context()
        if context is None or not context.set_input_shape(self._input.name, shape):
            raise api.TensorRTError(
                "TensorRT cannot prepare this batch",
                where=self._input.name,
                got=f"{shape}: {api.log(self.trt).tail()}",
                hint="a smaller batch needs less memory",
            )
        plan = Plan(context, {t.name: tuple(context.get_tensor_shape(t.name)) for t in self._tensors})
        sizes = {t.name: plan.size(t) for t in self._tensors if t.name not in plan.open}
        if not all(self._buffers[name].holds(size) for name, size in sizes.items()):
            self._cuda("cudaStreamSynchronize", self._stream)
            self._drop_plans()  # their contexts and graphs have the old addresses
            for name, size in sizes.items():
                self._buffers[name].grow_host(size)
                self._buffers[name].grow_device(size)
        for name in plan.shapes:
            if name in plan.open:
                context.set_output_allocator(name, self._allocator)
            else:
                context.set_tensor_address(name, self._buffers[name].device)
        return plan

    def _reallocate(self, name: str, size: int) -> int:
        """Called by TensorRT in the middle of a run; an exception would be lost there."""
        try:
            self._buffers[name].grow_device(size)
        except api.TensorRTError as error:
            self._allocation_error = str(error)
            return 0
        return self._buffers[name].device

    def infer(self) -> None:
        """Execute once and wait for the end.

        Raises:
            TensorRTError: no inputs were set, or TensorRT or CUDA failed.
        """
        if self._plan is None:
            raise api.TensorRTError("there are no inputs", hint="call set_inputs first")
        plan = self._plan
        if self.cuda_graph and plan.graph is None and plan.refused is None:
            plan.refused = self._capture(plan)
        self.graph_reason = plan.refused if self.cuda_graph else "switched off"
        if self.graph_reason is None:
            self._cuda("cudaGraphLaunch", plan.graph, self._stream)
        else:
            self._enqueue(plan)
        self._cuda("cudaStreamSynchronize", self._stream)
        self._ran = True

    def _enqueue(self, plan: Plan) -> None:
        if not plan.context.execute_async_v3(int(self._stream)):
            raise api.TensorRTError(
                "TensorRT cannot execute the engine",
                where=self.gpu,
                got=self._allocation_error or api.log(self.trt).tail(),
            )

    def _capture(self, plan: Plan) -> str | None:
        """Capture ``plan.graph``; the reason where that is not possible."""
        if plan.open:
            return f"the size of {', '.join(plan.open)} depends on the data"
        self._enqueue(plan)  # TensorRT finishes its preparations in a context's first run
        self._cuda("cudaStreamSynchronize", self._stream)
        if not api.is_capturable(plan.context, int(self._stream)):
            return "TensorRT cannot capture this engine"
        graph = None
        try:
            mode = self._cuda.api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            self._cuda("cudaStreamBeginCapture", self._stream, mode)
            captured = plan.context.execute_async_v3(int(self._stream))
            graph = self._cuda("cudaStreamEndCapture", self._stream)
            if not captured:
                return f"TensorRT failed in the capture: {api.log(self.trt).tail()}"
            plan.graph = self._cuda("cudaGraphInstantiateWithFlags", graph, 0)
        except api.TensorRTError as error:
            self._cuda.api.cudaGetLastError()  # or the next call reports it again
            return f"{error.where}: {error.got}"
        finally:
            if graph is not None:
                self._cuda("cudaGraphDestroy", graph)
        return None

    def outputs(self) -> list[Floats]:
        """What the last ``infer`` computed: float32 copies, in the order of ``names``.

        Raises:
            TensorRTError: nothing was executed since the inputs were set.
        """
        if self._plan is None or not self._ran:
            raise api.TensorRTError("there are no outputs", hint="call infer after set_inputs")
        kind = self._cuda.api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        views = []
        for tensor in self._outputs:
            buffer, is_open = self._buffers[tensor.name], tensor.name in self._plan.open
            shape = self._known[tensor.name] if is_open else self._plan.shapes[tensor.name]
            size = device.count(shape) * tensor.dtype.itemsize
            buffer.grow_host(size)
            if size:
                self._cuda("cudaMemcpyAsync", buffer.host, buffer.device, size, kind, self._stream)
            views.append(buffer.view(tensor.dtype, shape))
        self._cuda("cudaStreamSynchronize", self._stream)
        return [np.array(view, np.float32) for view in views]

    def inspect(self) -> str:
        """The layers as JSON text."""
        return api.inspect(self.trt, self._engine)

    def _drop_plans(self) -> None:
        self._plan = None
        while self._plans:
            plan = self._plans.popitem()[1]
            if plan.graph is not None:
                self._cuda("cudaGraphExecDestroy", plan.graph)

    def close(self) -> None:
        """Free everything; harmless when repeated."""
        self._drop_plans()
        self._engine = self._runtime = self._allocator = None
        for buffer in self._buffers.values():
            buffer.free()
        if self._stream is not None:
            self._cuda("cudaStreamDestroy", self._stream)
        self._forget()
