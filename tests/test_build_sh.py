"""build.sh under the system's sh, with a stand-in for trtexec that knows the options of each version and no others."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "targets" / "jetson" / "build.sh"

CONF = {
    "NAME": "yolo-fastest",
    "PRECISION": "fp16",
    "INPUT": "images",
    "SHAPE": "3x320x320",
    "MIN_BATCH": "1",
    "OPT_BATCH": "1",
    "MAX_BATCH": "1",
    "DYNAMIC": "0",
    "WORKSPACE_MIB": "1024",
    "DLA": "",
    "FLOAT_LAYERS": "",
    "BOARD": "orin-nano",
}

ALWAYS = "onnx saveEngine minShapes optShapes maxShapes timingCacheFile profilingVerbosity"
FLAGS = "fp16 int8 useDLACore allowGPUFallback"
LAYERS = "memPoolSize precisionConstraints layerPrecisions exportLayerInfo"
# What NVIDIA's sources (samples/common/sampleOptions.cpp) parse, as far as a build could want it.
VERSIONS = {
    "8.2.1": ("v8201", f"{ALWAYS} {FLAGS} workspace buildOnly"),
    "8.5.2": ("v8502", f"{ALWAYS} {FLAGS} {LAYERS} workspace buildOnly"),
    "8.6.2": ("v8602", f"{ALWAYS} {FLAGS} {LAYERS} workspace skipInference"),
    "10.3.0": ("v100300] [b26", f"{ALWAYS} {FLAGS} {LAYERS} skipInference stronglyTyped"),
    "10.13.3": ("v101303] [b9", f"{ALWAYS} {FLAGS} {LAYERS} skipInference stronglyTyped"),
    "11.4.0": ("v110400] [b106", f"{ALWAYS} memPoolSize exportLayerInfo useDLACore allowGPUFallback skipInference"),
}
RTX = ("1.7.1", "v10701", f"{ALWAYS} memPoolSize exportLayerInfo skipInference")

FAKE = r"""#!/bin/sh
echo "&&&& RUNNING TensorRT.trtexec [TensorRT @CODE@] # $*"
if [ "$1" = --help ]; then
  for name in @OPTIONS@; do echo "  --$name   does something"; done
  exit 0
fi
printf '%s\n' "$@" >"@RECORD@"
for argument in "$@"; do
  name=${argument%%=*} value=${argument#*=}
  case " @OPTIONS@ " in *" ${name#--} "*) ;; *) echo "[E] Unknown option: $name"; exit 1 ;; esac
  case $name in
    --saveEngine) echo engine >"$value" ;;
    --exportLayerInfo) echo '{"Layers": []}' >"$value" ;;
    --timingCacheFile) echo "$(cat "$value" 2>/dev/null)+" >"$value" ;;
  esac
