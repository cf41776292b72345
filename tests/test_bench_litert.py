"""The LiteRT backend of the benchmark, on models of one addition that are written here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_bench_backends import execute, installed, pixels, refusal

from edgeyolo.detector import METADATA_KEY, Detector, Head, Preprocess

FACTS = Detector("onnx", Preprocess(width=6, height=4, scale=0.5), (Head("head", "raw"),))


def tflite(path: Path, shape: tuple[int, ...], kind: str = "FLOAT32", text: str | None = FACTS.to_json()) -> Path:
    """Write a model that adds its input to itself."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    def make(cls: Any, **values: Any) -> Any:
        made = cls()
        for key, value in values.items():
            setattr(made, key, value)
        return made

    tensors = [make(schema.TensorT, shape=list(shape), type=getattr(schema.TensorType, kind), name=n) for n in "xy"]
    options = make(schema.OperatorT, opcodeIndex=0, inputs=[0, 0], outputs=[1])
    options.builtinOptionsType, options.builtinOptions = schema.BuiltinOptions.AddOptions, schema.AddOptionsT()
    graph = make(schema.SubGraphT, tensors=tensors, inputs=[0], outputs=[1], operators=[options])
    buffers, metadata = [schema.BufferT()], []
    if text is not None:
        buffers.append(make(schema.BufferT, data=list(text.encode())))
        metadata.append(make(schema.MetadataT, name=METADATA_KEY, buffer=1))
    code = make(schema.OperatorCodeT, builtinCode=schema.BuiltinOperator.ADD, version=1)
    model = make(schema.ModelT, version=3, operatorCodes=[code], subgraphs=[graph], buffers=buffers, metadata=metadata)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


@pytest.mark.parametrize("shape", [(1, 4, 6, 3), (1, 3, 4, 6)])
def test_litert_reads_both_layouts(shape: tuple[int, ...], tmp_path: Path) -> None:
    backend = installed("litert")
    backend.load(tflite(tmp_path / "m.tflite", shape), 1, None)
    picture = pixels()[:, :4, :6]
    (head,) = execute(backend, picture)
    assert head.dtype == np.float32
    np.testing.assert_array_equal(head, picture)  # twice half of it
    assert backend.detector == FACTS and backend.version()


def test_litert_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    backend, path = installed("litert"), tmp_path / "m.tflite"
    shape = (1, 4, 6, 3)
    for change, words in (
        ({"text": None}, "no edgeyolo.detector metadata"),
        ({"text": "{}"}, "the detector metadata cannot be used"),
        ({"kind": "INT32"}, "not float32: x: int32, y: int32"),
        ({"shape": (1, 4, 5, 3)}, "(1, 4, 5, 3) instead of"),
    ):
        said = refusal(backend, tflite(path, **{"shape": shape, **change}))
        assert words in said, said
    path.write_bytes(tflite(path, shape).read_bytes()[:200])
    assert "LiteRT cannot execute the model" in refusal(backend, path)
    path.write_bytes(b"not a model")
    assert "no TFL3 file" in refusal(backend, path)
