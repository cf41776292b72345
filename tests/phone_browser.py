"""The phone page in a real browser: opens it, and waits for what comes of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from phone_site import Site, tiny_models
from tiny_models import Tiny, succeed

from edgeyolo.bench.record import read_records
from edgeyolo.errors import InputError
from edgeyolo.serve.ortweb import find_runtime

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update")  # fmt: skip
SECONDS = 90
"""How long a browser may take on a machine with other work."""
PLAIN = "phone.test"
"""A name whose pages are not secure to a browser when they come over http, as a LAN address is."""

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


@contextmanager
def browsing(url: str, profile: Path, flags: Sequence[str] = ()) -> Iterator[None]:
    """Have the page open until the block ends."""
    assert CHROMIUM is not None
    rules = f"--host-resolver-rules=MAP {PLAIN} 127.0.0.1"
    call = [CHROMIUM, *FLAGS, *flags, rules, f"--user-data-dir={profile}", url]
    process = subprocess.Popen(
        call, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def wait_for(condition: Callable[[], Any], what: str) -> None:
    """Raise AssertionError if it does not become true."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"no {what} after {SECONDS} s"
        time.sleep(0.05)


def written(here: Site, count: int = 1) -> bool:
    """Whether so many records are in the results file."""
    return here.results.exists() and here.results.read_text().count("\n") >= count


def visit(
    here: Site, query: str, folder: Path, host: str = "127.0.0.1", flags: Sequence[str] = (), count: int = 1
) -> list[Any]:
    """Open the page, wait for so many records, return them."""
    with browsing(here.url.replace("127.0.0.1", host) + query, folder / "profile", flags):
        wait_for(lambda: written(here, count), f"record; the server said {here.lines}")
    return read_records(here.results)


def patch(here: Site, old: bytes, new: bytes) -> None:
    """Change the page's scripts."""
    found = {name: body for name, body in here.server.bodies.items() if name.endswith(".js") and old in body[1]}
    assert found, f"no script has {old!r}"
    here.server.bodies |= {name: (kind, body.replace(old, new)) for name, (kind, body) in found.items()}


def extend(here: Site, name: str, code: bytes) -> None:
    """Let a script of the page do something more."""
    kind, body = here.server.bodies[name]
    here.server.bodies[name] = (kind, body + code)


def hurry(here: Site) -> None:
    """Let pages warm up for a moment only, and report so often that a short run has many reports."""
    patch(here, b"WARMUP_MS = 10000;", b"WARMUP_MS = 100;")
    patch(here, b"TELL_MS = 1000;", b"TELL_MS = 50;")
    patch(here, b"TELL_MS = 250;", b"TELL_MS = 50;")


PROBE = b"""
const told = (list) => [...list].map((one) => ({ text: one.textContent, color: getComputedStyle(one).color }));
new MutationObserver(async () => {
  const body = JSON.stringify({
    verdicts: told(document.querySelectorAll(".verdict")),
    rows: [...document.querySelectorAll("#compared tr")].map((row) => told(row.children)),
    state: element("state").textContent,
  });
  await fetch("probe", { method: "POST", body });
}).observe(document.documentElement, { attributeFilter: ["data-end"] });
"""
"""Tells what the page shows when it has ended."""


def probe(here: Site) -> dict[str, Any]:
    """What the page shows when it has ended, once that is so."""
    shown: dict[str, Any] = {}
    extend(here, "page.js", PROBE)
    here.server.posts["probe"] = lambda data: shown.update(data) or {}
    return shown


def tiny_onnx(tiny: Tiny, folder: Path) -> Path:
    """The tiny model as one float file."""
    model = folder / "tiny.onnx"
    succeed("export", *tiny.model(), "--names", tiny.names, "--target", "onnx", "-o", model)
    return model


def site_parts(model: Path, pictures: Path) -> dict[str, Any]:
    """What ``site`` needs to serve a model or a bundle; skips where nobody has fetched the runtime."""
    try:
        runtime = find_runtime(None)
    except InputError as error:
        pytest.skip(str(error))
    models, golden, photos = tiny_models(model, pictures)
    return {"models": models, "golden": golden, "photos": photos, "runtime": runtime}
