"""``edgeyolo serve`` as a process: signals end it, and what phones measured until then is written once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from phone_site import Site
from tiny_models import Tiny, succeed

from edgeyolo.bench.record import read_records
from edgeyolo.serve.ortweb import BACKENDS

BEGIN = {"models": [0, 1], "source": "golden", "backend": "wasm", "threads": 2, "system": "Phone", "device": "",
         "machine": {}}  # fmt: skip
ROW = [0, 0, 1.0, 20.0, 0.5, 0.25, 21.75, 9, 3]
MAIN = "from edgeyolo.cli import main; main(prog_name='edgeyolo')"
SLOW = """
import os, sys, time
from edgeyolo.serve import desk
calls = []
def fsync(number):
    calls.append(number)
    print("writing", len(calls), file=sys.stderr, flush=True)
    while len(calls) > 1 and not os.path.exists("go"):
        time.sleep(0.02)
desk.SILENCE_SECONDS, os.fsync = 0.2, fsync
"""
"""Phones are soon given up, and the disk keeps no record before there is a file."""


@pytest.fixture(scope="module")
def folder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a runtime that this server does not execute."""
    folder = tmp_path_factory.mktemp("served")
    succeed("export", *tiny.model(), "--names", tiny.names, "--target", "onnx", "-o", folder / "tiny.onnx")
    for name in BACKENDS["wasm"]:
        (folder / name).write_bytes(b"runtime")
    return folder


@pytest.mark.parametrize(("name", "before"), [("SIGTERM", ""), ("SIGHUP", SLOW), ("SIGINT", SLOW)])
def test_signals_end_the_command_cleanly_and_every_record_is_written_once(name, before, folder, tiny, tmp_path):
    words = [*[folder / "tiny.onnx"] * 2, "--json", tmp_path / "r.jsonl", "--images", tiny.pictures]
    options = ["--runtime", folder, "--port", "0", "--host", "127.0.0.1"]
    call = [sys.executable, "-c", before + MAIN, "serve", *map(str, (*words, *options))]
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        url = next(line for line in process.stderr if line.startswith("open ")).removeprefix("open ").strip()
        assert url.startswith("http://127.0.0.1:")
        here = Site(None, None, tmp_path / "r.jsonl")
        ask = lambda path, data: json.loads(here.ask(url + path, json.dumps(data).encode())[1])  # noqa: E731
        run = ask("start", {**BEGIN, "session": ask("open", {})["session"]})["run"]
        ask("report", {"run": run, "first": 0, "frames": [ROW, [1, *ROW[1:]]]})
        if before:
            next(line for line in process.stderr if line.startswith("writing 2"))
        for _ in range(3 if before else 1):  # the second and third while the desk is closed
            process.send_signal(getattr(signal, name))
            time.sleep(0.2 if before else 0)
        (tmp_path / "go").touch()
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0 and "Traceback" not in err, err
    assert "tiny.onnx" in out and "21.75" in out
    assert [record.status for record in read_records(here.results)] == ["stopped"] * 2
