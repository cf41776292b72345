"""``edgeyolo serve``."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeyolo.errors import InputError
from edgeyolo.nms import IOU, MAX_DET
from edgeyolo.postprocess import CONF

if TYPE_CHECKING:
    from edgeyolo.bench.record import RunRecord
    from edgeyolo.progress import Log
    from edgeyolo.serve.desk import Desk

PATH = click.Path(path_type=Path)

EPILOG = """\b
Examples:
  edgeyolo serve yolo.onnx --json results.jsonl
  edgeyolo serve out/yf-mobile --json results.jsonl --images pictures/
  edgeyolo serve yolo.onnx --cert cert.pem --key key.pem

Open the printed address in the browser of a phone in the same network. Several models are measured in turns, with
ratios to the first. Over plain http a browser gives such a page one thread, no WebGPU and no camera; `adb reverse
tcp:8000 tcp:8000` and the localhost address on an Android phone, or --cert and --key, give all of it (docs/phone.md).
Ctrl-C ends the server and prints what came in, and so do SIGTERM and SIGHUP.

Exit codes: 0 done, 2 bad input, or a record that could not be written.
"""


@click.command(epilog=EPILOG)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=PATH)
@click.option("--json", "results", type=PATH, help="Append one JSON line a measurement to this file.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--host", default="0.0.0.0", show_default=True, help="Address to listen on; 127.0.0.1 is this machine.")
@click.option("--images", type=PATH, help="Golden pictures: file, folder or list, the first 8 [default: scenes].")
@click.option("--conf", default=CONF, show_default=True, type=click.FloatRange(0, 1), help="Score threshold.")
@click.option("--iou", default=IOU, show_default=True, type=click.FloatRange(0, 1), help="Overlap threshold.")
@click.option("--max-det", default=MAX_DET, show_default=True, type=click.IntRange(min=1), help="Boxes that may stay.")
@click.option("--frames", default=100, show_default=True, type=click.IntRange(1, 10000), help="Frames of each model.")
@click.option("--runtime", type=PATH, help="Your own onnxruntime-web/dist [default: what ships with the package].")
@click.option("--cert", type=PATH, help="Certificate for https, in PEM.")
@click.option("--key", type=PATH, help="Its key, in PEM.")
def serve(
    models: tuple[Path, ...], results: Path | None, port: int, host: str, images: Path | None, conf: float, iou: float,
    max_det: int, frames: int, runtime: Path | None, cert: Path | None, key: Path | None,
) -> None:  # fmt: skip
    """Serve a page on which any phone of the network measures and checks every MODEL (.onnx or bundle)."""
    from edgeyolo.bench.frames import Setting
    from edgeyolo.bench.harness import ending_like_ctrl_c
    from edgeyolo.bench.record import append_records
    from edgeyolo.progress import Log
    from edgeyolo.serve.desk import Desk
    from edgeyolo.serve.golden import compute_golden, open_photos
    from edgeyolo.serve.ortweb import find_runtime
    from edgeyolo.serve.served import all_served
    from edgeyolo.serve.server import PhoneServer, routes

    log = Log()
    if (cert is None) != (key is None):
        raise InputError("https needs both", got="one of them", allowed="--cert FILE --key FILE")
    files = find_runtime(runtime)
    served = all_served(models)
    setting = Setting(conf, iou, max_det)
    photos = open_photos(images)
    golden = [compute_golden(model, photos, setting) for model in served]
    if results is not None:
        append_records(results, [])

    def keep(record: RunRecord) -> None:
        if results is not None:
            append_records(results, [record])

    def say(text: str) -> None:
        with suppress(OSError):  # after a SIGHUP there is no terminal; what was measured is kept all the same
            log.say(text)

    desk = Desk(served, setting, len(photos), keep, say)
    bodies = routes(served, photos, golden, setting, files, frames)
    tls = None if cert is None or key is None else (cert, key)
    with PhoneServer((host, port), bodies, desk, tls) as server, ending_like_ctrl_c():
        with suppress(KeyboardInterrupt):
            _welcome(server.urls(), results, log)
            server.serve_forever()
        _close(desk)
    _farewell(desk, results, log)


def _welcome(urls: Sequence[str], results: Path | None, log: Log) -> None:
    """Say where the page is."""
    for url in urls:
        log.say(f"open {url}")
    with suppress(ImportError):  # segno is optional, and small
        importlib.import_module("segno").make(urls[-1], error="l").terminal(compact=True)
    if results is None:
        log.warn("without --json FILE the results are shown and then forgotten")
    log.say("Ctrl-C ends")


def _close(desk: Desk) -> None:
    """Keep what phones have measured. A second signal, as of a terminal that is closed, does not interrupt that."""
    closed = threading.Event()

    def close() -> None:
        try:
            desk.close()
        finally:
            closed.set()

    threading.Thread(target=close).start()
    while not closed.is_set():
        with suppress(KeyboardInterrupt):
            closed.wait()


def _farewell(desk: Desk, results: Path | None, log: Log) -> None:
    """Show what came in. Raises InputError if some of it could not be written."""
    from edgeyolo.bench.tables import run_table

    if not desk.records:
        log.say("no phone has measured anything")
        return
    log.table(run_table(desk.records))
    if results is not None:
        log.say(f"{len(desk.records) - len(desk.unsaved)} added to {results}")
    if desk.unsaved:
        raise InputError("records could not be written", where=results, got=f"{len(desk.unsaved)} of them")
