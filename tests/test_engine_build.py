"""``edgeyolo build``: engines and their notes, by TensorRT-RTX and by a stand-in for TensorRT, and every refusal."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from bundle_surgery import edit_manifest
from edgeyolo.targets.jetson import cuda_device
from fake_cuda import FakeCuda
from fake_tensorrt import make
from tensorrt_bundles import bundle_fixture, good_fixture, source_fixture, symbolic_fixture  # noqa: F401 - fixtures
from test_jetson_runner import modules
from tiny_models import edgeyolo, refusal, succeed, tree

from edgeyolo.bundle import MODEL, Bundle
from edgeyolo.export import acceptance
from edgeyolo.export.device_files import TYPED

NOTE = {"builder", "compute_capability", "file", "gpu", "model_sha256", "precision", "rtx", "tensorrt"}
PACKAGE = """
import sys
sys.path.insert(0, {tests!r})
from fake_cuda import FakeCuda
from fake_tensorrt import make
sys.modules[__name__] = make({flavour!r}, FakeCuda())
"""
"""A module ``tensorrt`` for the process that builds."""


@pytest.fixture
def rtx() -> None:
    """Skips where TensorRT-RTX is missing."""
    if not acceptance.installed():
        pytest.skip("TensorRT-RTX is not installed")


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, flavour: str = "10.3", text: str = PACKAGE) -> Any:
    """A stand-in for TensorRT, in this process and, as ``text``, in the one that builds."""
    cuda = FakeCuda()
    found = make(flavour, cuda)
    modules(monkeypatch, cuda_bindings_runtime=cuda, tensorrt=found)
    folder.mkdir(exist_ok=True)
    (folder / "tensorrt.py").write_text(text.format(tests=str(Path(__file__).parent), flavour=flavour), "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return found


def build(bundle: Path, *more: object) -> tuple[Path, dict[str, Any]]:
    """Build and return the engine's path with the JSON document."""
    document = json.loads(succeed("build", bundle, "--json", *more).stdout)
    path = Path(document["engine"])
    assert path.parent == bundle / "engines" and path.stat().st_size == document["bytes"] > 0
    note = cuda_device.read_sidecar(path)
    assert note is not None and set(note) == NOTE and note.items() <= document.items()
    assert note["model_sha256"] == hashlib.sha256((bundle / note["file"]).read_bytes()).hexdigest()
    Bundle.open(bundle)
    return path, document


def left(bundle: Path) -> set[str]:
    """What is in the folder of engines."""
    folder = bundle / "engines"
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def graph_of(engine: Path) -> Any:
    """What the stand-in made an engine of."""
    return onnx.load_from_string(engine.read_bytes().partition(b"\n")[2]).graph


# --- TensorRT-RTX -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("rtx")
def test_ahead_of_time_for_one_architecture(bundle: Path) -> None:
    path, document = build(bundle, "--sm", "SM86")
    expected = {"precision": "int8", "file": TYPED, "rtx": True, "compute_capability": ["8.6"], "gpu": None}
    assert expected.items() <= document.items() and document["builder"] == "python"
    assert path.name == f"model-int8-rtx{document['tensorrt']}-SM86.engine"
    assert left(bundle) == {path.name, path.with_suffix(".json").name}
    before = tree(bundle)
    message = refusal("build", bundle, "--sm", "SM86")
    assert "exists" in message and "--force" in message and tree(bundle) == before
    text = succeed("build", bundle, "--sm", "SM86", "--force").output
    assert path.name in text and "take it to its GPU" in text


