"""A phone's bundle served whole: a real browser measures its variants in turns, each checked with golden data."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from phone_browser import browsing, extend, hurry, needs_browser, patch, probe, site_parts, wait_for
from phone_site import Site, site, tiny_models
from tiny_models import Tiny, succeed

from edgeyolo.bench.record import read_records
from edgeyolo.bench.stats import MIN_ROUNDS
from edgeyolo.bundle import sha256
from edgeyolo.export.mobile_choice import decide
from edgeyolo.lower.mobile.formats import FORMATS, encode
from edgeyolo.ort import model_bytes
from edgeyolo.serve.served import GRAPHS

pytestmark = needs_browser


@pytest.fixture(scope="module")
def bundle(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With int8 as ARM wants it: S8S8."""
    out = tmp_path_factory.mktemp("mobile") / "phone"
    succeed(
        "export", *tiny.model(), "--calib", tiny.pictures, "--target", "mobile", "--board", "android-arm64",
        "--golden", 2, "--no-reconstruct", "--precision", "int8", "-o", out,
    )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def parts(tiny: Tiny, bundle: Path) -> dict[str, Any]:
    return site_parts(bundle, tiny.pictures)


def test_all_variants_of_a_bundle_are_measured_in_turns(parts, bundle, tmp_path):
    with site(**parts, results=tmp_path / "r.jsonl") as here:
        hurry(here)
        shown, rows, report = probe(here), [], here.server.posts["report"]

        def noted(data: Any) -> Any:
            rows.extend(data["frames"][len(rows) - data["first"] :])
            return report(data)

        here.server.posts["report"] = noted
        with browsing(here.url + "?auto=1&frames=40&device=My%20phone", tmp_path / "profile"):
            wait_for(lambda: shown, f"page that has ended; the server said {here.lines}")
        records = read_records(here.results)
    assert [record.contender for record in records] == [
        f"phone/{name} ort-web wasm x{records[0].threads} on My phone" for name in GRAPHS
    ]
    assert {(r.run, r.status, r.reason, r.frames) for r in records} == {(records[0].run, "ok", None, 40)}
    assert all("same boxes" in record.machine["golden"] for record in records[:2]), records
    assert len({record.rounds for record in records}) == 1 and len(records[0].rounds) >= MIN_ROUNDS
    assert [record.ratio is None for record in records] == [True, False, False]
    # In each round all models have their turn, one after the other, and the first one is another one each time.
    turns = [(model, i) for i in range(len(records[0].rounds)) for model in ((i + k) % 3 for k in range(3))]
    assert [tuple(row[:2]) for row in rows] == [turn for turn in turns for _ in range(records[0].rounds[turn[1]])]
    # They see the same pictures there, and find what the server found in them.
    for model, golden in enumerate(parts["golden"]):
        candidates = [row[7] for row in rows if row[0] == model]
        wanted = [golden[i % len(golden)].candidates for i in range(40)]
        assert np.corrcoef(candidates, wanted)[0, 1] > 0.9, (candidates, wanted)
    kept = [np.mean([len(one.detections) for one in golden]) for golden in parts["golden"]]
    assert [record.kept for record in records] == pytest.approx(kept, rel=0.15)
    # The page shows a row a model, with the ratio that the server found.
    assert [cells[0]["text"] for cells in shown["rows"]] == list(GRAPHS)
    assert [cells[4]["text"].split("[")[0] for cells in shown["rows"]] == [
        "1", *(f"{record.ratio['value']:.2f}" for record in records[1:])
    ]  # fmt: skip
    assert "Done. The server has 3 records of 40 frames" in shown["state"]
    # The export can choose by it.
    assert [record.model_sha256 for record in records] == [sha256((bundle / name).read_bytes()) for name in GRAPHS]
    names = [name.removesuffix(".onnx") for name in GRAPHS]
    assert decide(dict(zip(names, records, strict=True)), {"int8": ()}, "there").variant in names


def little_memory(here: Site) -> None:
    """Give WebAssembly 45 MB."""
    name = "runtime/ort-wasm-simd-threaded.mjs"
    kind, path = here.server.bodies[name]
    content = path.read_bytes()
    assert b"maximum:65536" in content
    here.server.bodies[name] = (kind, content.replace(b"maximum:65536", b"maximum:700"))


TURN = b"for (const picture of pictures) measured("
LOST = b"if (part.at === 4 && number === 2) throw new Error('lost'); " + TURN
FREED = b"""
const release = session.release.bind(session);
session.release = async () => {
  await fetch("freed", { method: "POST", body: JSON.stringify({ name: model.name }) });
  return release();
};
return new Network("""
"""Tells whose memory is given back."""


def in_other_formats(bundle: Path, pictures: Path, folder: Path) -> list[Any]:
    """(model, golden data) of the bundle's int8 graph with the integers of other boards."""
    found = []
    for form in FORMATS[1:]:
        (folder / f"{form}.onnx").write_bytes(model_bytes(encode(ir.load(bundle / "int8.onnx"), form)))
        (model,), (golden,), _ = tiny_models(folder / f"{form}.onnx", pictures)
        found.append((model, golden))
    return found


