"""The engine runner on a fake TensorRT and a fake CUDA (see ``fake_tensorrt.py``): every version's surface, no GPU."""

from __future__ import annotations

import hashlib
import json
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from edgeyolo.targets.jetson import runner
from edgeyolo.targets.jetson import tensorrt_api as api
from fake_cuda import GPU, FakeCuda
from fake_tensorrt import API, make
from onnx import TensorProto, helper, numpy_helper

TRT_MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
CUDA_MODULES = ("cuda.bindings.runtime", "cuda.cudart")
FLAVOURS = sorted(API)
RANGE = (1, 2, 8)
KINDS = ("FLOAT", "FLOAT16", "INT32", "INT64", "INT8", "BOOL")


def _model(nodes, outputs, constants, batch):
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, 8, 8])
    graph = helper.make_graph(nodes, "g", [images], outputs,
                              [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()])  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def conv_model(batch=1, kinds=("FLOAT", "FLOAT")):
    """A convolution, and an output behind it for each kind."""
    weights = np.random.default_rng(1).normal(size=(4, 3, 3, 3)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["images", "w"], ["y"], pads=[1] * 4, name="conv")]
    outputs = []
    for k, kind in enumerate(kinds):
        nodes.append(helper.make_node("MaxPool", ["y"], [f"pool{k}"], kernel_shape=[k + 1] * 2, name=f"pool{k}"))
        nodes.append(helper.make_node("Cast", [f"pool{k}"], [f"out{k}"], to=getattr(TensorProto, kind), name=f"c{k}"))
        outputs.append(helper.make_tensor_value_info(f"out{k}", getattr(TensorProto, kind), [batch, 4, 8 - k, 8 - k]))
    return _model(nodes, outputs, {"w": weights}, batch)


def nms_model():
    """Suppression of 64 boxes of three classes whose scores are the pixels: ``selected`` depends on the data."""
    corners = np.arange(64, dtype=np.float32).reshape(1, 64, 1) * 2
    constants = {"boxes": np.concatenate([corners, corners, corners + 1, corners + 1], 2),
                 "shape": np.array([1, 3, 64]), "most": np.array([100]), "iou": np.float32([0.5]),
                 "conf": np.float32([0.9])}  # fmt: skip
    nodes = [
        helper.make_node("Reshape", ["images", "shape"], ["scores"], name="reshape"),
        helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "iou", "conf"], ["selected"]),
    ]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 3, 64]),
               helper.make_tensor_value_info("selected", TensorProto.INT64, ["found", 3])]  # fmt: skip
    return _model(nodes, outputs, constants, 1)


def pictures(batch=1, seed=0):
    return np.random.default_rng(seed).random((batch, 3, 8, 8), np.float32)


def reference(model, pixels):
    values = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"images": pixels})
    return [value.astype(np.float32) for value in values]


def modules(monkeypatch, **present):
    """Make only these modules importable, of all that are TensorRT or CUDA."""
    for name in (*TRT_MODULES, *CUDA_MODULES):
        monkeypatch.setitem(sys.modules, name, present.get(name.replace(".", "_")))


@pytest.fixture(params=["10.3"])
def trt(request, monkeypatch):
    """A TensorRT and a CUDA that can be imported; at the end nothing may be left of what was allocated."""
    cuda = FakeCuda()
    found = make(request.param, cuda)
    modules(monkeypatch, cuda_bindings_runtime=cuda, **{found.__name__: found})
    yield found
    assert cuda.live == {}
    assert len(found._contexts) == 0


every_version = pytest.mark.parametrize("trt", FLAVOURS, indirect=True)


