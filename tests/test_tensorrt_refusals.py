"""``edgeyolo export --target tensorrt``: what is refused, and that nothing is ever half written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorrt_bundles import command_fixture, export, print_command, settings, source_fixture, without_rtx_fixture  # noqa: F401 - fixtures
from tiny_models import Tiny, edgeyolo, refusal, succeed, tree

from edgeyolo.export import tensorrt as target

pytestmark = pytest.mark.usefixtures("without_rtx")

# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "idle"),
    [
        (("--bits", 4), "--bits"),
        (("--layout", "tiled", "--keep", "head=8"), "--keep, --layout"),
        (("--recipe", "fast"), "--recipe"),
        (("--format", "mem", "--diagnose"), "--diagnose"),
        (("--precision", "fp16", "--keep-float", "none"), "--keep-float"),
        (("--precision", "fp32", "--method", "kl"), "--method"),
        (("--precision", "fp16", "--equalise", "--reconstruct"), "--equalise, --reconstruct"),
        (("--board", "nano", "--keep-float", "none"), "--keep-float"),
        (("--board", "orin-nx", "--dla", 0, "--method", "kl"), "--method"),
        (("--max-batch", 4), "--max-batch"),
        (("--conf", 0.5), "--conf"),
        (("--decode", "--iou", 0.5), "--iou"),
        (("--data-limit", 5), "--data-limit"),
    ],
)
def test_options_that_would_do_nothing(
    options: tuple[object, ...], idle: str, command: tuple[object, ...], tmp_path: Path
) -> None:
    message = refusal(*command, "-o", tmp_path / "out", *options)
    assert "do nothing" in message and all(name in message for name in idle.split(", "))
    assert not (tmp_path / "out").exists()


def test_a_limit_without_pictures_would_do_nothing(source: Path, tmp_path: Path) -> None:
    short = ("export", source, "--target", "tensorrt", "--precision", "fp16", "-o", tmp_path / "out")
    assert "--calib-limit" in refusal(*short, "--calib-limit", 2)


def test_tensorrt_options_with_other_targets(source: Path, tiny: Tiny, tmp_path: Path) -> None:
    for options in (
        ("--precision", "int8"),
        ("--dla", 0),
        ("--keep-float", "head"),
        ("--dynamic-batch",),
        ("--decode",),
    ):
        assert options[0] in refusal(*tiny.fpga(tmp_path / "out", *options))
    for options in (("--precision", "int8"), ("--dla", 0), ("--max-batch", 2), ("--board", "nano")):
        assert options[0] in refusal("export", source, "--target", "onnx", "-o", tmp_path / "out", *options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--board", "orin-nano", "--dla", 0, "--precision", "fp16"), "orin-nano has no DLA"),
        (("--board", "gpu", "--dla", 0, "--precision", "fp16"), "gpu has no DLA"),
        (("--board", "orin-nx", "--dla", 2, "--precision", "fp16"), "0, 1"),
        (("--board", "orin-nx", "--dla", 0, "--precision", "int8"), "int8 from Q/DQ"),
        (("--board", "orin-nx", "--dla", 0, "--precision", "fp32"), "float32"),
        (("--board", "orin-nx", "--dla", 0, "--precision", "fp16", "--dynamic-batch"), "fixed batch"),
        (("--keep-float", "no-such-layer"), "no-such-layer"),
        (("--max-drop", 2), "--max-drop"),
    ],
)
def test_what_cannot_be_done_is_refused(
    options: tuple[object, ...], reason: str, command: tuple[object, ...], tmp_path: Path
) -> None:
    assert reason in refusal(*command, "-o", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_what_a_dla_leaves_to_the_gpu_is_said_before_the_work(
    command: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--board", "orin-nx", "--dla", 1, "--precision", "fp16")
    found = target.Fallback("layers.7", "MaxPool", "a window of nine")
    monkeypatch.setattr(target, "dla_fallbacks", lambda model, precision: [found])
    result = succeed(*command, "-o", tmp_path / "out", *options)
    said = result.output
    assert "DLA 1: 1 of 21 layers fall back to the GPU" in said and "layers.7 (MaxPool): a window of nine" in said
    assert said.index("fall back") < said.index("ledger")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text("utf-8"))
    assert manifest["options"]["dla"] == 1 and settings(tmp_path / "out")["DLA"] == "1"
    words = print_command(tmp_path / "out", tmp_path, "10.3.0")
    assert {"--useDLACore=1", "--allowGPUFallback", "--fp16"} <= set(words)


def test_decoding_needs_float32_layers_which_tensorrt_8_2_cannot_keep(
    command: tuple[object, ...], tmp_path: Path
) -> None:
    message = refusal(*command, "-o", tmp_path / "out", "--board", "nano", "--decode")
    assert "8.2" in message and "--precision fp32" in message and not (tmp_path / "out").exists()
    export(command, tmp_path / "out", "--board", "nano", "--decode", "--precision", "fp32")


def test_a_file_that_decodes_already(source: Path, tiny: Tiny, tmp_path: Path) -> None:
    decoded = tmp_path / "decoded.onnx"
    succeed("export", source, "--target", "onnx", "--decode", "-o", decoded)
    message = refusal("export", decoded, "--target", "tensorrt", "--calib", tiny.pictures, "-o", tmp_path / "out")
    assert "boxes, scores" in message and "raw heads" in message and not (tmp_path / "out").exists()


def test_what_tensorrt_rtx_refuses_is_not_written(
    command: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "accept", lambda *_: target.Acceptance("refused", "no kernel for layers.7"))
    message = refusal(*command, "-o", tmp_path / "out", "--precision", "fp16")
    assert "no kernel for layers.7" in message and "--no-accept" in message and not (tmp_path / "out").exists()
    result = succeed(*command, "-o", tmp_path / "out", "--precision", "fp16", "--no-accept", "--json")
    assert json.loads(result.stdout)["accepted"] == {"status": "skipped", "text": "--no-accept"}


def test_max_drop(command: tuple[object, ...], tmp_path: Path) -> None:
    result = edgeyolo(*command, "-o", tmp_path / "out", "--max-drop", 0, "--keep-float", "none", "--method", "minmax")
    assert result.exit_code == 3 and "--max-drop" in result.stderr and (tmp_path / "out/manifest.json").is_file()
    succeed(*command, "-o", tmp_path / "fine", "--max-drop", 1)


# --- the output -------------------------------------------------------------------------------------------------------


def test_an_existing_output(command: tuple[object, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(command, out, "--precision", "fp16")
    before = tree(out)
    message = refusal(*command, "-o", out)
    assert "exists" in message and "--force" in message and "load " not in message and tree(out) == before
    (out / "engines").mkdir()
    (out / "engines/old.engine").write_bytes(b"built from the old graph")
    export(command, out, "--precision", "fp32", "--force")
    other = tmp_path / "photos"
    other.mkdir()
    (other / "a.jpg").write_bytes(b"mine")
    assert "not a bundle" in refusal(*command, "-o", other, "--force")
    assert [path.name for path in other.iterdir()] == ["a.jpg"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk", "ctrl-c"])
@pytest.mark.parametrize("force", [False, True])
def test_nothing_half_written(
    error: BaseException, force: bool, command: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "deep"
    out = folder / "out"
    if force:
        export(command, out, "--precision", "fp32")
    before, write = tree(tmp_path), Path.write_bytes

    def fail(path: Path, data: bytes) -> int:
        if path.name == "report.json":
            raise error
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", fail)
    result = edgeyolo(*command, "-o", out, "--precision", "fp16", *(["--force"] if force else []))
    monkeypatch.undo()
    assert result.exit_code != 0 and "Traceback" not in result.output
    if isinstance(error, OSError):
        assert result.exit_code == 2 and "No space left" in result.stderr
    assert tree(tmp_path) == before and folder.exists() == force


def test_an_error_in_the_middle_leaves_nothing(
    command: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("in the middle")

    monkeypatch.setattr(target, "device_files", fail)
    result = edgeyolo(*command, "-o", tmp_path / "out", "--precision", "fp32")
    assert isinstance(result.exception, ValueError) and list(tmp_path.iterdir()) == []