def test_a_model_that_is_wrong_too_large_or_lost_costs_its_own_record_only(parts, bundle, tiny, tmp_path):
    wrong = [replace(one, heads=[head * np.float32(1.5) for head in one.heads]) for one in parts["golden"][2]]
    golden = [*parts["golden"][:2], wrong]
    large = replace(parts["models"][0], name="phone/large.onnx", data=bytes(50 << 20))
    lost = replace(parts["models"][1], name="phone/lost.onnx")
    others, wanted = zip(*in_other_formats(bundle, tiny.pictures, tmp_path), strict=True)
    served = {
        "models": [large, *parts["models"], lost, *others], "golden": [golden[0], *golden, golden[1], *wanted]
    }  # fmt: skip
    freed: list[str] = []
    with site(**{**parts, **served}, results=tmp_path / "r.jsonl") as here:
        hurry(here)
        little_memory(here)
        patch(here, TURN, LOST)
        patch(here, b"return new Network(", FREED)
        here.server.posts["freed"] = lambda data: freed.append(data["name"]) or {}
        shown = probe(here)
        with browsing(here.url + "?auto=1&frames=10&model=all", tmp_path / "profile"):
            wait_for(lambda: shown, f"page that has ended; the server said {here.lines}")
        records = read_records(here.results)
    assert freed == [parts["models"][2].name, "phone/lost.onnx"]
    ends = [("failed", 0), ("ok", 10), ("ok", 10), ("failed", 0), ("failed", sum(records[1].rounds[:2])),
            ("ok", 10), ("ok", 10)]  # fmt: skip
    assert [(record.status, record.frames) for record in records] == ends, records
    assert records[0].reason.startswith("not enough memory: ")
    assert records[3].reason.startswith("golden data: heads agree to 9.5 dB")
    assert (records[4].reason, records[4].rounds) == ("lost", records[1].rounds[:2])  # its turn does not come again
    assert [record.ratio is None for record in records] == [True, True, False, True, True, False, False]
    assert all("same boxes" in record.machine["golden"] for record in records[5:]), records
    for row in (shown["verdicts"][0], shown["verdicts"][3], shown["rows"][0][1], shown["rows"][3][1]):
        red, green, blue = map(int, re.findall(r"\d+", row["color"])[:3])
        assert red > 2 * max(green, blue), shown
    assert "Wrong results" in shown["verdicts"][3]["text"] and "3 of 7 models failed" in shown["state"]


LEAVE = b"""
const leaving = setInterval(() => {
  if (!current?.frames.some((row) => row[1] > 1)) return;
  clearInterval(leaving);
  location.reload();
}, 20);
"""
"""Goes elsewhere in the third round, when all models have had their turn, and does it all again."""


def test_a_page_that_is_left_delivers_the_last_frames_of_every_model_first(parts, tmp_path):
    with site(**parts, results=tmp_path / "r.jsonl") as here:
        hurry(here)
        extend(here, "page.js", LEAVE)
        report = here.server.posts["report"]
        here.server.posts["report"] = lambda data: (data.get("status") and time.sleep(0.5)) or report(data)
        told = lambda: [one for one in here.desk.records if str(one.reason).startswith("the page")]  # noqa: E731
        with browsing(here.url + "?auto=1&frames=5000", tmp_path / "profile"):
            # A busy browser loses now and then what a page sends while it is closed.
            wait_for(told, f"last report; the server said {here.lines}")
        records = told()[:3]
    assert {(record.run, record.status) for record in records} == {(records[0].run, "stopped")}
    assert all(len(record.rounds) > 1 for record in records)
    assert not any("left after" in line for line in here.lines), here.lines


STOP = b"""
const stopping = setInterval(() => {
  if (!current?.frames.some((row) => row[1] > 0)) return;
  clearInterval(stopping);
  if (element("start").textContent === "Stop") element("start").click();
}, 20);
"""
DEAF = b"Object.defineProperty(navigator, 'gpu', { value: { requestAdapter: () => new Promise(() => null) } });"


def test_stop_keeps_what_was_measured_and_a_gpu_that_never_answers_stops_nobody(parts, tmp_path):
    with site(**parts, results=tmp_path / "r.jsonl") as here:
        hurry(here)
        patch(here, b"HINT_MS = 3000;", b"HINT_MS = 100;")
        extend(here, "page.js", STOP)
        extend(here, "device.js", DEAF)
        shown = probe(here)
        with browsing(here.url + "?auto=1&frames=5000", tmp_path / "profile"):
            wait_for(lambda: shown, f"page that has ended; the server said {here.lines}")
        records = read_records(here.results)
    assert {(record.status, record.reason) for record in records} == {("stopped", "the user stopped it")}, records
    assert all(0 < record.frames < 5000 and record.machine["gpu"] is None for record in records)
    assert "Stopped: the user stopped it" in shown["state"]