done
echo "[01/02/2024-03:04:05] [I] Selected Device: Orin (nvgpu)"
echo "[01/02/2024-03:04:05] [I] Compute Capability: 8.7"
[ ! -e "@RECORD@.fail" ] || exit 1
"""


class Bench:
    """A bundle's folder with build.sh in it, and a stand-in builder beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.record = folder / "a 'bundle' $HOME", folder / "arguments"
        self.bin = folder / "bin"
        self.folder.mkdir()
        self.bin.mkdir()
        shutil.copy(SCRIPT, self.folder / "build.sh")
        for name in ("model.onnx", "typed.onnx"):
            (self.folder / name).write_bytes(name.encode())
        self.conf()

    def conf(self, **changes: str) -> None:
        text = "".join(f"{key}={value}\n" for key, value in {**CONF, **changes}.items())
        (self.folder / "build.conf").write_text(text)

    def install(self, version: str, name: str = "trtexec") -> Path:
        code, options = RTX[1:] if name == "tensorrt_rtx" else VERSIONS[version]
        return self.install_text(code, options, name)

    def install_text(self, code: str, options: str, name: str = "trtexec") -> Path:
        text = FAKE.replace("@CODE@", code).replace("@OPTIONS@", options).replace("@RECORD@", str(self.record))
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.bin}:{os.environ['PATH']}"
        return subprocess.run(
            ["sh", str(self.folder / "build.sh"), *arguments],
            env={"PATH": path, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def build(self) -> dict[str, str]:
        """Build, and return the options that the builder got, without the paths' folders."""
        done = self.run()
        assert done.returncode == 0, done.stdout + done.stderr
        pairs = [line.partition("=")[::2] for line in self.record.read_text().splitlines()]
        return {name: value.rpartition("/")[2] if name in PATHS else value for name, value in pairs}

    def refusal(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 2, done.stdout + done.stderr
        assert not (self.folder / "engines").exists()
        return done.stderr


PATHS = ("--onnx", "--saveEngine", "--timingCacheFile", "--exportLayerInfo")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_tensorrt_8_takes_types_from_flags(bench: Bench) -> None:
    for precision, flags in {"int8": {"--int8", "--fp16"}, "fp16": {"--fp16"}, "fp32": set()}.items():
        bench.conf(PRECISION=precision)
        for version in ("8.2.1", "8.5.2", "8.6.2"):
            bench.install(version)
            got = bench.build()
            assert got["--onnx"] == "model.onnx"
            assert {"--int8", "--fp16", "--stronglyTyped", "--precisionConstraints"} & set(got) == flags


def test_tensorrt_10_and_newer_take_types_from_the_graph(bench: Bench) -> None:
    for precision, model in {"int8": "typed.onnx", "fp16": "typed.onnx", "fp32": "model.onnx"}.items():
        bench.conf(PRECISION=precision, FLOAT_LAYERS="decode/Exp")
        for version in ("10.3.0", "10.13.3", "11.4.0"):
            bench.install(version)
            got = bench.build()
            assert got["--onnx"] == model
            assert {"--int8", "--fp16", "--layerPrecisions"} & set(got) == set()
            assert ("--stronglyTyped" in got) == version.startswith("10.")


def test_every_version_gets_the_options_it_knows(bench: Bench) -> None:
    for version in VERSIONS:
        bench.install(version)
        got = bench.build()
        workspace = {"--workspace": "1024"} if version == "8.2.1" else {"--memPoolSize": "workspace:1024"}
        assert workspace.items() <= got.items()
        assert ("--buildOnly" if version in ("8.2.1", "8.5.2") else "--skipInference") in got
        assert got["--profilingVerbosity"] == "detailed"
        assert got["--timingCacheFile"] == f"timing-trt{version}.cache"
        assert ("--exportLayerInfo" in got) == (version != "8.2.1")
        assert "--minShapes" not in got


def test_float_layers_stay_float_where_flags_choose(bench: Bench) -> None:
    bench.conf(PRECISION="int8", FLOAT_LAYERS="decode/Exp,/a.0/Mul:1")
    bench.install("8.5.2")
    got = bench.build()
    assert got["--layerPrecisions"] == "decode/Exp:fp32,/a.0/Mul:1:fp32"
    assert got["--precisionConstraints"] == "obey"


def test_float_layers_are_refused_where_trtexec_cannot_keep_them(bench: Bench) -> None:
    bench.conf(FLOAT_LAYERS="decode/Exp")
    bench.install("8.2.1")
    assert "decode/Exp" in bench.refusal()
    bench.conf(FLOAT_LAYERS="decode/Exp", PRECISION="fp32")
    assert "--fp16" not in bench.build()


def test_a_dynamic_batch_gets_its_profile(bench: Bench) -> None:
    bench.conf(DYNAMIC="1", OPT_BATCH="4", MAX_BATCH="8", INPUT="images/in")
    bench.install("11.4.0")
    got = bench.build()
    assert got["--minShapes"] == "images/in:1x3x320x320"
    assert got["--optShapes"] == "images/in:4x3x320x320"
    assert got["--maxShapes"] == "images/in:8x3x320x320"


def test_a_dla_gets_flags_and_fallback(bench: Bench) -> None:
    bench.conf(DLA="1")
    for version in ("8.5.2", "10.3.0"):
        bench.install(version)
        got = bench.build()
        assert (got["--useDLACore"], got["--onnx"]) == ("1", "model.onnx")
        assert {"--allowGPUFallback", "--fp16"} <= set(got)
        assert "--stronglyTyped" not in got


@pytest.mark.parametrize(
    ("version", "changes", "reason"),
    [
        ("10.13.3", {}, "not known to build for a DLA"),
        ("11.4.0", {}, "not known to build for a DLA"),
        ("8.5.2", {"PRECISION": "int8"}, "no Q/DQ on a DLA"),
        ("8.5.2", {"PRECISION": "fp32"}, "no float32"),
        ("8.5.2", {"DYNAMIC": "1", "MAX_BATCH": "2"}, "one batch size"),
    ],
)
def test_what_a_dla_cannot_do_is_refused(bench: Bench, version: str, changes: dict[str, str], reason: str) -> None:
    bench.conf(DLA="0", **changes)
    bench.install(version)
    assert reason in bench.refusal()


def test_the_engine_and_its_facts_appear_together(bench: Bench) -> None:
    bench.conf(PRECISION="int8")
    bench.install("10.3.0")
    bench.build()
    engines = bench.folder / "engines"
    stem = "yolo-fastest-int8-trt10.3.0"
    expected = {f"{stem}.engine", f"{stem}.json", f"{stem}.layers.json", "timing-trt10.3.0.cache"}
    assert {path.name for path in engines.iterdir()} == expected
    assert json.loads((engines / f"{stem}.json").read_text()) == {
        "builder": "trtexec",
        "compute_capability": "8.7",
        "file": "typed.onnx",
        "gpu": "Orin (nvgpu)",
        "model_sha256": hashlib.sha256(b"typed.onnx").hexdigest(),
        "precision": "int8",
        "rtx": False,
        "tensorrt": "10.3.0",
    }
    # The second build starts from the first one's timing cache.
    bench.build()
    assert (engines / "timing-trt10.3.0.cache").read_text() == "++\n"


def test_tensorrt_rtx_is_recognised_by_its_name(bench: Bench) -> None:
    bench.conf(PRECISION="int8")
    bench.install(RTX[0], "tensorrt_rtx")
    done = bench.run(TRTEXEC=str(bench.bin / "tensorrt_rtx"))
    assert done.returncode == 0, done.stderr
    facts = json.loads((bench.folder / "engines" / "yolo-fastest-int8-rtx1.7.1.json").read_text())
    assert (facts["rtx"], facts["gpu"], facts["compute_capability"]) == (True, None, None)
    assert (facts["tensorrt"], facts["file"]) == ("1.7.1", "typed.onnx")
    assert "--stronglyTyped" not in bench.record.read_text()


def test_a_failed_build_leaves_nothing_and_spoils_nothing(bench: Bench) -> None:
    bench.install("10.3.0")
    fail = Path(f"{bench.record}.fail")
    fail.touch()
    done = bench.run()
    assert done.returncode == 1
    assert "trtexec failed" in done.stderr
    engines = bench.folder / "engines"
    assert list(engines.iterdir()) == []
    fail.unlink()
    bench.build()
    before = {path.name: path.read_bytes() for path in engines.iterdir()}
    fail.touch()
    assert bench.run().returncode == 1
    assert {path.name: path.read_bytes() for path in engines.iterdir()} == before


def test_print_shows_a_command_that_a_shell_takes_and_runs_nothing(bench: Bench) -> None:
    bench.install("10.3.0")
    done = bench.run("--print")
    assert done.returncode == 0, done.stderr
    assert not (bench.folder / "engines").exists()
    assert not bench.record.exists()
    (bench.folder / "engines").mkdir()
    subprocess.run(["sh", "-c", done.stdout], check=True, capture_output=True)
    assert f"--onnx={bench.folder}/typed.onnx" in bench.record.read_text().splitlines()
    assert (bench.folder / "engines" / "yolo-fastest-fp16-trt10.3.0.engine").is_file()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("v8003", "TensorRT 8.0.3"),
        ("v7103", "TensorRT 7.1.3"),
        ("v9200", "TensorRT 9.2.0"),
        ("v120000", "TensorRT 12.0.0"),
        ("v10701", "TensorRT 1.7.1"),
        ("unknown", "cannot read the version"),
    ],
)
def test_an_unknown_version_is_refused(bench: Bench, code: str, said: str) -> None:
    bench.install_text(code, VERSIONS["8.5.2"][1])
    assert said in bench.refusal()


def test_a_missing_builder_is_refused_with_where_to_look(bench: Bench) -> None:
    if Path("/usr/src/tensorrt/bin/trtexec").exists() or shutil.which("trtexec"):
        pytest.skip("this machine has trtexec")
    assert "/usr/src/tensorrt/bin" in bench.refusal()
    done = bench.run(TRTEXEC="/no/such/program")
    assert done.returncode == 2
    assert "TRTEXEC" in done.stderr


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("NAME", "$(touch hacked)"),
        ("NAME", "`touch hacked`"),
        ("NAME", "a;touch hacked"),
        ("NAME", "../../elsewhere"),
        ("NAME", ".hidden"),
        ("NAME", ""),
        ("NAME", "y\r"),
        ("NAME", "é"),
        ("PRECISION", "fp8"),
        ("INPUT", "im ages"),
        ("INPUT", "images:1x1,other"),
        ("SHAPE", "3x320"),
        ("SHAPE", "3x320x320x1"),
        ("SHAPE", "3xx320"),
        ("SHAPE", "3x0x320"),
        ("SHAPE", "-1x320x320"),
        ("MIN_BATCH", "0"),
        ("MAX_BATCH", "10000000"),
        ("OPT_BATCH", "2"),
        ("DYNAMIC", "yes"),
        ("WORKSPACE_MIB", "1G"),
        ("DLA", "2"),
        ("FLOAT_LAYERS", "a,,b"),
        ("FLOAT_LAYERS", "a'b"),
        ("FLOAT_LAYERS", "*"),
        ("BOARD", "x\x1b[31m"),
        ("PATH", "/tmp"),
        ("TRTEXEC", "/tmp/evil"),
        ("name", "lower"),
        ("NAME ", "space"),
    ],
)
def test_a_hostile_or_mistaken_build_conf_is_refused(bench: Bench, key: str, value: str) -> None:
    bench.install("10.3.0")
    bench.conf(**{key: value})
    said = bench.refusal()
    assert said.startswith("build.sh: build.conf: ")
    assert "\x1b" not in said
    assert not bench.record.exists()
    assert not list(bench.folder.parent.rglob("hacked"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("SHAPE=3x320x320\n", ""),
        lambda text: text + "NAME=again\n",
        lambda text: text + "touch hacked\n",
        lambda text: "",
    ],
)
def test_a_damaged_build_conf_is_refused(bench: Bench, damage) -> None:
    bench.install("10.3.0")
    path = bench.folder / "build.conf"
    path.write_text(damage(path.read_text()))
    assert bench.refusal().startswith("build.sh: build.conf: ")


def test_comments_empty_lines_and_a_missing_last_newline_are_fine(bench: Bench) -> None:
    bench.install("10.3.0")
    path = bench.folder / "build.conf"
    path.write_text("# made by edgeyolo\n\n" + path.read_text().rstrip("\n"))
    bench.build()


def test_an_incomplete_bundle_and_unknown_arguments_are_refused(bench: Bench) -> None:
    bench.install("10.3.0")
    assert "usage" in bench.refusal("--fast")
    assert "usage" in bench.refusal("--print", "x")
    (bench.folder / "typed.onnx").unlink()
    assert "no typed.onnx" in bench.refusal()
    (bench.folder / "build.conf").unlink()
    assert "no build.conf" in bench.refusal()
