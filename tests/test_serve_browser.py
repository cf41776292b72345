"""The phone page in a real browser: it measures, checks itself with golden data, and its record is in the results."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phone_browser import (
    PLAIN,
    browsing,
    extend,
    hurry,
    needs_browser,
    patch,
    probe,
    site_parts,
    tiny_onnx,
    visit,
    wait_for,
    written,
)
from phone_site import site
from tiny_models import Tiny

from edgeyolo.bench.record import read_records
from edgeyolo.detector import NMS_KINDS, RESIZES, Detector, Head, Preprocess
from edgeyolo.images import to_input
from edgeyolo.nms import _corners, _overlap, _penalty, nms
from edgeyolo.postprocess import decode, detect, head_entries
from edgeyolo.serve.desk import GONE
from edgeyolo.serve.ortweb import BACKENDS, VERSION
from edgeyolo.serve.server import TYPES

pytestmark = needs_browser


@pytest.fixture(scope="module")
def parts(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = site_parts(tiny_onnx(tiny, tmp_path_factory.mktemp("served")), tiny.pictures)
    assert sum(len(one.detections) for one in found["golden"][0]) > 3
    return found


class Asked(dict[str, Any]):
    """Bodies that note in which order they are fetched."""

    def __init__(self, bodies: Any) -> None:
        super().__init__(bodies)
        self.paths: list[str] = []

    def get(self, path: str, default: Any = None) -> Any:
        self.paths.append(path)
        return super().get(path, default)


def test_the_page_measures_and_its_record_is_in_the_results_file(parts, tmp_path):
    with site(**parts, results=tmp_path / "r.jsonl") as here:
        report = here.server.posts["report"]
        here.server.posts["report"] = lambda data: time.sleep(0.3) or report(data)  # frames come in meanwhile
        here.server.bodies = asked = Asked(here.server.bodies)
        (record,) = visit(here, "?auto=1&backend=wasm&threads=2&frames=60", tmp_path)
    assert (record.status, record.reason, record.frames) == ("ok", None, 60), record
    threads = min(2, len(os.sched_getaffinity(0)))  # a browser offers no more than it may use itself
    assert (record.backend, record.threads, record.pictures) == ("ort-web wasm", threads, len(parts["photos"]))
    assert record.backend_version == VERSION
    assert record.machine["isolated"] is True
    assert "same boxes" in record.machine["golden"]
    # The page decoded the picture files itself, resized them and suppressed the boxes: two rounds over all pictures.
    golden = parts["golden"][0]
    assert record.candidates == pytest.approx(np.mean([one.candidates for one in golden]), rel=0.1)
    assert record.kept == pytest.approx(np.mean([len(one.detections) for one in golden]), rel=0.1)
    assert record.ms["total"]["min"] > 0 and record.load_ms > 0 and record.first_ms > 0
    # The clock of load_ms starts when the model is here, which nothing of the runtime may follow.
    early = asked.paths[: asked.paths.index("model/0")]
    assert {f"runtime/{name}" for name in BACKENDS["wasm"]} <= set(early), asked.paths


AGAIN = b"""
new MutationObserver(async () => {
  const [choice, note] = [element("sources"), element("nocamera")];
  const body = JSON.stringify({ hidden: choice.offsetParent === null, note: note.offsetParent && note.textContent });
  await fetch("probe", { method: "POST", body });
  if (wanted.has("device")) location = "?auto=1&frames=3";
}).observe(document.documentElement, { attributeFilter: ["data-end"] });
"""
"""Tells whether there was a choice of a camera, and comes back without a name in the address."""


def test_a_page_over_plain_http_has_one_thread_and_no_camera_and_remembers_its_name(parts, tmp_path):
    told: dict[str, Any] = {}
    with site(**parts, results=tmp_path / "r.jsonl") as here:
        hurry(here)
        extend(here, "page.js", AGAIN)
        here.server.posts["probe"] = lambda data: told.update(data) or {}
        query = "?auto=1&threads=2&frames=3&source=camera&device=Zo%C3%AB%27s%20phone"
        records = visit(here, query, tmp_path, PLAIN, count=2)
    assert [(record.status, record.threads) for record in records] == [("ok", 1)] * 2, records
    assert records[0].machine["secure_context"] is False and records[0].machine["gpu"] is None
    assert told["hidden"] and told["note"].startswith("No camera: ")
    assert [record.contender for record in records] == ["tiny.onnx ort-web wasm x1 on Zo\u00eb's phone"] * 2


def test_a_phone_that_was_offline_delivers_all_of_its_frames_as_another_run(parts, tmp_path):
    clock, jump = time.monotonic, [0.0]
    with site(**parts, results=tmp_path / "r.jsonl", clock=lambda: clock() + jump[0]) as here:
        report = here.server.posts["report"]

        def then_silent(data: Any) -> Any:
            answer = report(data)
            if data["frames"] and not jump[0]:  # until the server has forgotten the page as well
                jump[0] = 1000.0
                here.desk.sweep()
                here.desk.open("another phone")
            return answer

        here.server.posts["report"] = then_silent
        hurry(here)
        patch(here, b"MOST_ROWS = 5000;", b"MOST_ROWS = 50;")  # so that they come back in several reports
        with browsing(here.url + "?auto=1&frames=300", tmp_path / "profile"):
            wait_for(lambda: here.written(2), f"second record; the server said {here.lines}")
        first, second = read_records(here.results)
    assert (first.status, first.reason) == ("stopped", GONE) and 0 < first.frames < 300
    assert (second.status, second.frames) == ("ok", 300) and second.run != first.run
    assert second.totals_ms[: first.frames] == first.totals_ms and second.load_ms == first.load_ms


def test_wrong_results_are_shown_in_red_and_recorded_as_failed(parts, tmp_path):
    golden = parts["golden"][0]
    spoilt = [replace(one, heads=[head * np.float32(1.01) for head in one.heads]) for one in golden]
    with site(**{**parts, "golden": [spoilt]}, results=tmp_path / "r.jsonl") as here:
        shown = probe(here)
        with browsing(here.url + "?auto=1&frames=3", tmp_path / "profile"):
            wait_for(lambda: shown, f"page that has ended; the server said {here.lines}")
        (record,) = read_records(here.results)
    assert record.status == "failed" and record.reason.startswith("golden data: heads agree to 40."), record.reason
    assert record.frames == 0
    (verdict,) = shown["verdicts"]
    red, green, blue = map(int, re.findall(r"\d+", verdict["color"])[:3])
    assert red > 2 * max(green, blue) and "Wrong results" in verdict["text"] and "Failed" in shown["state"], shown


def test_a_browser_that_dies_leaves_what_it_measured(parts, tmp_path):
    clock = time.monotonic
    jump = [0.0]
    with site(**parts, results=tmp_path / "r.jsonl", clock=lambda: clock() + jump[0]) as here:
        with browsing(here.url + "?auto=1&frames=10000", tmp_path / "profile"):
            wait_for(lambda: any(run.frames for run in here.desk.runs()), "frames")
        jump[0] = 100.0
        wait_for(lambda: written(here), "record")
        (record,) = read_records(here.results)
    assert record.status == "stopped" and 0 < record.frames < 10000


# --- the page's arithmetic -------------------------------------------------------------------------------------------


class _Cases(BaseHTTPRequestHandler):
    """The page's modules, the driver, its cases, and where it reports."""

    server: Any

    def do_GET(self) -> None:
        name = self.path.removeprefix("/") or "driver.html"
        body = self.server.bodies.get(name)
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Type", TYPES.get(Path(name).suffix, "application/json"))
        self.end_headers()
        self.wfile.write(body or b"")

    def do_POST(self) -> None:
        self.server.report = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def in_browser(cases: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run the driver on the cases."""
    bodies = {e.name: e.read_bytes() for e in files("edgeyolo.serve").joinpath("page").iterdir()}
    for name in ("driver.html", "driver.js"):
        bodies[name] = Path(__file__).with_name(f"serve_{name}").read_bytes()
    bodies["cases.json"] = json.dumps(cases, allow_nan=False).encode()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Cases) as server:
        server.bodies, server.report = bodies, None
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        with browsing(f"http://127.0.0.1:{server.server_address[1]}/", folder / "profile"):
            wait_for(lambda: server.report, "report of the driver")
        server.shutdown()
    return server.report


def _plain(values: Any) -> list[Any]:
    """Numbers for JSON, which has neither NaN nor infinity: those travel as texts that JavaScript's Number reads."""
    names = {np.inf: "Infinity", -np.inf: "-Infinity"}
    return [v if np.isfinite(v) else names.get(v, "NaN") for v in np.ravel(values).astype(float).tolist()]


def _nms_case(rng: Any, kind: str, *, odd: bool = False) -> dict[str, Any]:
    n = 120
    centre, size = rng.uniform(0, 1, (n, 2)), rng.uniform(0.05, 0.5, (n, 2))
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    scores = np.round(rng.uniform(0, 1, n), 2)  # with ties
    if odd:
        boxes[:8, 0], scores[8:12], boxes[20:30] = [np.nan, np.inf, -np.inf, 2, 3, np.nan, 0, 1], np.nan, boxes[19]
    options = {"iou": float(rng.choice([0, 0.3, 0.45])), "kind": kind, "beta": float(rng.choice([-1, 0, 0.6, 1.5]))}
    return {"boxes": boxes, "scores": scores, "classes": rng.integers(0, 3, n), **options, "max_det": 40}


def _close_calls(rng: Any) -> list[dict[str, Any]]:
    """Pairs whose overlap is the threshold to the last bit, so that they stay, and the next threshold below."""
    made = []
    while len(made) < 60:
        boxes = np.array([[0, 0, 1, 1], [*rng.uniform(0, 0.5, 2), *rng.uniform(0.6, 1.2, 2)]])
        a, b = _corners(boxes[:1]), _corners(boxes[1:])
        value = float((_overlap(a, b) - _penalty(a, b, 1.5))[0])
        if 0 < value < 1:
            for iou in (value, float(np.nextafter(value, 0))):
                made.append({"boxes": boxes, "scores": np.array([0.9, 0.8]), "classes": [1, 1], "iou": iou,
                             "kind": "diounms", "beta": 1.5, "max_det": 9})  # fmt: skip
    return made


def _head(rng: Any, kind: str, **facts: Any) -> tuple[Head, Any]:
    head = Head("h", kind, (16.0, 16.0), ((20.5, 30.0), (60.0, 44.0)), 3, **facts)
    raw = rng.normal(0, 1.5, (2 * head_entries(head), 4, 6)).astype(np.float32)
    return head, np.abs(raw) % 1 if head.new_coords else raw


def _decode_cases(rng: Any) -> list[tuple[list[Any], Detector, tuple[int, int]]]:
    kinds = (("yolo", {"scale_x_y": 1.05}), ("yolo", {"new_coords": True, "scale_x_y": 2.0}), ("gaussian_yolo", {}),
             ("region", {"softmax": True}), ("region", {}))  # fmt: skip
    made = []
    for (kind, facts), resize in zip(kinds, ("stretch", "letterbox", "stretch", "letterbox", "letterbox"), strict=True):
        heads, raws = zip(*(_head(rng, kind, **facts) for _ in range(2)), strict=True)
        raws[0][0, 0, 0], raws[1][5, 1, 1] = np.nan if not facts.get("softmax") else 0, 40
        nms_kind = ("greedynms", "default", "diounms")[len(made) % 3]
        preprocess = Preprocess(96, 64, resize=resize)
        made.append(
            (
                list(raws),
                Detector("darknet", preprocess, heads, nms_kind=nms_kind),
                ((131, 57), (60, 90))[len(made) % 2],
            )
        )
    decoded = [rng.uniform(0, 64, (30, 4)).astype(np.float32), rng.uniform(0, 1, (30, 3)).astype(np.float32)]
    made.append((decoded, made[0][1], (100, 80)))
    return made


ROUNDS = (
    (24, [50.0, 25.0], [0, 4, 8, 12, 16, 20, 24]),  # the fastest takes 100 ms
    (22, [50.0, 25.0], [0, 4, 9, 13, 18, 22]),  # no short round at the end
    (10, [1.0], [0, 2, 4, 6, 8, 10]),  # too few frames for that: enough rounds for a ratio
    (3, [1.0], [0, 1, 2, 3]),
    (10, [1.0, 500.0], [0, 2, 4, 6, 8, 10]),
    (21, [10.0, 900.0], [0, 3, 6, 9, 12, 15, 18, 21]),  # the slowest takes two seconds, and no more than a frame longer
    (6, [10.0, 5000.0], [0, 1, 2, 3, 4, 5, 6]),
)
"""Frames, median totals of the models, and where rounds begin and end."""


def test_decoding_suppression_and_resizing_agree_with_python(tmp_path):
    rng = np.random.default_rng(3)
    suppressions = [_nms_case(rng, kind, odd=i % 2 == 1) for kind in NMS_KINDS for i in range(8)]
    suppressions += _close_calls(rng)
    decodings = _decode_cases(rng)
    shapes = [(size, c, resize) for size in ((57, 131), (20, 17), (1, 1)) for c in (1, 3) for resize in RESIZES]
    pictures = [
        (rng.integers(0, 256, (*size, 3), dtype=np.uint8), Preprocess(48, 32, c, resize)) for size, c, resize in shapes
    ]
    setting = {"conf": 0.25, "iou": 0.45, "max_det": 20}
    verdicts = [([70, "Infinity"], 1, True), ([70, 59.9], 0, False), ([70], 2, False), (["NaN"], 0, False)]
    cases = {
        "nms": [{k: _plain(v) if isinstance(v, np.ndarray) else v for k, v in one.items()} for one in suppressions],
        "decode": [
            {"heads": [{"data": _plain(h), "shape": h.shape} for h in heads], "detector": asdict(detector),
             "setting": setting, "size": size} for heads, detector, size in decodings
        ],
        "pixels": [
            {"rgba": np.dstack([image, np.full(image.shape[:2], 255)]).ravel().tolist(), "width": image.shape[1],
             "height": image.shape[0], "preprocess": asdict(preprocess)} for image, preprocess in pictures
        ],
        "verdicts": [{"db": db, "different": d, "boxes": 10, "least": 60, "share": 0.1} for db, d, _ in verdicts],
        "rounds": [{"frames": frames, "medians": medians} for frames, medians, _ in ROUNDS],
    }  # fmt: skip
    got = in_browser(cases, tmp_path)
    assert got["kept"] == [nms(**{**one, "classes": np.array(one["classes"])}).tolist() for one in suppressions]
    for (heads, detector, size), found in zip(decodings, got["found"], strict=True):
        wanted = detect(heads, detector, size, **setting)
        assert found["candidates"] == len(decode(heads, detector, setting["conf"])[1]) > len(wanted)
        assert [box["label"] for box in found["boxes"]] == wanted.classes.tolist()
        np.testing.assert_allclose([box["box"] for box in found["boxes"]], wanted.boxes, rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose([box["score"] for box in found["boxes"]], wanted.scores, rtol=1e-6)
    for (image, preprocess), made in zip(pictures, got["pixels"], strict=True):
        pixels = to_input(image, preprocess).ravel()
        # Python mixes in float32 and the page in doubles: a value between two codes may fall to either side.
        differ = np.abs(pixels.astype(int) - np.array(made["pixels"]))
        assert differ.max() <= 1 and (differ > 0).mean() < 0.01
        scaled = np.array(made["pixels"], np.uint8).astype(np.float32) * np.float32(preprocess.scale)
        assert np.array_equal(np.array(made["input"], np.float32), scaled)
    assert got["verdicts"] == [good for *_, good in verdicts]
    assert got["rounds"] == [bounds for *_, bounds in ROUNDS]