def engine_file(trt, folder, model, batch=None, sidecar=None):
    """A bundle in ``folder`` with an engine; returns the engine's path."""
    (folder / "engines").mkdir(exist_ok=True)
    path = folder / "engines" / "net-int8-trt10.3.0.engine"
    path.write_bytes(api.build_engine(model, api.BuildOptions("int8", batch=batch), trt))
    (folder / "typed.onnx").write_bytes(model)
    if sidecar is not None:
        facts = {"model_sha256": hashlib.sha256(model).hexdigest(), "file": "typed.onnx", "precision": "int8",
                 "tensorrt": trt.__version__, "rtx": "rtx" in trt.__name__, "gpu": GPU, "compute_capability": "8.7",
                 "builder": "python"}  # fmt: skip
        path.with_suffix(".json").write_text(json.dumps({**facts, **sidecar}))
    return path


def run(engine, pixels):
    engine.set_inputs(pixels)
    engine.infer()
    return engine.outputs()


def same(got, wanted):
    assert len(got) == len(wanted)
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs)


@every_version
def test_four_methods_on_every_version(trt, tmp_path):
    model = conv_model()
    with runner.Engine() as engine:
        engine.load(engine_file(trt, tmp_path, model))
        assert engine.names == ["out0", "out1"]
        first = run(engine, pictures(seed=1))
        allocated = trt._cuda.calls.count("device"), trt._cuda.calls.count("host")
        same(run(engine, pictures(seed=2)), reference(model, pictures(seed=2)))
        assert (trt._cuda.calls.count("device"), trt._cuda.calls.count("host")) == allocated == (3, 3)
        same(first, reference(model, pictures(seed=1)))
        assert engine.graph_reason is None


@every_version
def test_dynamic_batch_keeps_graphs_until_memory_moves(trt, tmp_path):
    model = conv_model("N")
    graphs, devices = [], []
    with runner.Engine() as engine:
        engine.load(engine_file(trt, tmp_path, model, RANGE))
        for batch in (2, 1, 2, 4, 2):
            same(run(engine, pictures(batch)), reference(model, pictures(batch)))
            graphs.append(trt._cuda.calls.count("instantiate"))
            devices.append(trt._cuda.calls.count("device"))
    assert graphs == [1, 2, 2, 3, 4]
    assert devices == [3, 3, 3, 6, 6]


def test_only_shapes_of_the_profile_are_taken(trt, tmp_path):
    with runner.Engine() as engine:
        engine.load(engine_file(trt, tmp_path, conv_model("N"), RANGE))
        for wrong in (pictures(9), pictures(1)[0], pictures(1)[:, :, :4], pictures(1).astype(np.float64)):
            with pytest.raises(api.TensorRTError, match=r"allowed: float32 \(1, 3, 8, 8\) to \(8, 3, 8, 8\)"):
                engine.set_inputs(wrong)


@every_version
def test_an_output_whose_size_depends_on_the_data(trt, tmp_path):
    model = nms_model()
    with runner.Engine() as engine:
        engine.load(engine_file(trt, tmp_path, model))
        counts = []
        for pixels in (pictures() * 0, pictures(seed=3) * 0.95, pictures(seed=4), pictures() * 0):
            got = run(engine, pixels)
            same(got, reference(model, pixels))
            counts.append((len(got[1]), trt._cuda.calls.count("device")))
        found, allocated = zip(*counts, strict=True)
        assert found[0] == found[3] == 0 < found[1] < found[2]
        assert allocated == (3, 4, 5, 5)
        assert engine.graph_reason == "the size of selected depends on the data"
    assert "launch" not in trt._cuda.calls


def test_memory_that_runs_out_in_the_middle_of_a_run_is_reported(trt, tmp_path):
    with runner.Engine() as engine:
        engine.load(engine_file(trt, tmp_path, nms_model()))
        engine.set_inputs(pictures())
        trt._cuda.limit = 100
        with pytest.raises(api.TensorRTError, match="out of memory"):
            engine.infer()


def test_memory_that_runs_out_for_a_larger_batch_leaves_no_stale_plan(trt, tmp_path):
    with runner.Engine() as engine:
        engine.load(engine_file(trt, tmp_path, conv_model("N"), RANGE))
        run(engine, pictures(1))
        trt._cuda.limit = 2000
        with pytest.raises(api.TensorRTError, match="out of memory"):
            engine.set_inputs(pictures(8))
        with pytest.raises(api.TensorRTError, match="no inputs"):
            engine.infer()
        trt._cuda.limit = 1 << 30
        same(run(engine, pictures(8)), reference(conv_model("N"), pictures(8)))


