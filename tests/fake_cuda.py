"""The functions of cuda-python's runtime that the runner calls, without a GPU.

Work on a stream is only done at the next synchronisation, device memory is apart from host memory, and every handle is
counted, so that a forgotten wait, copy or free shows.
"""

from __future__ import annotations

import ctypes
import types

GPU = "Test GPU 87"


class FakeCuda(types.ModuleType):
    """The functions of cuda-python's runtime that the runner calls; ``live`` are the handles not given back."""

    cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice="to device", cudaMemcpyDeviceToHost="to host")
    cudaStreamCaptureMode = types.SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread")

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.live, self.calls, self.memory = {}, [], {}
        self.queue, self.captured = [], None
        self.limit, self.break_capture, self._next = 1 << 40, False, 0x1000

    def _new(self, kind, value=None):
        self._next += 0x1000
        self.live[self._next] = (kind, value)
        return self._next

    def _drop(self, handle, kind):
        assert self.live.pop(int(handle))[0] == kind
        return (0,)

    def cudaGetErrorString(self, error):
        return 0, {2: b"out of memory", 901: b"capture invalidated"}[error]

    def cudaGetLastError(self):
        self.calls.append("cudaGetLastError")
        return (0,)

    def cudaGetDeviceProperties(self, index):
        assert index == 0
        return 0, types.SimpleNamespace(name=GPU.encode(), major=8, minor=7)

    def _allocate(self, kind, size):
        assert size > 0
        if size > self.limit:
            return 2, None
        memory = (ctypes.c_uint8 * size)()
        address = ctypes.addressof(memory)
        self.live[address] = (kind, None)
        self.memory[address] = memory
        self.calls.append(kind)
        return 0, address

    def cudaMalloc(self, size):
        return self._allocate("device", size)

    def cudaHostAlloc(self, size, flags):
        assert flags == 0
        return self._allocate("host", size)

    def cudaFree(self, address):
        del self.memory[address]
        return self._drop(address, "device")

    def cudaFreeHost(self, address):
        del self.memory[address]
        return self._drop(address, "host")

    def cudaStreamCreateWithFlags(self, flags):
        return 0, self._new("stream")

    def cudaStreamDestroy(self, stream):
        return self._drop(stream, "stream")

    def flush(self):
        while self.queue:
            self.queue.pop(0)()

    def cudaStreamSynchronize(self, stream):
        assert self.captured is None and self.live[stream][0] == "stream"
        self.flush()
        return (0,)

    def bytes_at(self, address, kind):
        """The whole memory at an address that is allocated now; another one is a bug in the caller."""
        assert self.live.get(address, ("nothing",))[0] == kind, f"no {kind} memory at {address}"
        return memoryview(self.memory[address]).cast("B")

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        kinds = ("device", "host") if kind == "to device" else ("host", "device")

        def copy():
            self.bytes_at(target, kinds[0])[:size] = self.bytes_at(source, kinds[1])[:size]

        self.queue.append(copy)
        return (0,)

    def cudaStreamBeginCapture(self, stream, mode):
        self.flush()
        self.captured = []
        return (0,)

    def cudaStreamEndCapture(self, stream):
        work, self.captured = self.captured, None
        return (901, None) if self.break_capture else (0, self._new("graph", work))

    def cudaGraphInstantiateWithFlags(self, graph, flags):
        self.calls.append("instantiate")
        return 0, self._new("graph exec", self.live[graph][1])

    def cudaGraphDestroy(self, graph):
        return self._drop(graph, "graph")

    def cudaGraphExecDestroy(self, graph):
        return self._drop(graph, "graph exec")

    def cudaGraphLaunch(self, graph, stream):
        self.calls.append("launch")
        self.queue.extend(self.live[graph][1])
        return (0,)
