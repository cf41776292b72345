"""``verify --engine``, ``detect`` and ``eval`` on bundles for TensorRT; ONNX Runtime stands in for TensorRT."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from edgeyolo.targets.jetson import tensorrt_api
from fake_cuda import FakeCuda
from fake_tensorrt import make
from onnx import helper, numpy_helper
from tensorrt_bundles import (  # noqa: F401 - fixtures
    KINDS,
    bundle_fixture,
    damaged,
    good_fixture,
    no_rtx,
    source_fixture,
    symbolic_fixture,
    verdict,
    with_pictures,
)
from test_jetson_runner import modules
from tiny_models import SIZE, Tiny, refusal, succeed

from edgeyolo.bundle import MODEL
from edgeyolo.export.device_files import TYPED

# --- engines ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A TensorRT that executes with ONNX Runtime; at the end everything must be given back."""
    cuda = FakeCuda()
    found = make("10.3", cuda)
    modules(monkeypatch, cuda_bindings_runtime=cuda, tensorrt=found)
    yield found
    assert cuda.live == {}


def engine(trt: Any, bundle: Path, change: Callable[[Any], None] | None = None, batch: Any = None) -> Path:
    """An engine of the bundle's typed graph, perhaps changed before."""
    model = onnx.load(bundle / (TYPED if (bundle / TYPED).exists() else MODEL))
    if change is not None:
        change(model.graph)
    path = bundle / "engines/mine.engine"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(tensorrt_api.build_engine(model.SerializeToString(), tensorrt_api.BuildOptions(batch=batch), trt))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_engine(kind: str, good: dict[str, Path], tmp_path: Path, trt: Any) -> None:
    copy = Path(shutil.copytree(good[kind], tmp_path / "bundle"))
    path = engine(trt, copy, batch=(1, 3, 3) if kind == "dynamic" else None)
    checks = verdict(copy, "--engine", path)
    assert checks["engine mine.engine"][0] == "passed" and "2 picture(s)" in checks["engine mine.engine"][1]


def spoil_second_head(value: float) -> Callable[[Any], None]:
    def change(graph: Any) -> None:
        last = next(node for node in graph.node if node.name == "layers.16.conv")
        bias = next(t for t in graph.initializer if t.name == last.input[2])
        array = numpy_helper.to_array(bias).copy()
        array[0] += np.array(value, array.dtype)
        bias.CopyFrom(numpy_helper.from_array(array, bias.name))

    return change


@pytest.mark.parametrize("value", [3.0, np.inf, np.nan])
def test_a_wrong_engine(value: float, bundle: Path, trt: Any) -> None:
    """Of the second head: the first is right."""
    checks = verdict(bundle, "--engine", engine(trt, bundle, spoil_second_head(value)), code=1)
    status, detail = checks.pop("engine mine.engine")
    assert status == "failed" and "yolo_17" in detail
    assert {status for status, _ in checks.values()} == {"passed", "skipped"}


def without_second_head(graph: Any) -> None:
    del graph.output[1]


def smaller_head(graph: Any) -> None:
    """The second head keeps its name, but is half as wide and high."""
    cast = next(node for node in graph.node if "yolo_17" in node.output)
    cast.output[0] = "whole"
    graph.node.append(
        helper.make_node("MaxPool", ["whole"], ["yolo_17"], kernel_shape=[2, 2], strides=[2, 2], name="half")
    )
    graph.output[1].type.tensor_type.shape.dim[2].dim_value = graph.output[1].type.tensor_type.shape.dim[
        3
    ].dim_value = 8


def one_value_head(graph: Any) -> None:
    """The second head is a single value, which numpy would broadcast."""
    cast = next(node for node in graph.node if "yolo_17" in node.output)
    cast.output[0] = "whole"
    graph.node.append(helper.make_node("ReduceMax", ["whole"], ["yolo_17"], name="one"))
    for dim in graph.output[1].type.tensor_type.shape.dim:
        dim.dim_value = 1


@pytest.mark.parametrize("change", [without_second_head, smaller_head, one_value_head])
def test_an_engine_of_another_network(change: Callable[[Any], None], bundle: Path, trt: Any) -> None:
    assert "yolo_17" in damaged(bundle, "--engine", engine(trt, bundle, change))