def test_a_graph_is_captured_once_and_relaunched(trt, tmp_path):
    with runner.Engine() as engine:
        engine.load(engine_file(trt, tmp_path, conv_model()))
        for seed in range(3):
            same(run(engine, pictures(seed=seed)), reference(conv_model(), pictures(seed=seed)))
        engine.infer()
        assert trt._cuda.queue == [], "infer waits for the end, so that it can be timed"
        work = [call for call in trt._cuda.calls if call not in ("device", "host")]
        assert work == ["enqueue", "instantiate", *["launch"] * 4]
        engine.cuda_graph = False
        same(run(engine, pictures(seed=5)), reference(conv_model(), pictures(seed=5)))
        assert engine.graph_reason == "switched off" and trt._cuda.calls[-1] == "enqueue"


@pytest.mark.parametrize("trt", ["rtx-1.7"], indirect=True)
@pytest.mark.parametrize("obstacle", ["cuda", "tensorrt"])
def test_where_capture_fails_the_engine_runs_without(trt, tmp_path, obstacle):
    trt._cuda.break_capture, trt._capturable = obstacle == "cuda", obstacle == "cuda"
    with runner.Engine() as engine:
        engine.load(engine_file(trt, tmp_path, conv_model()))
        for seed in range(2):
            same(run(engine, pictures(seed=seed)), reference(conv_model(), pictures(seed=seed)))
        assert ("capture invalidated" if obstacle == "cuda" else "cannot capture") in str(engine.graph_reason)
    assert trt._cuda.calls.count("cudaGetLastError") == (obstacle == "cuda"), "tried once, and the error is cleared"
    assert "launch" not in trt._cuda.calls


def test_types_become_float32(trt, tmp_path):
    model = conv_model(kinds=KINDS)
    with runner.Engine() as engine:
        engine.load(engine_file(trt, tmp_path, model))
        same(run(engine, 50 * pictures()), reference(model, 50 * pictures()))
        assert [str(kind) for kind in engine.dtypes] == ["float32", "float16", "int32", "int64", "int8", "bool"]


def test_an_unknown_type_is_refused(trt, tmp_path):
    with pytest.raises(api.TensorRTError, match=r"(?s)out0.*FP8.*next: keep inputs and outputs float32"):
        runner.Engine().load(engine_file(trt, tmp_path, conv_model(kinds=("BFLOAT16",))))


def test_methods_in_the_wrong_order(trt, tmp_path):
    engine = runner.Engine()
    with pytest.raises(api.TensorRTError, match="call load first"):
        engine.set_inputs(pictures())
    with engine:
        engine.load(engine_file(trt, tmp_path, conv_model()))
        with pytest.raises(api.TensorRTError, match="call set_inputs first"):
            engine.infer()
        run(engine, pictures())
        engine.set_inputs(pictures())
        with pytest.raises(api.TensorRTError, match="call infer after set_inputs"):
            engine.outputs()


def test_an_engine_from_elsewhere(trt, tmp_path, capsys):
    """One process, one log: a message of an earlier failure must not explain a later one."""
    path = engine_file(trt, tmp_path, conv_model())
    plan = path.read_bytes()
    for old, new, text in (
        (b"10.3.0", b"10.3.1", "built by another version of TensorRT"),
        (GPU.encode(), b"Other GPU", "built for another GPU"),
        (GPU.encode(), b"no driver", "cannot read the engine"),
        (b"{", b"[", "cannot read the engine"),
    ):
        path.write_bytes(plan.replace(old, new, 1))
        assert runner.main(["inspect", str(path)]) == 2
        said = capsys.readouterr().err
        assert text in said and str(path) in said and "next: build it on this device: run build.sh in" in said


