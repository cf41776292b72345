"""Backends of the benchmark: each computes the model it is given, with the threads it is given, or says why not."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fake_cuda import FakeCuda
from fake_tensorrt import make
from onnx import TensorProto, helper
from test_jetson_runner import modules
from tiny_models import SIZE, Tiny, succeed

from edgeyolo.bench.backends import KINDS, engine, open_backend
from edgeyolo.bundle import MODEL, PROGRAM, Bundle
from edgeyolo.detector import METADATA_KEY, Detector, Head, Preprocess
from edgeyolo.errors import EdgeYoloError, InputError
from edgeyolo.runners.integer import BundleRunner
from edgeyolo.runners.onnx import OnnxRunner

FLOAT = 1e-5
"""Of the largest value: float32 sums in another order. bfloat16 or float16 somewhere would be a hundred times that."""

EIGHT_BITS = 0.25
"""Of the largest value. ONNX Runtime's fused kernels saturate in 16 bits on some CPUs, TensorRT's stand-in fuses as
well; so this only says that it is that model."""

ONNX_BACKENDS = ("ort", "openvino", "opencv", "ncnn")


@pytest.fixture(autouse=True)
def threads_stay(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Some libraries have one number of threads for the whole process."""
    import torch

    before = torch.get_num_threads()
    cv2 = importlib.import_module("cv2") if importlib.util.find_spec("cv2") else None
    others = cv2.getNumThreads() if cv2 else 0
    yield
    torch.set_num_threads(before)
    if cv2:
        cv2.setNumThreads(others)


@pytest.fixture(scope="module")
def source(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a float ONNX file."""
    path = tmp_path_factory.mktemp("float") / "tiny.onnx"
    succeed("export", *tiny.model(), "--target", "onnx", "-o", path)
    return path


@pytest.fixture
def for_tensorrt(good_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that says that it is for TensorRT."""
    bundle = shutil.copytree(good_bundle, tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "target": "tensorrt"}), "utf-8")
    return bundle


def installed(name: str) -> Any:
    """The backend, or a skip."""
    missing = [n for n in KINDS[name].needs if not any(importlib.util.find_spec(p) for p in n.split("|"))]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed ({KINDS[name].install})")
    return open_backend(name)


def pixels(seed: int = 3) -> np.ndarray:
    """A random picture for the tiny model, with its channels last in memory."""
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8).transpose(2, 0, 1)


def execute(runner: Any, picture: np.ndarray) -> list[np.ndarray]:
    runner.set_inputs(picture)
    runner.infer()
    return runner.outputs()


def check(runner: Any, reference: Any, tolerance: float) -> None:
    """Both give the same for two pictures, in turns."""
    for seed in (1, 2, 1):
        got, wanted = execute(runner, pixels(seed)), execute(reference, pixels(seed))
        assert [head.shape for head in got] == [head.shape for head in wanted]
        for head, other in zip(got, wanted, strict=True):
            assert head.dtype == np.float32
            np.testing.assert_allclose(head, other, rtol=0, atol=tolerance * np.abs(other).max())
    assert runner.detector is not None and runner.version()


def oracle(path: Path) -> OnnxRunner:
    runner = OnnxRunner(optimise=False)
    runner.load(path)
    return runner


@pytest.mark.parametrize("name", ONNX_BACKENDS)
def test_a_float_onnx_file_gives_onnx_runtimes_values(name: str, source: Path) -> None:
    backend = installed(name)
    backend.load(source, 1, None)
    check(backend, oracle(source), FLOAT)


@pytest.mark.parametrize("name", ONNX_BACKENDS)
def test_outputs_come_in_the_detectors_order(name: str, source: Path, tmp_path: Path) -> None:
    model = onnx.load(source)
    model.graph.output.extend([model.graph.output.pop(), model.graph.output.pop()])
    assert [o.name for o in model.graph.output] != [h.output for h in oracle(source).detector.heads]
    onnx.save(model, tmp_path / "turned.onnx")
    backend = installed(name)
    backend.load(tmp_path / "turned.onnx", 1, None)
    check(backend, oracle(source), FLOAT)


