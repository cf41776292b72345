"""Bad input at the command line: one clear message, exit code 2, nothing on stdout, no traceback, nothing written."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bundle_surgery import edit_manifest
from tiny_models import Tiny, edgeyolo, refusal, succeed, tree

import edgeyolo as package
from edgeyolo.cli import COMMANDS
from edgeyolo.errors import InputError

as_user = pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read and write everything")
COMMAND = (sys.executable, "-c", "from edgeyolo.cli import main; main(prog_name='edgeyolo')")
TINY_DISK = 20_000
"""Bytes that a file may have in the test of a full disk: less than the QDQ file needs."""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where a refused command must not write: a folder that does not exist, in a folder that does not exist."""
    return tmp_path / "results" / "out"


def left(folder: Path) -> list[str]:
    """Everything in ``folder``, hidden files too."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def only_layers_left(folder: Path, out: Path) -> bool:
    """Whether of an export to ``out`` only finished layers are left, from which the same command would go on."""
    partial = out.with_name("out.partial")
    layers = {p for p in folder.rglob("*") if p.suffix == ".npz" and p.parent.parent == partial}
    return bool(layers) and {*folder.rglob("*")} == layers | {p.parent for p in layers} | {partial, out.parent}


def process(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False, **options
    )  # type: ignore


# --- help ------------------------------------------------------------------------------------------------------------


def test_help_names_every_command_and_examples() -> None:
    text = succeed("--help").stdout
    assert all(name in text for name in COMMANDS)
    for name in COMMANDS:
        text = succeed(name, "-h").stdout
        assert f"edgeyolo {name} " in text.split("Examples:")[1], f"{name} shows how it is used"
        assert all(len(line) <= 120 for line in text.splitlines())


def test_version_and_unknown_commands() -> None:
    assert succeed("--version").stdout == f"edgeyolo, version {package.__version__}\n"
    assert "No such command 'explode'" in refusal("explode")
    assert "No such option" in refusal("verify", "x", "--explode")


def test_a_missing_package_is_named(tiny: Tiny, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device without the toolchain."""

    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("edgeyolo.frontend.load_source", missing)
    message = refusal(*tiny.fpga(out))
    assert "torch" in message and "edgeyolo[export]" in message


def test_a_mistake_of_ours_is_not_dressed_up_as_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("edgeyolo.bundle.read_target", broken)
    assert isinstance(edgeyolo("verify", tmp_path).exception, ZeroDivisionError)


def test_errors_say_what_where_got_allowed_and_next() -> None:
    error = InputError("what", where="w", got="g", allowed="a", hint="h")
    assert str(error) == "what\n  where: w\n  got: g\n  allowed: a\n  next: h"
    assert str(InputError("only what")) == "only what"


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--bits", 1), "2 to 8"),
        (("--bits", 9), "2 to 8"),
        (("--bits", "four"), "--bits"),
        (("--act-bits", 3), "4 to 16"),
        (("--act-bits", 17), "4 to 16"),
        (("--layout", "nchw"), "oihw, ohwi, tiled, seed-v1"),
        (("--format", "bin,elf"), "bin, mem, coe, h"),
        (("--format", ""), "bin, mem, coe, h"),
        (("--board", "de10-nano"), "zynq-7020"),
        (("--board", "missing.toml"), "missing.toml"),
        (("--granularity", "per-layer"), "per-channel, per-tensor"),
        (("--method", "best"), "mse, minmax, percentile, nearest, kl"),
        (("--keep", "first"), "first,head,depthwise=8"),
        (("--keep", "first=1"), "2 to 8"),
        (("--keep", "first=8/3"), "4 to 16"),
        (("--golden", -1), "--golden"),
        (("--max-drop", 1.5), "0 to 1"),
        (("--max-drop", "nan"), "0 to 1"),
        (("--calib-limit", 0), "--calib-limit"),
        (("--data-limit", 2), "without --data"),
        (("--decode",), "--decode"),
        (("--dynamic-batch",), "--dynamic-batch"),
        (("--conf", 0.1), "--conf"),
    ],
)
def test_bad_options_are_refused_before_any_work(options: tuple[object, ...], says: str, tiny: Tiny, out: Path) -> None:
    message = refusal(*tiny.fpga(out, *options))
    assert says in message and "load " not in message
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--bits", 4), "--bits"),
        (("--layout", "tiled", "--golden", 2), "--layout, --golden"),
        (("--conf", 0.1), "without --nms"),
        (("--nms", "--iou", 1.5), "0 to 1"),
        (("--imgsz", "60"), "64x64"),
        (("--imgsz", "big"), "--imgsz"),
    ],
)
def test_bad_options_of_target_onnx(options: tuple[object, ...], says: str, tiny: Tiny, out: Path) -> None:
    assert says in refusal("export", *tiny.model(), "--target", "onnx", "-o", out, *options)
    assert not out.parent.exists()


def test_an_unknown_target_lists_the_known_ones(tiny: Tiny, out: Path) -> None:
    message = refusal("export", *tiny.model(), "--target", "gpu", "-o", out)
    assert "fpga" in message and "onnx" in message
    assert "--target" in refusal("export", *tiny.model(), "-o", out)