def test_the_note_beside_the_engine_lists_every_difference(trt, tmp_path, capsys):
    path = engine_file(trt, tmp_path, conv_model(), sidecar={"gpu": "Orin", "tensorrt": "8.6.1", "model_sha256": "0"})
    assert runner.main(["inspect", str(path)]) == 2
    said = capsys.readouterr().err
    for part in ("sha256 0,", "built by TensorRT 8.6.1, here is 10.3.0", f"built on 'Orin', here is '{GPU}'"):
        assert part in said
    engine_file(trt, tmp_path, conv_model(), sidecar={"compute_capability": ["7.2", "8.6"], "gpu": None})
    assert runner.main(["inspect", str(path)]) == 2
    assert "compute capability ['7.2', '8.6'], this GPU has 8.7" in capsys.readouterr().err
    engine_file(trt, tmp_path, conv_model(), sidecar={"compute_capability": ["8.6", "8.7"], "gpu": None})
    assert runner.main(["inspect", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["Layers"][0]["Name"] == "conv"


@pytest.mark.parametrize("text", ["{", "[]", '{"gpu": 3}', None])
def test_a_broken_note_is_refused(trt, tmp_path, capsys, text):
    path = engine_file(trt, tmp_path, conv_model(), sidecar={"file": "../../secret"})
    if text is not None:
        path.with_suffix(".json").write_text(text)
    assert runner.main(["inspect", str(path)]) == 2
    assert "the note beside the engine cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize("trt", ["rtx-1.7"], indirect=True)
def test_the_note_picks_the_module(trt, tmp_path, capsys):
    assert runner.main(["inspect", str(engine_file(trt, tmp_path, conv_model(), sidecar={}))]) == 0
    assert runner.main(["inspect", str(engine_file(trt, tmp_path, conv_model(), sidecar={"rtx": False}))]) == 2
    assert "TensorRT cannot be imported\n  got: tensorrt: " in capsys.readouterr().err


def test_cuda_python_by_its_older_name_or_missing(trt, tmp_path, monkeypatch, capsys):
    path = engine_file(trt, tmp_path, conv_model())
    modules(monkeypatch, tensorrt=trt, cuda_cudart=trt._cuda)
    assert runner.main(["inspect", str(path)]) == 0
    modules(monkeypatch, tensorrt=trt)
    assert runner.main(["inspect", str(path)]) == 2
    assert "cuda-python cannot be imported" in capsys.readouterr().err
    assert runner.main(["inspect", str(tmp_path / "none.engine")]) == 2
    assert "no such engine" in capsys.readouterr().err


def bundle(trt, folder, model, count=2, sidecar=None):
    """An engine with golden data of ONNX Runtime."""
    path = engine_file(trt, folder, model, sidecar={} if sidecar is None else sidecar)
    for k in range(count):
        (folder / "golden" / f"{k:03d}").mkdir(parents=True)
        np.save(folder / "golden" / f"{k:03d}" / "input.npy", pictures(seed=k))
        for i, values in enumerate(reference(model, pictures(seed=k))):
            np.save(folder / "golden" / f"{k:03d}" / f"output-{i}.npy", values)
    names = [output.name for output in onnx.load_from_string(model).graph.output]
    index = {"tolerance_db": {"int8": 30.0}, "outputs": names, "pictures": count}
    (folder / "golden" / "index.json").write_text(json.dumps(index))
    return path


def disturb(folder, name, change):
    file = folder / "golden" / "001" / name
    np.save(file, change(np.load(file)).astype(np.float32))


def test_check_measures_decibels(trt, tmp_path, capsys):
    path = bundle(trt, tmp_path, conv_model())
    assert runner.main(["check", str(path)]) == 0
    assert capsys.readouterr().out.count("ok   out") == 2
    values = (
        np.load(tmp_path / "golden" / "000" / "output-1.npy"),
        np.load(tmp_path / "golden" / "001" / "output-1.npy"),
    )
    disturb(tmp_path, "output-1.npy", lambda v: v + 0.5)
    assert runner.main(["check", str(path)]) == 1
    signal = np.square(values[0], dtype=float).sum() + np.square(values[1] + 0.5, dtype=float).sum()
    expected = 10 * np.log10(signal / (values[1].size * 0.25))
    row = f"FAIL out1: {expected:.1f} dB, allowed from 30 dB, worst difference 0.5\n"
    assert row in capsys.readouterr().out
    disturb(tmp_path, "output-0.npy", lambda v: v * np.nan)
    assert runner.main(["check", str(path), "--golden", str(tmp_path / "golden")]) == 1
    assert "FAIL out0: nan dB, allowed from 30 dB, worst difference nan" in capsys.readouterr().out


def test_check_compares_suppressed_boxes_as_sets(trt, tmp_path, capsys):
    path = bundle(trt, tmp_path, nms_model())
    disturb(tmp_path, "output-1.npy", lambda v: v[::-1][1:])
    assert runner.main(["check", str(path)]) == 0
    assert "ok   selected: 9" in capsys.readouterr().out
    for name in ("000", "001"):
        file = tmp_path / "golden" / name / "output-1.npy"
        np.save(file, np.load(file)[:, ::-1] + 1)
    assert runner.main(["check", str(path)]) == 1
    assert "FAIL selected" in capsys.readouterr().out


def test_check_needs_whole_golden_data_of_this_engine(trt, tmp_path, capsys):
    path = bundle(trt, tmp_path, conv_model(), sidecar={"precision": "fp16"})
    assert runner.main(["check", str(path)]) == 2
    assert "do not belong together\n" in capsys.readouterr().err
    engine_file(trt, tmp_path, conv_model(kinds=["FLOAT"] * 3), sidecar={})
    assert runner.main(["check", str(path)]) == 2
    assert "outputs out0, out1, out2\n  allowed: precision int8, outputs out0, out1" in capsys.readouterr().err
    (tmp_path / "golden" / "001").rename(tmp_path / "elsewhere")
    assert runner.main(["check", str(path)]) == 2
    assert "no whole golden data" in capsys.readouterr().err
    (tmp_path / "elsewhere").rename(tmp_path / "golden" / "001")
    (tmp_path / "golden" / "001" / "output-1.npy").unlink()
    assert runner.main(["check", str(path)]) == 2
    assert "no whole golden data" in capsys.readouterr().err


def test_bench_takes_turns_with_and_without_graph(trt, tmp_path, capsys):
    path = engine_file(trt, tmp_path, conv_model("N"), RANGE, {})
    assert runner.main(["bench", str(path), "--batch", "4", "--seconds", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["shape"] == [4, 3, 8, 8] and found["gpu"] == GPU and found["tensorrt"] == "tensorrt 10.3.0"
    for kind in ("cuda_graph", "no_cuda_graph"):
        row = found[kind]
        assert row["runs"] == runner.MIN_RUNS and row["median_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["frames_per_s"] == pytest.approx(4000 / row["mean_ms"], rel=1e-2)
    work = [call for call in trt._cuda.calls if call in ("launch", "enqueue")]
    assert work[1:] == ["launch", "enqueue"] * (runner.MIN_RUNS + 1)
    assert runner.main(["bench", str(path), "--seconds", "0"]) == 0
    said = capsys.readouterr().out
    assert "[1, 3, 8, 8]" in said and said.count("frames/s") == 2 and "not inside: reading and letterboxing" in said
    assert runner.main(["bench", str(path), "--batch", "9"]) == 2
    assert "does not take these pictures" in capsys.readouterr().err


def test_bench_says_why_there_is_no_graph(trt, tmp_path, capsys):
    assert runner.main(["bench", str(engine_file(trt, tmp_path, nms_model())), "--seconds", "0"]) == 0
    assert "CUDA graph: not measured: the size of selected depends on the data" in capsys.readouterr().out