@pytest.mark.parametrize("name", ONNX_BACKENDS)
@pytest.mark.parametrize("option", ["--dynamic-batch", "--decode"])
def test_other_forms_of_onnx_files(name: str, option: str, tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    succeed("export", *tiny.model(), "--target", "onnx", option, "-o", path)
    backend = installed(name)
    backend.load(path, 1, None)
    check(backend, oracle(path), FLOAT)


@pytest.mark.parametrize("target", ["fpga", "tensorrt"])
def test_ort_executes_a_bundles_onnx_file(target: str, good_bundle: Path, for_tensorrt: Path) -> None:
    bundle = good_bundle if target == "fpga" else for_tensorrt
    backend = open_backend("ort")
    backend.load(bundle, 1, None)
    check(backend, oracle(bundle / MODEL), EIGHT_BITS)


def test_openvino_executes_a_bundle(good_bundle: Path) -> None:
    """Correlation only: its 8-bit rewrites give one head of this graph exactly, the other a tenth off (RMS)."""
    backend = installed("openvino")
    backend.load(good_bundle, 1, None)
    for head, other in zip(execute(backend, pixels()), execute(oracle(good_bundle / MODEL), pixels()), strict=True):
        assert head.shape == other.shape and np.corrcoef(head.ravel(), other.ravel())[0, 1] > 0.8


def test_the_engine_gives_exactly_the_programs_integers(good_bundle: Path) -> None:
    backend = open_backend("engine")
    backend.load(good_bundle, 1, None)
    check(backend, BundleRunner(Bundle.open(good_bundle)), 0)
    assert "-O3" in backend.version()
    backend._raw = False  # as for a model whose input codes are not the pixels
    check(backend, BundleRunner(Bundle.open(good_bundle)), 0)
    with pytest.raises(InputError, match="an input for every run"):
        backend.infer()


def test_the_engines_structures_are_those_of_its_header(tmp_path: Path) -> None:
    lines = []
    for name, structure in (("ey_model", engine.Model), ("ey_tensor", engine.Tensor)):
        lines += [f"offsetof({name}, {field[0]})" for field in structure._fields_] + [f"sizeof({name})"]
    prints = "\n".join(f'printf("%d\\n", (int){line});' for line in lines)
    (tmp_path / "layout.c").write_text(f'#include "engine.h"\n#include <stdio.h>\nint main(void) {{ {prints} }}\n')
    folder = Path(__file__).resolve().parents[1] / "targets/engine"
    subprocess.run(["cc", f"-I{folder}", "-o", tmp_path / "layout", tmp_path / "layout.c"], check=True)
    done = subprocess.run([tmp_path / "layout"], capture_output=True, text=True, check=True)
    ours = []
    for structure in (engine.Model, engine.Tensor):
        ours += [getattr(structure, field[0]).offset for field in structure._fields_]
        ours.append(engine.ctypes.sizeof(structure))
    assert list(map(int, done.stdout.split())) == ours


def test_torch_gives_the_exported_models_values(tiny: Tiny, source: Path) -> None:
    backend = open_backend("torch")
    backend.load(tiny.cfg, 1, tiny.weights)
    check(backend, oracle(source), FLOAT)


SMALL = """[net]
width=32
height=32
channels=3
[convolutional]
filters=6
size=1
stride=1
activation=linear
[yolo]
mask=0
anchors=6,9
classes=1
num=1
"""


def test_torch_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single layer: compiling the tiny model takes a minute."""
    import torch

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    cfg, weights = tmp_path / "small.cfg", tmp_path / "small.weights"
    cfg.write_text(SMALL, "utf-8")
    values = np.random.default_rng(0).normal(size=6 + 18).astype("<f4")
    weights.write_bytes(np.array([0, 2, 5, 0, 0], "<i4").tobytes() + values.tobytes())
    from torch._inductor import config, cpu_vec_isa

    # Trying out which vector instructions the compiler has takes longer than everything else.
    monkeypatch.setattr(cpu_vec_isa, "valid_vec_isa_list", list)
    with config.patch({"cpp.cxx": (None, "no-such-compiler")}), pytest.raises(InputError, match=r"install g\+\+"):
        open_backend("torch-compile").load(cfg, 1, weights)
    torch.compiler.reset()
    backend, eager = open_backend("torch-compile"), open_backend("torch")
    with config.patch({"cpp_cache_precompile_headers": False}):  # which takes longer than this model
        backend.load(cfg, 1, weights)
    eager.load(cfg, 1, weights)
    picture = pixels()[:, :32, :32]
    np.testing.assert_allclose(execute(backend, picture)[0], execute(eager, picture)[0], rtol=0, atol=FLOAT * 10)
    assert backend._module._compiled_call_impl is not None


def test_tensorrt_executes_the_bundles_engine(for_tensorrt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeyolo.targets.jetson import tensorrt_api

    cuda = FakeCuda()
    trt = make("10.3", cuda)
    modules(monkeypatch, cuda_bindings_runtime=cuda, tensorrt=trt)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "tensorrt" or None)
    backend = open_backend("tensorrt")
    with pytest.raises(InputError, match="no engine was built in this bundle"):
        backend.load(for_tensorrt, 1, None)
    (for_tensorrt / "engines").mkdir()
    plan = tensorrt_api.build_engine((for_tensorrt / MODEL).read_bytes(), tensorrt_api.BuildOptions(), trt)
    (for_tensorrt / "engines/mine.engine").write_bytes(plan)
    backend.load(for_tensorrt, 1, None)
    check(backend, oracle(for_tensorrt / MODEL), EIGHT_BITS)
    assert backend.version().startswith("tensorrt 10.3")


# --- threads ----------------------------------------------------------------------------------------------------------


def _ort_threads(backend: Any) -> int:
    options = backend._session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    return options.intra_op_num_threads


THREADS = {
    "ort": _ort_threads,
    "openvino": lambda backend: backend._compiled.get_property("INFERENCE_NUM_THREADS"),
    "opencv": lambda backend: backend._cv2.getNumThreads(),
    "ncnn": lambda backend: backend._net.opt.num_threads,
    "torch": lambda backend: sys.modules["torch"].get_num_threads(),
}


@pytest.mark.parametrize("name", THREADS)
def test_threads_are_those_that_were_asked_for(name: str, tiny: Tiny, source: Path) -> None:
    for count in (1, 2):
        backend = installed(name)
        backend.load(tiny.cfg if name == "torch" else source, count, tiny.weights)
        assert THREADS[name](backend) == count


def test_one_thread_means_one(good_bundle: Path, for_tensorrt: Path) -> None:
    assert "backend engine has one thread" in refusal(open_backend("engine"), good_bundle, threads=2)
    from edgeyolo.bench.backends import tensorrt

    assert "backend tensorrt has one thread" in refusal(tensorrt.Backend(), for_tensorrt, threads=2)


# --- refusals ---------------------------------------------------------------------------------------------------------


def refusal(backend: Any, path: Path, threads: int = 1) -> str:
    """What it says when it is to load ``path``."""
    with pytest.raises(EdgeYoloError) as caught:
        backend.load(path, threads, None)
    return str(caught.value)


@pytest.mark.parametrize("name", KINDS)
def test_files_of_another_kind(name: str, tiny: Tiny, source: Path, good_bundle: Path, for_tensorrt: Path) -> None:
    takes = {"engine": [good_bundle], "tensorrt": [for_tensorrt], "litert": [], "torch": [tiny.cfg]}
    takes |= {"torch-compile": [tiny.cfg], "ncnn": [source], "opencv": [source]}
    files = {tiny.cfg: ".cfg", source: ".onnx", good_bundle: "a ", for_tensorrt: "a ", tiny.weights: ".weights"}
    backend = installed(name)
    for path, got in files.items():
        if path in takes.get(name, [source, good_bundle, for_tensorrt]):
            continue
        said = refusal(backend, path)
        assert f"backend {name} does not execute this kind of model" in said
        assert str(path) in said and f"got: {got}" in said and KINDS[name].takes in said
    assert str(source.parent / "missing") in refusal(backend, source.parent / "missing")


def test_a_cfg_without_weights(tiny: Tiny) -> None:
    assert "--weights" in refusal(open_backend("torch"), tiny.cfg)


@pytest.mark.parametrize("name", ONNX_BACKENDS)
def test_onnx_files_that_cannot_be_executed(name: str, source: Path, tmp_path: Path) -> None:
    backend, path = installed(name), tmp_path / "bad.onnx"
    path.write_bytes(b"\x08\x08garbage")
    assert str(path) in refusal(backend, path)
    path.write_bytes(source.read_bytes()[:-1000])
    assert str(path) in refusal(backend, path)

    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 3, 4, 6)) for n in ("x", "head")]
    graph = helper.make_graph(
        [helper.make_node("Frobnicate", ["x"], ["head"], domain="own")], "g", value[:1], value[1:]
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.save(model, path)
    if name != "ort":  # which refuses the operator first
        assert "no edgeyolo.detector metadata" in refusal(backend, path)
    facts = Detector("onnx", Preprocess(width=6, height=4), (Head("head", "raw"),))
    helper.set_model_props(model, {METADATA_KEY: facts.to_json()})
    onnx.save(model, path)
    assert "Frobnicate" in refusal(backend, path)


def test_ort_wants_metadata(tmp_path: Path) -> None:
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 3, 4, 6)) for n in ("x", "head")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["head"])], "g", value[:1], value[1:])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    assert "no edgeyolo.detector metadata" in refusal(open_backend("ort"), path)


def test_ncnn_says_that_it_has_no_quantise_operators(good_bundle: Path) -> None:
    said = refusal(installed("ncnn"), good_bundle / MODEL)
    assert "DequantizeLinear" in said and "QuantizeLinear" in said


def test_a_damaged_program(good_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(good_bundle, tmp_path / "bundle")
    (bundle / PROGRAM).write_bytes(b"EY" + (bundle / PROGRAM).read_bytes()[2:-4])
    assert "the bundle is damaged" in refusal(open_backend("engine"), bundle)


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.needs])
def test_a_missing_package_is_named_with_its_install_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(InputError) as caught:
        open_backend(name)
    said = str(caught.value)
    assert f"backend {name} is not installed" in said and KINDS[name].install in said
    assert all(package.replace("|", " or ") in said for package in KINDS[name].needs)


def test_an_unknown_backend() -> None:
    with pytest.raises(InputError, match="unknown backend"):
        open_backend("mnn")


def test_openvino_does_not_call_home() -> None:
    installed("openvino")
    assert sys.modules["openvino_telemetry"] is None
