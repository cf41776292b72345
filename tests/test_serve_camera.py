"""The phone page with a camera, which a real browser fakes: frames are measured, shown, and kept whatever happens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from phone_browser import browsing, extend, hurry, needs_browser, patch, site_parts, tiny_onnx, wait_for
from phone_site import Site, site
from tiny_models import Tiny

from edgeyolo.bench.record import read_records

pytestmark = needs_browser

FAKE = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
REFUSED = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream=deny")


@pytest.fixture(scope="module")
def parts(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two models, so that there is a turn to take."""
    found = site_parts(tiny_onnx(tiny, tmp_path_factory.mktemp("served")), tiny.pictures)
    (model,), golden = found["models"], found["golden"]
    return {**found, "models": [model, replace(model, name="other.onnx")], "golden": golden * 2}


WATCH = b"""
const streams = [];
const give = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
navigator.mediaDevices.getUserMedia = async (wanted) => {
  const stream = await give(wanted);
  streams.push({ wanted, track: stream.getVideoTracks()[0], ...stream.getVideoTracks()[0].getSettings() });
  return stream;
};
new MutationObserver(async () => {
  const { width, height } = element("picture");
  const pixels = element("picture").getContext("2d").getImageData(0, 0, width, height).data;
  const body = JSON.stringify({
    streams: streams.map(({ track, ...rest }) => ({ state: track.readyState, ...rest })),
    colours: new Set(pixels).size,
    found: element("found").textContent,
    state: element("state").textContent,
  });
  await fetch("probe", { method: "POST", body });
}).observe(document.documentElement, { attributeFilter: ["data-end"] });
"""
"""Tells at the end what the page asked for, what became of it, and what it shows."""


def run_page(here: Site, query: str, folder: Path, flags: tuple[str, ...] = FAKE, more: bytes = b"") -> dict[str, Any]:
    """What the page shows when it has ended."""
    told: dict[str, Any] = {}
    hurry(here)
    extend(here, "page.js", WATCH + more)
    here.server.posts["probe"] = lambda data: told.update(data) or {}
    with browsing(here.url + f"?auto=1&source=camera&{query}", folder / "profile", flags):
        wait_for(lambda: told, f"page that has ended; the server said {here.lines}")
    return told


def test_frames_of_a_camera_are_measured_in_turns_and_shown(parts, tmp_path):
    golden = parts["golden"][0]
    best = max(range(len(golden)), key=lambda i: len(golden[i].detections))
    film = tmp_path / "film.mjpeg"
    film.write_bytes(parts["photos"][best].jpeg * 3)
    with site(**parts, results=tmp_path / "r.jsonl") as here:
        told = run_page(here, "frames=8&model=all", tmp_path, (*FAKE, f"--use-file-for-fake-video-capture={film}"))
        records = read_records(here.results)
    (stream,) = told["streams"]
    assert stream["wanted"]["video"]["facingMode"] == "environment" and not stream["wanted"]["audio"]
    assert stream["state"] == "ended"  # the camera is off again
    size = f"{stream['width']}x{stream['height']}"
    assert [(r.status, r.frames, r.pictures, r.machine["camera"]) for r in records] == [("ok", 8, 8, size)] * 2, records
    assert [record.contender.split(" on ")[0].split()[-1] for record in records] == ["camera", "camera"]
    assert all("same boxes" in record.machine["golden"] for record in records)  # before the camera's frames
    assert records[0].rounds == records[1].rounds and records[1].ratio is not None
    assert records[0].ms["pre"]["min"] > 0 and records[0].generator == "camera"
    assert len(golden[best].detections) > 3  # the camera sees this picture, made larger or smaller
    assert records[0].kept == records[1].kept == pytest.approx(len(golden[best].detections), rel=0.4)
    assert told["colours"] > 20 and "boxes in this video frame" in told["found"]


TAKEN = b"""
setInterval(() => {
  if (current?.frames.length > 3) streams[0].track.dispatchEvent(new Event("ended"));
}, 20);
"""


def test_a_camera_that_is_taken_away_leaves_what_was_measured(parts, tmp_path):
    with site(**parts, results=tmp_path / "r.jsonl") as here:
        told = run_page(here, "frames=5000&model=0", tmp_path, more=TAKEN)
        (record,) = read_records(here.results)
    assert (record.status, record.reason) == ("stopped", "the camera was taken away") and 3 < record.frames < 5000
    assert record.pictures == record.frames and told["streams"][0]["state"] == "ended"
    assert "Stopped: the camera was taken away" in told["state"]


@pytest.mark.parametrize(("flags", "why"), [(REFUSED, "allow it"), ((), "there is none")])
def test_without_a_camera_there_is_a_failed_record_that_says_why(parts, tmp_path, flags, why):
    with site(**parts, results=tmp_path / "r.jsonl") as here:
        told = run_page(here, "frames=5&model=0", tmp_path, flags)
        (record,) = read_records(here.results)
    assert record.status == "failed" and record.frames == 0 and " camera on " in record.contender
    assert "the camera cannot be used: " in record.reason and why in record.reason and record.reason in told["state"]


MUTED = b"""
const muted = () => {
  const canvas = document.createElement("canvas");
  canvas.getContext("2d");
  const stream = canvas.captureStream(0);
  streams.push({ track: stream.getVideoTracks()[0] });
  return stream;
};
navigator.mediaDevices.getUserMedia = async () => muted();
"""
"""A camera that gives no picture."""


def test_a_camera_that_gives_no_first_picture_is_switched_off_and_said(parts, tmp_path):
    with site(**parts, results=tmp_path / "r.jsonl") as here:
        patch(here, b"SILENCE_MS = 5000;", b"SILENCE_MS = 300;")
        told = run_page(here, "frames=5&model=0", tmp_path, more=MUTED)
        (record,) = read_records(here.results)
    assert (record.status, record.frames) == ("failed", 0) and "it gave no picture for 0.3 s" in record.reason
    assert told["streams"] == [{"state": "ended"}] and record.reason in told["state"]


HIDE = b"""
Object.defineProperty(document, "hidden", { get: () => true });
document.dispatchEvent(new Event("visibilitychange", { bubbles: true }));
"""
LATE = b"""
navigator.mediaDevices.getUserMedia = async () => {
  await new Promise((resolve) => setTimeout(resolve, 200));
  const [button, waiting] = [element("start"), element("state").textContent];
  (() => { ACT })();
  await new Promise((resolve) => setTimeout(resolve, 200));
  setTimeout(() => {
    const body = JSON.stringify({ state: streams[0].track.readyState, waiting });
    fetch("late", { method: "POST", body });
  }, 200);
  return muted();
};
"""
"""A camera that is allowed after something else has ended the measurement."""


@pytest.mark.parametrize(("act", "why"), [(b"button.click()", "the user stopped it"), (HIDE, "the page went to the")])
def test_waiting_for_a_camera_ends_with_the_measurement(parts, tmp_path, act, why):
    late: dict[str, Any] = {}
    with site(**parts, results=tmp_path / "r.jsonl") as here:
        extend(here, "page.js", b"const streams = [];" + MUTED + LATE.replace(b"ACT", act))
        here.server.posts["late"] = lambda data: late.update(data) or {}
        with browsing(here.url + "?auto=1&source=camera&model=0", tmp_path / "profile", FAKE):
            wait_for(lambda: late and here.written(), f"late camera; the server said {here.lines}")
        (record,) = read_records(here.results)
    assert (record.status, record.frames) == ("stopped", 0) and record.reason.startswith(why)
    assert late["state"] == "ended" and late["waiting"].startswith("Waiting for the camera")
