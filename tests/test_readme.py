"""What the documents say is true: commands run, options, files and links exist, the table of roundings is right."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest
from tiny_models import edgeyolo, make_tiny, succeed

from edgeyolo.cli import COMMANDS, main
from edgeyolo.export.acceptance import installed
from edgeyolo.qtype import round_shift

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("[a-z]*/README.md")])
BLOCK = re.compile(r"^(?:<!-- (\S+) -->\n)?```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INSTALL = re.compile(r"python3 -m venv \.venv && \.venv/bin/pip install -c constraints\.txt (-e )?'\.\[\w+\]' && (.+)")


def blocks(text: str) -> list[tuple[str, list[str]]]:
    """(marker, commands) of every console block."""
    return [(marker, body.strip().splitlines()) for marker, body in BLOCK.findall(text)]


def ours() -> list[str]:
    """The README's commands that need no installation, in order; of an installing line what comes behind it."""
    lines = [line for marker, body in blocks(README) for line in body if marker != "ci:test"]
    return [m[2].removeprefix(".venv/bin/") if (m := INSTALL.fullmatch(line)) else line for line in lines]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the README's commands name."""
    folder = tmp_path_factory.mktemp("readme")
    tiny = make_tiny(folder)
    for path in (tiny.cfg, tiny.weights, tiny.names):
        path.rename(path.with_stem("yolo"))
    shutil.copy(ROOT / "tests" / "fixtures" / "layers-10.json", folder / "layers.json")
    for picture in tiny.pictures.glob("*.jpg"):
        picture.with_suffix(".txt").write_text("0 0.5 0.5 0.4 0.4\n")
    return folder


ENDLESS = {"serve"}
"""Commands that run until somebody stops them."""


def test_every_command_runs_in_order(folder, monkeypatch):
    monkeypatch.chdir(folder)
    commands = ours()
    assert {shlex.split(line)[1] for line in commands if line.startswith("edgeyolo ")} == set(COMMANDS) - ENDLESS
    for line in commands:
        program, *arguments = shlex.split(line)
        if program == "make":
            if shutil.which("make") is None or shutil.which("cc") is None:
                continue
            done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            assert " 0 differ" in done.stdout
        elif arguments[0] == "build" and not installed():
            continue
        else:
            assert program == "edgeyolo", line
            result = edgeyolo(*arguments)
            assert result.exit_code == 0, f"{line}\n{result.output}"
    made = ("out/digits-fpga/manifest.json", "out/yolo8/weights/headers/network.h", "out/yolo.onnx", "drawn")
    for name in (*made, "eval.html", "out/training/last.weights"):
        assert (folder / name).exists(), name
    check_main_job(folder / "out" / "digits-fpga")


def check_main_job(bundle: Path) -> None:
    """The main job needs no file, says truly what it kept of the embedded default's AP, and its bundle is proven."""
    rows = json.loads((bundle / "manifest.json").read_text("utf-8"))["ledger"]["stages"]
    source, program = rows[0], rows[-1]
    assert source["stage"] == "source" and program["stage"] == "integer program"
    assert source["ap50"] > 0.9
    assert program["ap50"] > 0.9 * source["ap50"]  # .981 of it
    kept, figures = next(row for row in rows if row["kept"]), ("ap", "ap50", "f1", "snr_db")
    assert [program[key] for key in figures] == [kept[key] for key in figures]
    assert "31 layers" in succeed("verify", bundle).output


def test_the_two_lines_are_those_that_ci_runs():
    found = {marker: body for marker, body in blocks(README) if marker}
    assert set(found) == {"ci:main", "ci:test"}
    assert all(len(body) == 1 and INSTALL.fullmatch(body[0]) for body in found.values())
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    assert all(f"readme_line {marker}" in script for marker in found)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def _options() -> set[str]:
    """Every option of every command."""
    found = {"--help", "--version"}
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        for parameter in command.params:
            found.update([*parameter.opts, *parameter.secondary_opts])
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_option_named_exists(path):
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", path.read_text("utf-8")))
    foreign = {"--FPGA", "--reorder", "--strict"}  # of other programs: a converter that a document describes, mypy
    foreign |= {"--int8", "--fp16", "--layer", "--strongly", "--print"}  # trtexec, and build.sh
    foreign |= {"--work", "--litert-python"}  # benchmarks/peers.py
    foreign |= {"--cpu"}  # targets/engine/bench.c
    foreign |= {"--build-arg", "--rm", "--runtime", "--group-add", "--entrypoint", "--user"}  # docker
    assert named - foreign - _options() == set()


def test_options_of_the_readmes_table_are_accepted():
    rows = re.findall(r"^\| `(--[^`]+)` \|", README, re.MULTILINE)
    export = main.get_command(click.Context(main), "export")
    assert export is not None and len(rows) > 10
    for row in rows:
        context = export.make_context("export", ["yolo.cfg", "--target", "fpga", *shlex.split(row)])
        assert context.params["target"] == "fpga"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_somewhere(path):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text("utf-8"))
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_named_exists(path):
    named = re.findall(r"`((?:edgeyolo|targets|tests|docs|\.ci)/[\w./-]+)`", path.read_text("utf-8"))
    missing = [name for name in named if "NAME" not in name and not (ROOT / name).exists()]
    assert missing == []


def test_functions_that_contributing_names_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    pairs = re.findall(r"`(\w+)` \(`([\w./]+)`\)", text)
    assert len(pairs) > 8
    assert [f"{file}: {name}" for name, file in pairs if name not in (ROOT / file).read_text("utf-8")] == []


def test_the_table_of_roundings_is_right():
    text = (ROOT / "docs" / "fixed-point.md").read_text("utf-8")
    rows = re.findall(r"(?<=\| )(-?\d+) \| (-?\d+) \| (-?[\d.]+) \| (-?\d+)(?= \|)", text)
    assert len(rows) == 16
    for a, s, quotient, rounded in rows:
        assert int(a) / 2 ** int(s) == float(quotient)
        assert int(round_shift(int(a), int(s))) == int(rounded) == round(float(quotient))