def test_engines_that_cannot_be_used(bundle: Path, trt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no such engine" in damaged(bundle, "--engine", bundle / "engines/none.engine")
    path = engine(trt, bundle)
    plan = path.read_bytes()
    path.write_bytes(plan.replace(b"10.3.0", b"10.9.9", 1))
    assert "another version of TensorRT" in damaged(bundle, "--engine", path)
    path.write_bytes(plan)
    modules(monkeypatch)
    assert "TensorRT cannot be imported" in damaged(bundle, "--engine", path)


def marked(factor: float) -> Callable[[Any], None]:
    """A layer's values, times a factor, as an output more."""

    def change(graph: Any) -> None:
        for node in graph.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    names[index] = "inner" if name == "layers.6.act" else name
        graph.initializer.append(numpy_helper.from_array(np.float16(factor), "factor"))
        graph.node.append(helper.make_node("Mul", ["inner", "factor"], ["layers.6.act"], name="marked"))
        kind = onnx.TensorProto.FLOAT16
        graph.output.append(helper.make_tensor_value_info("layers.6.act", kind, [1, 6, SIZE // 4, SIZE // 4]))

    return change


def test_marked_layers_are_compared_too(bundle: Path, trt: Any) -> None:
    verdict(bundle, "--engine", engine(trt, bundle, marked(1)))
    status, detail = verdict(bundle, "--engine", engine(trt, bundle, marked(1.5)), code=1)["engine mine.engine"]
    assert status == "failed" and "layers.6.act" in detail


# --- detect and eval --------------------------------------------------------------------------------------------------


def detections(*arguments: object) -> list[Any]:
    found = json.loads(succeed("detect", *arguments, "--json").stdout)
    boxes: list[Any] = [picture["detections"] for picture in found["pictures"]]
    return boxes


def test_detect_and_eval_take_the_bundle(good: dict[str, Path], source: Path, tiny: Tiny, tmp_path: Path) -> None:
    found = detections(good["int8"], tiny.pictures)
    assert sum(map(len, found)) > 10 and found == detections(good["int8"], tiny.pictures, "--runner", "ort")
    assert detections(good["decode"], tiny.pictures) and detections(good["dynamic"], tiny.pictures)
    float_boxes = detections(source, tiny.pictures)
    assert [len(boxes) for boxes in detections(good["fp32"], tiny.pictures)] == [len(boxes) for boxes in float_boxes]
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    shutil.copy(tiny.pictures / "picture-0.jpg", tmp_path / "images/0.jpg")
    (tmp_path / "labels/0.txt").write_text("0 .5 .5 .5 .5\n", "utf-8")
    scores = json.loads(succeed("eval", good["int8"], "--data", tmp_path, "--names", tiny.names, "--json").stdout)
    assert scores


def test_runners_that_do_not_fit(good: dict[str, Path], good_bundle: Path, tiny: Tiny) -> None:
    for runner in ("integer", "engine"):
        message = refusal("detect", good["int8"], tiny.pictures, "--runner", runner)
        assert runner in message and "auto, ort, tensorrt" in message
    assert "no engine was built" in refusal("detect", good["int8"], tiny.pictures, "--runner", "tensorrt")
    assert "tensorrt" in refusal("detect", good_bundle, tiny.pictures, "--runner", "tensorrt")


@pytest.mark.parametrize("kind", ["int8", "decode"])
def test_detect_with_an_engine(kind: str, good: dict[str, Path], tiny: Tiny, tmp_path: Path, trt: Any) -> None:
    copy = Path(shutil.copytree(good[kind], tmp_path / "bundle"))
    path = engine(trt, copy)
    with_engine = detections(copy, tiny.pictures, "--runner", "tensorrt")
    assert abs(sum(map(len, with_engine)) - sum(map(len, detections(copy, tiny.pictures)))) < 5
    shutil.copy(path, copy / "engines/other.engine")
    assert "several engines" in refusal("detect", copy, tiny.pictures, "--runner", "tensorrt")
    trt._cuda.live.clear()  # a runner holds its engine until the process ends