# --- files -----------------------------------------------------------------------------------------------------------


def test_missing_files_are_named(tiny: Tiny, out: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    common = ("--calib", tiny.pictures, "--target", "fpga", "-o", out)
    for model in (nowhere.with_suffix(".cfg"), nowhere.with_suffix(".onnx"), nowhere, tmp_path):
        assert str(model) in refusal("export", model, "--weights", tiny.weights, *common)
    assert str(nowhere) in refusal("export", tiny.cfg, "--weights", nowhere, *common)
    assert "--weights" in refusal("export", tiny.cfg, *common)
    assert str(nowhere) in refusal("export", *tiny.model(), "--names", nowhere, *common)
    assert str(nowhere) in refusal(*tiny.fpga(out, "--calib", nowhere))
    assert "--calib" in refusal("export", *tiny.model(), "--target", "fpga", "-o", out)
    assert "no model given" in refusal("export", "--target", "fpga", "--weights", tiny.weights, "-o", out)
    assert str(nowhere) in refusal("verify", nowhere)
    assert left(tmp_path) == []


def test_files_of_another_kind_are_refused(tiny: Tiny, out: Path, tmp_path: Path) -> None:
    common = ("--calib", tiny.pictures, "--target", "fpga", "-o", out)
    for name, data in (
        ("a.onnx", b"not ONNX"),
        ("b.cfg", b"\x00\xff"),
        ("c.txt", b"x"),
        ("d.onnx", b""),
        ("e.cfg", b""),
    ):
        (tmp_path / name).write_bytes(data)
        weights = ("--weights", tiny.weights) if name.endswith(".cfg") else ()
        assert name in refusal("export", tmp_path / name, *weights, *common)
    assert "weights" in refusal("export", tiny.cfg, "--weights", tiny.cfg, *common)
    assert "--weights" in refusal("export", tmp_path / "a.onnx", "--weights", tiny.weights, *common)
    assert not out.parent.exists()


def test_a_wrong_number_of_class_names_is_refused(tiny: Tiny, out: Path, tmp_path: Path) -> None:
    names = tmp_path / "three.names"
    names.write_text("a\nb\nc\n", "utf-8")
    assert "3" in refusal(*tiny.fpga(out, "--names", names))
    succeed("export", *tiny.model(), "--target", "onnx", "-o", tmp_path / "tiny.onnx")
    command = ("export", tmp_path / "tiny.onnx", "--calib", tiny.pictures, "--target", "fpga", "-o", out)
    assert "3" in refusal(*command, "--names", names)
    assert not out.parent.exists()


def test_calibration_without_a_usable_picture(tiny: Tiny, out: Path, tmp_path: Path) -> None:
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    broken.mkdir()
    for index in range(3):
        (broken / f"{index}.jpg").write_bytes(b"\xff\xd8\xff broken")
    assert "no pictures found" in refusal(*tiny.fpga(out, "--calib", empty))
    assert "none of 3 pictures" in refusal(*tiny.fpga(out, "--calib", broken))
    listing = tmp_path / "list.txt"
    listing.write_text("missing-1.jpg\nmissing-2.jpg\n", "utf-8")
    assert "none of 2 pictures" in refusal(*tiny.fpga(out, "--calib", listing))
    assert not out.parent.exists()


@as_user
def test_unreadable_files_are_named(tiny: Tiny, good_bundle: Path, out: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.weights"
    shutil.copy(tiny.weights, secret)
    secret.chmod(0)
    assert "secret.weights" in refusal("export", tiny.cfg, "--weights", secret, *tiny.fpga(out)[3:])
    shutil.copytree(good_bundle, tmp_path / "bundle")
    (tmp_path / "bundle/program.bin").chmod(0)
    assert "program.bin" in refusal("verify", tmp_path / "bundle")


# --- output ----------------------------------------------------------------------------------------------------------


def test_the_default_output_stands_in_out(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    succeed("export", *tiny.model(), "--calib", tiny.pictures, "--target", "fpga", "--golden", 0)
    succeed("export", *tiny.model(), "--target", "onnx")
    succeed("export", *tiny.model(), "--target", "onnx", "-o", "named")
    assert left(tmp_path)[:2] == ["named.onnx", "out"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["tiny-fpga", "tiny-onnx.onnx"]


def test_an_existing_bundle_is_replaced_only_with_force(tiny: Tiny, good_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(good_bundle, bundle)
    before = tree(bundle)
    message = refusal(*tiny.fpga(bundle))
    assert "--force" in message and "load " not in message and tree(bundle) == before
    succeed(*tiny.fpga(bundle, "--force", "--golden", 0))
    assert tree(bundle) != before and not (bundle / "golden").exists()
    assert left(tmp_path)[0] == "bundle" and len(list(tmp_path.iterdir())) == 1


def test_force_never_deletes_what_is_not_a_bundle(tiny: Tiny, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "manifest.json").write_text('{"name": "a web application"}', "utf-8")
    (photos / "photo.jpg").write_bytes(b"photo")
    before = tree(tmp_path)
    message = refusal(*tiny.fpga(photos, "--force"))
    assert "left alone" in message and "load " not in message
    assert "is a folder" in refusal(
        "export", *tiny.model(), "--target", "onnx", "--force", "-o", mkdir(tmp_path / "d.onnx")
    )
    assert tree(tmp_path) == before


def mkdir(path: Path) -> Path:
    path.mkdir()
    return path


def test_an_existing_onnx_file_needs_force(tiny: Tiny, tmp_path: Path) -> None:
    target = tmp_path / "tiny.onnx"
    target.write_bytes(b"mine")
    command = ("export", *tiny.model(), "--target", "onnx", "-o", target)
    message = refusal(*command)
    assert "--force" in message and "load " not in message and target.read_bytes() == b"mine"
    succeed(*command, "--force")
    assert target.read_bytes() != b"mine" and left(tmp_path) == ["tiny.onnx"]


def test_a_file_where_a_folder_should_be(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", "utf-8")
    commands = [
        tiny.fpga(tmp_path / "file/out"),
        tiny.fpga(tmp_path / "file"),
        tiny.fpga(tmp_path / "file", "--force"),
        tiny.fpga(tmp_path / "out", "--save-stages", tmp_path / "file"),
        ("export", *tiny.model(), "--target", "onnx", "-o", tmp_path / "file/out.onnx"),
    ]
    for command in commands:
        assert str(tmp_path / "file") in refusal(*command)
    assert left(tmp_path) == ["file"]


@as_user
def test_a_folder_that_may_not_be_written(tiny: Tiny, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    message = refusal(*tiny.fpga(closed / "out"))
    assert "permission" in message.lower() and "load " not in message


@pytest.mark.parametrize("target", ["fpga", "onnx"])
@pytest.mark.parametrize("failing", ["write_bytes", "rename", "replace"])
def test_a_full_disk_leaves_nothing(
    target: str, failing: str, tiny: Tiny, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    succeeds = (target, failing) in {("fpga", "replace"), ("onnx", "rename"), ("onnx", "write_bytes")}
    recipe = "default" if succeeds else "fast"  # where finished layers cannot be kept, the export goes on without
    fpga = tiny.fpga(out, "--recipe", recipe)
    command = fpga if target == "fpga" else ("export", *tiny.model(), "--target", "onnx", "-o", out)
    monkeypatch.setattr(Path, failing, full)
    if succeeds:
        succeed(*command)
        return
    result = edgeyolo(*command)
    assert result.exit_code == 2 and "No space left on device" in result.stderr and "Traceback" not in result.stderr
    monkeypatch.undo()
    assert left(tmp_path) == []


def test_an_interrupt_leaves_only_finished_layers(
    tiny: Tiny, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import edgeyolo.export.fpga as fpga

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fpga, "write_golden", interrupt)
    for options, nothing in ((("--recipe", "fast"), True), ((), False)):
        result = edgeyolo(*tiny.fpga(out, *options))
        assert result.exit_code == 1 and result.stderr.rstrip().endswith("Aborted!")
        assert left(tmp_path) == [] if nothing else only_layers_left(tmp_path, out)


# --- real processes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["fast", "default"])
def test_a_limit_on_file_size_is_a_message_not_a_traceback(recipe: str, tiny: Tiny, out: Path, tmp_path: Path) -> None:
    """What a full disk does, done by the operating system."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (TINY_DISK, TINY_DISK))

    done = process(*tiny.fpga(out, "--format", "bin,mem,coe,h", "--recipe", recipe), preexec_fn=limit)
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stderr and "File too large" in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""
    assert left(tmp_path) == [] if recipe == "fast" else only_layers_left(tmp_path, out)


def test_a_real_interrupt_leaves_nothing(tiny: Tiny, out: Path, tmp_path: Path) -> None:
    def listen() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a suite in the background inherits that it is ignored

    started = subprocess.Popen(
        [*COMMAND, *map(str, tiny.fpga(out))],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen,  # noqa: PLW1509 - it only sets a signal
    )  # fmt: skip
    assert started.stderr is not None
    first = started.stderr.readline()
    assert first.startswith("load"), first
    started.send_signal(signal.SIGINT)
    _, rest = started.communicate(timeout=60)
    assert started.returncode == 1 and "Traceback" not in rest
    assert left(tmp_path) == []


def test_a_hostile_bundle_in_a_real_process(good_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(good_bundle, bundle)
    edit_manifest(bundle, lambda m: m["files"].update({"../x": {"bytes": 0, "sha256": ""}}))
    for command in (("verify", bundle), ("detect", bundle, bundle / "manifest.json")):
        done = process(*command)
        assert done.returncode == 2 and done.stdout == "" and "leaves the bundle" in done.stderr
        assert "Traceback" not in done.stderr


def test_json_through_a_pipe_is_json_alone(tiny: Tiny, out: Path) -> None:
    done = process(*tiny.fpga(out, "--json"))
    assert done.returncode == 0 and done.stderr == ""
    assert json.loads(done.stdout)["output"] == str(out)
    assert "\x1b" not in done.stdout


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    code = "import sys, edgeyolo.cli; print([m for m in ('torch', 'onnx', 'numpy', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
