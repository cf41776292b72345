"""Building engines: what differs between versions on a fake TensorRT, and the real TensorRT-RTX where there is one."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from edgeyolo.targets.jetson import tensorrt_api as api
from fake_tensorrt import API, CLASSES, make
from onnx import TensorProto, helper, numpy_helper

SOURCES = Path(api.__file__).parent
TRT_MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
FLAVOURS = sorted(API)
TYPED = [flavour for flavour in FLAVOURS if flavour != "8.6"]
NO_RTX = "TensorRT-RTX is not installed: pip install tensorrt-rtx"


def model(batch=1, zero_point=None, bad=(), name="conv"):
    """A convolution, behind Q/DQ where there is a zero point, before operators of an unknown domain."""
    weights = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    tensors = [numpy_helper.from_array(weights, "w")]
    nodes, last = [], "images"
    if zero_point is not None:
        tensors += [numpy_helper.from_array(np.float32(0.02), "s"), numpy_helper.from_array(np.int8(zero_point), "z")]
        nodes.append(helper.make_node("QuantizeLinear", [last, "s", "z"], ["q"], name="quantise"))
        nodes.append(helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dequantise"))
        last = "d"
    nodes.append(helper.make_node("Conv", [last, "w"], ["y"], name=name, pads=[1] * 4))
    last = "y"
    for operator in bad:
        nodes.append(helper.make_node(operator, [last], [f"o{operator}"], name=f"node {operator}", domain="mine"))
        last = f"o{operator}"
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, 16, 16])
    graph = helper.make_graph(nodes, "g", [images], [helper.make_tensor_value_info(last, 1, None)], tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def built(flavour, data=None, **options):
    """Module, network and configuration of a build on the fake."""
    trt = make(flavour)
    plan = api.build_engine(data or model(), api.BuildOptions(**options), trt)
    assert isinstance(plan, bytes) and plan.endswith(data or model())
    return (trt, *trt._built)


def test_the_fake_invents_no_attribute():
    for name, cls in CLASSES.items():
        known = {attribute for api_ in API.values() for attribute in api_[name]}
        assert {attribute for attribute in vars(cls) if not attribute.startswith("_")} <= known, name


@pytest.mark.parametrize(("precision", "flags"), [("int8", {"INT8", "FP16"}), ("fp16", {"FP16"}), ("fp32", set())])
def test_version_8_is_permitted_types(precision, flags):
    trt, network, config = built("8.6", precision=precision)
    assert config._flags == flags
    assert network._flags == 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)


@pytest.mark.parametrize("flavour", TYPED)
def test_later_versions_take_the_types_of_the_file(flavour):
    trt, network, config = built(flavour, precision="int8")
    assert config._flags == set()
    assert network._flags == 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_which_of_the_models_a_version_builds_from(flavour):
    assert api.is_typed(make(flavour)) == (flavour != "8.6")


def test_float_layers_stay_float_where_types_are_permissions():
    _, network, config = built("8.6", precision="fp16", float_layers=("conv",))
    layer = network.get_layer(0)
    assert layer.precision.name == layer._kind.name == "FLOAT"
    assert config._flags == {"FP16", "OBEY_PRECISION_CONSTRAINTS"}
    _, network, _ = built("8.6", precision="fp16", float_layers=("another",))
    assert not hasattr(network.get_layer(0), "precision")


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_layer_details_workspace_and_batches_on_every_version(flavour):
    _, _, config = built(flavour, model("N"), batch=(1, 4, 8), workspace_mib=64)
    assert config.profiling_verbosity.name == "DETAILED"
    assert config._limits == {"WORKSPACE": 64 << 20}
    assert config._profiles[0]._shapes == {"images": tuple((n, 3, 16, 16) for n in (1, 4, 8))}
    assert built(flavour)[2]._limits == {}


@pytest.mark.parametrize(("batch", "asked"), [("N", None), (2, (1, 2, 4))])
def test_batches_must_fit_the_network(batch, asked):
    with pytest.raises(api.TensorRTError, match=r"(?s)batch that was asked for.*images \(.*3, 16, 16\)"):
        built("10.3", model(batch), batch=asked)


@pytest.mark.parametrize(("flavour", "flags"), [("8.6", {"FP16"}), ("10.3", {"FP16"}), ("11.4", set())])
def test_dla_with_the_gpu_behind_it(flavour, flags):
    trt, network, config = built(flavour, precision="fp16", dla=0)
    assert (config.default_device_type.name, config.DLA_core, config._flags) == ("DLA", 0, {"GPU_FALLBACK", *flags})
    kind = "EXPLICIT_BATCH" if flags else "STRONGLY_TYPED"
    assert network._flags == 1 << int(getattr(trt.NetworkDefinitionCreationFlag, kind))
    assert api.is_typed(trt, 0) is not bool(flags)
    with pytest.raises(api.TensorRTError, match=r"(?s)no such DLA core.*got: 1.*allowed: 0 to 0"):
        built("10.3", dla=1)


def test_targets_are_for_rtx():
    _, _, config = built("rtx-1.7", targets=("SM86", "SM89"))
    assert config._targets == {0: "SM86", 1: "SM89"} and config.num_compute_capabilities == 2
    with pytest.raises(api.TensorRTError, match=r"(?s)got: SM87\n  allowed: SM120, SM121, SM75"):
        built("rtx-1.7", targets=("SM86", "SM87"))
    with pytest.raises(api.TensorRTError, match="allowed: the GPU that it runs on"):
        built("10.3", targets=("SM86",))


def test_timing_cache_is_kept_between_builds(tmp_path):
    cache = tmp_path / "timing.cache"
    for expected in (b"+measured", b"+measured+measured"):
        built("8.6", timing_cache=cache)
        assert cache.read_bytes() == expected
    cache.write_bytes(b"other GPU")
    built("11.4", timing_cache=cache)
    assert cache.read_bytes() == b"+measured"
    cache.unlink()
    built("rtx-1.7", timing_cache=cache)
    assert not cache.exists()


def test_a_failed_build_quotes_errors_only():
    with pytest.raises(api.TensorRTError, match="layer 'too big' found no tactic") as raised:
        built("10.13", model(name="too big"))
    assert "trying tactics" not in str(raised.value)


def test_all_that_the_parser_refuses_is_listed():
    with pytest.raises(api.TensorRTError) as raised:
        built("10.3", model(zero_point=3, bad=("Frob", "Grob")))
    for part in ("node 0 'quantise' (QuantizeLinear): Non-zero", "node 3 'node Frob' (Frob): no importer", "node 4 "):
        assert part in str(raised.value)
    with pytest.raises(api.TensorRTError, match="node 1: no importer registered"):
        built("8.6", model(bad=("Frob",)))


def install(monkeypatch, **present):
    for name in TRT_MODULES:
        monkeypatch.setitem(sys.modules, name, present.get(name))


@pytest.mark.parametrize(
    ("flavour", "version"), [("8.6", "8.4.1.5"), ("11.4", "12.0.0"), ("rtx-1.7", "2.0.0"), ("rtx-1.7", "0.9")]
)
def test_a_version_out_of_range(monkeypatch, flavour, version):
    trt = make(flavour, version=version)
    install(monkeypatch, **{trt.__name__: trt})
    with pytest.raises(api.TensorRTError, match=f"(?s)not supported.*{version}.*TensorRT 8.5 to 11, TensorRT-RTX 1"):
        api.load()


@pytest.mark.parametrize(("flavour", "version"), [("8.6", "8.5.2.2"), ("8.6", "8.6.1.post1"), ("11.4", "11.99.1")])
def test_a_version_in_range_and_the_order_of_modules(monkeypatch, flavour, version):
    trt, rtx = make(flavour, version=version), make("rtx-1.7")
    install(monkeypatch, tensorrt=trt, tensorrt_rtx=rtx)
    assert api.load() is trt
    assert api.load(api.RTX) is rtx


def test_no_tensorrt_says_what_was_tried(monkeypatch):
    install(monkeypatch)
    with pytest.raises(api.TensorRTError, match=r"(?s)cannot be imported.*tensorrt:.*tensorrt_rtx:.*_bindings:.*next:"):
        api.load()


def test_the_stored_surface_is_that_of_the_installed_rtx():
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason=NO_RTX)
    stored = dict(API["rtx-1.7"])
    if stored.pop("version") != trt.__version__:
        pytest.skip(f"the stored surface is that of another version than {trt.__version__}")
    for name, attributes in stored.items():
        assert sorted(n for n in dir(getattr(trt, name)) if not n.startswith("_")) == attributes, name


@pytest.mark.parametrize(("batch", "range_"), [(1, None), ("N", (1, 2, 4))])
def test_rtx_builds_for_a_gpu_that_is_not_here(batch, range_):
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason=NO_RTX)
    options = api.BuildOptions("int8", batch=range_, workspace_mib=64, targets=("SM86", "SM89"))
    assert len(api.build_engine(model(batch, zero_point=0), options, trt)) > 1000


def test_rtx_refuses_in_its_own_words():
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason=NO_RTX)
    options = api.BuildOptions("int8", targets=("SM86",))
    with pytest.raises(api.TensorRTError, match=r"'quantise' \(QuantizeLinear\): .*Non-zero zero point"):
        api.build_engine(model(zero_point=3), options, trt)
    with pytest.raises(api.TensorRTError) as raised:
        api.build_engine(model(bad=("Frob", "Grob")), options, trt)
    assert "'node Frob' (Frob)" in str(raised.value) and "'node Grob' (Grob)" in str(raised.value)
    with pytest.raises(api.TensorRTError, match="Failed to parse the ONNX model"):
        api.build_engine(b"no model", options, trt)


def test_rtx_explains_bytes_that_are_no_engine():
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason=NO_RTX)
    with pytest.raises(api.TensorRTError, match=r"(?s)the engine.*where: x\.engine.*got: .*next: do this"):
        api.deserialise(trt, b"no engine" * 100, "x.engine", "do this")


def test_the_files_run_alone(tmp_path):
    """As in a bundle: beside one another, nothing of edgeyolo installed, TensorRT missing."""
    for path in SOURCES.glob("*.py"):
        if path.name != "__init__.py":
            shutil.copy(path, tmp_path)
    (tmp_path / "net.engine").write_bytes(b"x")
    blocked = [*TRT_MODULES, "edgeyolo", "targets"]
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({blocked!r})); sys.argv = ['runner.py', 'inspect',"
        " 'net.engine']; sys.path[0] = '.'; runpy.run_path('runner.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("TensorRT cannot be imported\n  got: tensorrt: ")


class _Runtime(ast.NodeTransformer):
    """What Python 3.8 would evaluate: no annotations, nothing under TYPE_CHECKING."""

    def visit_If(self, node):
        return node.orelse if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)

    def visit_AnnAssign(self, node):
        return ast.copy_location(ast.Assign([node.target], node.value), node) if node.value else None

    def visit_arg(self, node):
        node.annotation = None
        return node

    def visit_FunctionDef(self, node):
        node.returns = None
        return self.generic_visit(node)


@pytest.mark.parametrize("path", sorted(SOURCES.glob("*.py")), ids=lambda path: path.name)
def test_python_3_8_and_few_imports(path):
    text = path.read_text("utf-8")
    tree = _Runtime().visit(ast.parse(text, feature_version=(3, 8)))
    assert "from __future__ import annotations" in text or len(text.splitlines()) == 1
    newer = {"removeprefix", "removesuffix", "bit_count", "is_relative_to", "with_stem", "cache", "hardlink_to"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert {str(name).split(".")[0] for name in names} <= {*sys.stdlib_module_names, "numpy"}
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            assert node.value.id not in ("dict", "list", "tuple", "set", "type", "deque", "Callable", "Sequence")
        if isinstance(node, ast.Attribute):
            assert node.attr not in newer
        if isinstance(node, ast.Call):
            assert "strict" not in [keyword.arg for keyword in node.keywords]
            assert not (ast.unparse(node.func) == "isinstance" and isinstance(node.args[1], ast.BinOp))
