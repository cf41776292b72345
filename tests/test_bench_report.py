"""The benchmark's HTML report: everybody's row, nobody's markup, one script that sorts, plots of what there is."""

from __future__ import annotations

import base64
import builtins
import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from test_bench_records import record

from edgeyolo.bench.record import RunRecord
from edgeyolo.bench.report import need_plots, report_html
from edgeyolo.bench.report_plots import MAX_NAME, blocks, front, name
from edgeyolo.bench.report_style import SCRIPT
from edgeyolo.errors import InputError

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&$\\x$\u202e\x1b[0m"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """The elements of a page, its text, headings and scripts, and the rows of its tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.inside = "", ""
        self.scripts: list[str] = []
        self.heads: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")
        elif tag in ("h2", "script"):
            (self.heads if tag == "h2" else self.scripts).append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside in ("th", "td", "button"):
            self.rows[-1][-1] += data
        elif self.inside == "h2":
            self.heads[-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every element of one kind."""
        return [attributes for kind, attributes in self.tags if kind == tag]


def timed(contender: str, scale: float = 1.0, **changes: object) -> RunRecord:
    """A record of 8 rounds of 5 frames, with everything that a plot can show."""
    noise = 1 + 0.01 * np.random.default_rng(len(contender)).standard_normal(40)
    states = tuple({"at": 2.0 * i, "load": 1.0, "clock_mhz": 2000 - 100.0 * i, "celsius": 50.0 + i} for i in range(8))
    own = {
        "totals_ms": tuple(float(v) for v in scale * noise), "rounds": (5,) * 8, "states": states, "frames": 40,
        "curve": ((10, 0.1), (1000, 2.0)), "ap": 0.2 * scale, "ap50": 0.4 * scale, "energy": "a meter of mine",
    }  # fmt: skip
    return record(contender, scale, **{**own, **changes})


def failed(contender: str, reason: str = "it broke\nbadly") -> RunRecord:
    nothing = {"ms": {}, "frames": 0, "totals_ms": (), "rounds": (), "states": (), "ratio": None, "fps": None}
    return record(contender, status="failed", reason=reason, **nothing)


def test_every_record_has_its_row_in_the_order_of_the_run():
    rows = [timed("b"), failed("c"), timed("a", 2.0, ratio={"value": 2.0, "low": 1.9, "high": 2.1}),
            timed("d", 1.0, ratio={"value": 1.0, "low": 0.8, "high": 1.3})]  # fmt: skip
    page = Page(report_html(rows))
    table = {row[0].strip(): row for row in page.rows[:5]}
    assert list(table) == ["contender", "b", "c", "a", "d"]
    heads = table["contender"]
    assert all(len(row) == len(heads) for row in table.values())
    assert table["a"][heads.index("total p50")] == "4.00" and table["a"][heads.index("x first")] == "2.00 [1.90, 2.10]"
    assert table["c"][1] == "failed" and set(table["c"][2:-4]) <= {"-", "12"}
    assert "it broke" in page.text and "badly" in page.text and "too noisy to tell: d" in page.text
    assert [cell for cell in page.all("td") if cell.get("class") == "unsure"] == [
        {"class": "unsure", "data-number": "1.0"}
    ]
    assert "a meter of mine" in page.text and "score > 0.25" in page.text


def test_texts_from_others_are_never_markup():
    evil = dict.fromkeys(("model", "backend", "backend_version", "energy", "generator", "run", "started"), HOSTILE)
    setting = {"conf": 0.25, "iou": 0.45, "max_det": 300, "nms": HOSTILE}
    rows = [
        timed(HOSTILE, setting=setting, machine={HOSTILE: HOSTILE, "packages": {HOSTILE: HOSTILE}, "list": [HOSTILE]},
              ap_setting={"data": HOSTILE}, **evil),
        timed("other", 3.0, scenario=HOSTILE), failed(HOSTILE, f"{HOSTILE}\n{HOSTILE}"),
    ]  # fmt: skip
    text = report_html(rows)
    page = Page(text)
    assert page.scripts == [SCRIPT] and len(page.all("script")) == 1 and not page.all("img")
    assert not [k for _, attributes in page.tags for k in attributes if k.startswith("on") or k == "src"]
    assert "\u202e" not in text and "\x1b" not in text
    assert page.text.count("<img src=x onerror=alert(1)>") > 15
    links = [v for _, attributes in page.tags for k, v in attributes.items() if k in ("href", "xlink:href")]
    assert links and all(str(link).startswith("#") for link in links)


def test_the_policy_lets_one_script_run_and_nothing_load():
    page = Page(report_html([timed("a")]))
    (policy,) = (m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_what_was_not_measured_has_no_section():
    everything = Page(report_html([timed("a"), timed("b", 2.0), failed("c")])).heads
    plots = ["Frame times", "Over time", "NMS against candidates", "AP against time", "AP against size"]
    assert everything == [
        *("Lowest median total", "Run and machine", "All contenders", "Failed", "Stages of a frame"),
        *plots, "Every contender",
    ]  # fmt: skip
    bare = [timed(label, curve=(), ap=None, ap50=None) for label in "ab"]
    assert not {"Failed", *plots[2:]} & set(Page(report_html(bare)).heads)
    nobody = Page(report_html([failed("c")]))
    assert nobody.heads == ["Run and machine", "All contenders", "Failed", "Every contender"] and not nobody.all("svg")


def test_plots_share_no_identifiers_and_the_same_records_give_the_same_bytes():
    rows = [timed(f"contender {i}", 1.5**i) for i in range(3)]
    text = report_html(rows)
    page = Page(text)
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    used = {str(v)[1:] for _, attributes in page.tags for k, v in attributes.items() if k == "xlink:href"}
    assert len(page.all("svg")) == 5 and len(names) == len(set(names)) and used <= set(names)
    assert text == report_html(rows)


def test_one_outlier_does_not_squash_the_histograms():
    slow = timed("a")
    slow = dataclasses.replace(slow, totals_ms=(*slow.totals_ms[:-1], 900.0))
    calm = timed("b", totals_ms=tuple(np.linspace(1, 2, 1000)), rounds=(1000,), states=())
    page = Page(report_html([calm, slow]))
    assert "a  (1 slower, up to 900 ms)" in page.text
    ticks = re.findall(r">([\d.]+)<", report_html([calm]).split("Frame times")[1].split("</svg>")[0])
    assert ticks and max(map(float, ticks)) <= 2


def test_clock_and_temperature_stand_below_the_times_where_they_are_known():
    text = Page(report_html([timed("a")])).text
    assert "clock 1300 to 2000 MHz, hottest 50 to 57 °C" in text and "seconds since measuring began" in text
    mute = timed("a", states=({"load": None, "clock_mhz": None, "celsius": None},) * 8)
    text = Page(report_html([mute])).text
    assert "tells neither clock nor temperature" in text and "in MHz" not in text and ">round<" in report_html([mute])


def test_the_headline_is_the_fastest_and_says_who_may_be_as_fast():
    rows = [timed("slow", 2.0), timed("best"), timed("level")]
    text = Page(report_html(rows)).text
    head = text[text.index("Lowest median total") : text.index("Run and machine")]
    assert "best" in head and "cannot tell whether these are slower: level." in head
    assert "inference, ms2.00" in head and "FPS500.0" in head
    strict = {"conf": 0.001, "iou": 0.45, "max_det": 300}
    heads = Page(
        report_html(
            [timed("best"), timed("a", 9.0), timed("other", setting=strict), timed("more", 3.0, setting=strict)]
        )
    ).heads
    assert heads[:2] == ["Lowest median total (conf 0.25)", "Lowest median total (conf 0.001)"]


def test_small_parts():
    assert front([(2, 0.5), (1, 0.4), (3, 0.45), (1, 0.3), (4, 0.6)]) == [(1, 0.4), (2, 0.5), (4, 0.6)]
    assert [len(b) for b in blocks(record())] == [10, 11] and blocks(failed("a")) == []
    short = name(record(f"begin{'-' * 99}x2"))
    assert len(short) == MAX_NAME and short.startswith("begin") and short.endswith("x2")


def test_missing_matplotlib_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch):
    original = builtins.__import__

    def without(module: str, *rest: object, **named: object) -> object:
        if module.partition(".")[0] == "matplotlib":
            raise ImportError(module)
        return original(module, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=re.escape("edgeyolo[eval]")):
        need_plots()


WRAPPER = """<!doctype html><iframe src="report.html"></iframe><pre></pre><script>
window.onload = () => {
  const page = document.querySelector("iframe").contentDocument;
  const heads = [...page.querySelectorAll(".sortable thead th")];
  const names = () => [...page.querySelectorAll(".sortable tbody th")].map(cell => cell.textContent).join("");
  const seen = [["", "none", names()]];
  for (const head of PRESSES) {
    const th = heads.find(th => th.textContent === head);
    th.querySelector("button").click();
    seen.push([head, th.getAttribute("aria-sort"), names()]);
  }
  const script = page.createElement("script");
  script.textContent = "document.title = 'ran'";
  page.body.append(script);
  document.querySelector("pre").textContent = JSON.stringify([...seen, page.title]);
};
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_sorts_and_runs_no_other_script(tmp_path: Path):
    """Numbers as numbers, what was not measured last both ways; the policy stops a script that is put into the page."""
    rows = [timed("b", 10.0), failed("x"), timed("c", 9.0), timed("a", 100.0)]
    (tmp_path / "report.html").write_text(report_html(rows), "utf-8")
    presses = ["total p50", "total p50", "contender", "contender"]
    (tmp_path / "test.html").write_text(WRAPPER.replace("PRESSES", json.dumps(presses)), "utf-8")
    done = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--disable-quic",
         "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
         (tmp_path / "test.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = json.loads(re.findall(r"<pre>(.*)</pre>", done.stdout)[0])
    assert found[:-1] == [
        ["", "none", "bxca"],
        ["total p50", "ascending", "cbax"],
        ["total p50", "descending", "abcx"],
        ["contender", "ascending", "abcx"],
        ["contender", "descending", "xcba"],
    ]
    assert found[-1].startswith("Benchmark of")