@pytest.mark.usefixtures("rtx")
def test_several_architectures_and_other_kinds(good: dict[str, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(good["fp16"], tmp_path / "fp16"))
    _, document = build(copy, "--sm", "SM86", "--sm", "SM120")
    assert document["compute_capability"] == ["8.6", "12.0"]
    copy = Path(shutil.copytree(good["fp32"], tmp_path / "fp32"))
    _, document = build(copy, "--sm", "SM75")
    assert (document["file"], document["precision"]) == (MODEL, "fp32")
    copy = Path(shutil.copytree(good["dynamic"], tmp_path / "dynamic"))
    build(copy, "--sm", "SM89")


@pytest.mark.usefixtures("rtx")
def test_suppression_is_left_out_and_that_is_said(good: dict[str, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(good["nms"], tmp_path / "nms"))
    result = succeed("build", copy, "--sm", "SM86")
    assert "NonMaxSuppression" in result.output


@pytest.mark.usefixtures("rtx")
def test_an_architecture_that_there_is_not(bundle: Path) -> None:
    for name in ("SM87", "sm86", "../SM86", "8.6"):
        message = refusal("build", bundle, "--sm", name)
        assert name in message and "SM86" in message and "build.sh" in message
    assert left(bundle) == set()


@pytest.mark.usefixtures("rtx")
def test_marked_layers_with_tensorrt_rtx(bundle: Path) -> None:
    plain, _ = build(bundle, "--sm", "SM86")
    path, _ = build(bundle, "--sm", "SM86", "--mark", "layers.6.*", "--mark", "layers.9.act")
    assert path != plain and "marked" in path.name


# --- TensorRT of a device ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "flavour", "file"),
    [
        ("int8", "10.3", TYPED),
        ("int8", "11.4", TYPED),
        ("int8", "8.6", MODEL),
        ("fp16", "8.6", MODEL),
        ("fp32", "10.3", MODEL),
        ("dynamic", "10.3", TYPED),
        ("nms", "10.3", TYPED),
        ("decode", "8.6", MODEL),
        ("dla", "10.3", MODEL),
    ],
)
def test_the_graph_that_this_version_wants(
    kind: str, flavour: str, file: str, good: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle as it was exported: the folder of engines is not there yet."""
    copy = Path(shutil.copytree(good[kind], tmp_path / "bundle"))
    trt = install(monkeypatch, tmp_path / "site", flavour)
    path, document = build(copy)
    assert (document["file"], document["tensorrt"], document["rtx"]) == (file, trt.__version__, False)
    assert (document["compute_capability"], document["builder"]) == (None, "python")
    assert path.read_bytes().partition(b"\n")[2] == (copy / file).read_bytes(), "the graph as it is in the bundle"
    profile = json.loads(path.read_bytes().partition(b"\n")[0])["profile"]
    batches = [shape[0] for shape in profile["images"]] if profile else []
    assert batches == ([1, 3, 3] if kind == "dynamic" else [])


def test_a_second_build_starts_from_the_timing_cache(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path / "site")
    (bundle / "engines").mkdir()
    path, _ = build(bundle)
    (cache,) = left(bundle) - {path.with_suffix(s).name for s in (".engine", ".json", ".layers.json")}
    assert (bundle / "engines" / cache).read_bytes() == b"+measured"
    build(bundle, "--force")
    assert (bundle / "engines" / cache).read_bytes() == b"+measured+measured"


def test_what_is_built_passes_verify(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path / "site")
    (bundle / "engines").mkdir()
    path, _ = build(bundle)
    assert "passed" in succeed("verify", bundle, "--engine", path).output
    note = path.with_suffix(".json")
    note.write_text(note.read_text("utf-8").replace('"8', '"9').replace("10.3", "10.4"), "utf-8")
    assert "does not belong here" in refusal("verify", bundle, "--engine", path, "--json")


@pytest.mark.parametrize("pattern", ["layers.6.*", "layers.1?.conv", "*"])
@pytest.mark.parametrize("kind", ["int8", "fp16", "nms"])
def test_marked_layers_become_outputs_which_verify_compares(
    pattern: str, kind: str, good: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(good[kind], tmp_path / "bundle"))
    install(monkeypatch, tmp_path / "site")
    (copy / "engines").mkdir()
    path, _ = build(copy, "--mark", pattern)
    outputs = [value.name for value in graph_of(path).output]
    own = [value.name for value in onnx.load(copy / MODEL).graph.output]
    assert outputs[: len(own)] == own, "nothing is lost"
    if pattern == "layers.6.*":
        assert set(outputs[len(own) :]) == {"layers.6.conv", "layers.6.act"}
    assert len(outputs) > len(own) and len(set(outputs)) == len(outputs)
    result = edgeyolo("verify", copy, "--engine", path, "--json")
    assert result.exit_code in (0, 1), result.stderr
    # With every value an output the stand-in rounds elsewhere, and single codes of inner layers are one off.
    assert result.exit_code == 0 or (pattern == "*" and kind != "fp16"), result.output


def test_a_mark_that_means_nothing(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path / "site")
    message = refusal("build", bundle, "--mark", "no-such-layer")
    assert "no-such-layer" in message and "layers.0" in message
    assert "no-such-layer" in refusal("build", bundle, "--mark", "layers.6.*", "--mark", "no-such-layer")
    assert left(bundle) <= {"timing.cache"}


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_bundles_that_are_not_for_tensorrt(good_bundle: Path, bundle: Path, tmp_path: Path) -> None:
    before = tree(good_bundle)
    message = refusal("build", good_bundle, "--sm", "SM86")
    assert "not for TensorRT" in message and "fpga" in message and tree(good_bundle) == before
    assert "no bundle here" in refusal("build", tmp_path / "none")
    (bundle / MODEL).write_bytes(b"")
    assert "damaged" in refusal("build", bundle, "--sm", "SM86")


def test_without_tensorrt_it_says_what_to_install(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules(monkeypatch)
    message = refusal("build", bundle)
    assert "TensorRT cannot be imported" in message and "pip install tensorrt" in message
    assert "tensorrt-rtx" in refusal("build", bundle, "--sm", "SM86"), "--sm needs another package"
    assert left(bundle) == set()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "signal 11"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "signal 9"),
        ("import os\nos._exit(0)", "crashed"),
        ("raise RuntimeError('no such tactic')", "no such tactic"),
    ],
)
def test_a_crash_of_the_builder_takes_nobody_along(
    text: str, said: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path / "site", text=text.replace("{", "{{"))
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = tree(bundle)
    message = refusal("build", bundle, "--json")
    assert "TensorRT crashed" in message and said in message
    assert tree(bundle) == before and list(temporary.iterdir()) == []


def test_what_tensorrt_refuses_is_quoted(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown option of the bundle: its DLA is not on this device."""
    install(monkeypatch, tmp_path / "site")
    edit_manifest(bundle, lambda m: m["options"].update(dla=7, precision="fp16"))
    message = refusal("build", bundle)
    assert "no such DLA core" in message and "got: 7" in message and left(bundle) == set()


@pytest.mark.parametrize("precision", ["x/../../../escaped", "/tmp/escaped", "../escaped", "fp8", "", None, 7])
def test_a_hostile_precision_does_not_leave_the_folder(
    precision: object, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path / "site")
    edit_manifest(bundle, lambda m: m["options"].update(precision=precision))
    (bundle / "engines").mkdir()
    result = edgeyolo("build", bundle)
    assert not [path for path in tmp_path.rglob("*") if "escaped" in path.name] and left(bundle) <= {"timing.cache"}
    assert result.exit_code == 2 and "int8, fp16, fp32" in result.stderr


def test_nothing_of_the_working_folder_is_imported(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who looks at a stranger's bundle may stand in it; python -m would put that folder first."""
    install(monkeypatch, tmp_path / "site")
    (bundle / "engines").mkdir()
    marker = tmp_path / "marker"
    for name in ("numpy", "tensorrt", "edgeyolo", "tempfile"):
        (bundle / f"{name}.py").write_text(
            f"open({str(marker)!r}, 'a').write({name!r})\nraise SystemExit(3)\n", "utf-8"
        )
    monkeypatch.chdir(bundle)
    edgeyolo("build", ".")
    assert not marker.exists(), f"{marker.read_text()} of the bundle was executed"


def test_a_disk_that_refuses(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path / "site")
    (bundle / "engines").mkdir()
    before, replace = tree(bundle), Path.replace

    def fail(path: Path, target: Path) -> Path:
        if ".engine" in target.name:
            raise OSError(28, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fail)
    message = refusal("build", bundle)
    monkeypatch.undo()
    assert "No space left" in message
    assert {name for name in tree(bundle).keys() - before.keys() if not name.endswith(".cache")} == set()
