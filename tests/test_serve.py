"""The phone page's server: what it gives, what it refuses, and that nothing that a phone measured is lost."""

from __future__ import annotations

import json
import socket
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime
import pytest
from phone_browser import wait_for
from phone_site import SETTING, Site, ended, raw_request, silent, site, tiny_models
from tiny_models import Tiny, edgeyolo, succeed

from edgeyolo.bench.record import read_records
from edgeyolo.bundle import write_manifest
from edgeyolo.cli.serve import _farewell
from edgeyolo.errors import InputError
from edgeyolo.progress import Log
from edgeyolo.serve import desk as desks
from edgeyolo.serve import server as servers
from edgeyolo.serve.fetch_runtime import unpack
from edgeyolo.serve.ortweb import BACKENDS
from edgeyolo.serve.served import _numbers, served_models
from edgeyolo.serve.server import MAX_UPLOAD

ROW = [0, 0, 1.0, 20.0, 0.5, 0.25, 21.75, 9, 3]
"""One frame as the page reports it: of the run's first model, in the first round."""
BEGIN = {"models": [0], "source": "golden", "backend": "wasm", "threads": 2, "system": "Phone", "device": "",
         "machine": {"cpus": 8, "gpu": None}}  # fmt: skip
"""What a page chooses."""


@pytest.fixture(scope="module")
def parts(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """A model, golden data, and a runtime that is not one: this server executes nothing of it."""
    folder = tmp_path_factory.mktemp("served")
    succeed("export", *tiny.model(), "--names", tiny.names, "--target", "onnx", "-o", folder / "tiny.onnx")
    runtime = {name: folder / name for name in BACKENDS["wasm"]}
    for path in runtime.values():
        path.write_bytes(b"runtime")
    models, golden, photos = tiny_models(folder / "tiny.onnx", tiny.pictures)
    return {"models": models, "golden": golden, "photos": photos, "runtime": runtime}


@pytest.fixture
def here(parts: dict[str, object], tmp_path: Path):
    with site(**parts, results=tmp_path / "results.jsonl") as running:
        yield running


def begin(here: Site, **changes: object) -> tuple[int, dict[str, object]]:
    """Open a page and start a run, whose results are right."""
    session = here.post("open", {})[1]["session"]
    status, answer = here.post("start", {"session": session, **BEGIN, **changes})
    if status == 200:
        here.report(answer["run"], [], outcomes=[{"golden": "same boxes"}])
    return status, {"session": session, **answer}


# --- what it gives ---------------------------------------------------------------------------------------------------


def test_a_measurement_becomes_a_record_whose_figures_the_server_makes(here, parts):
    run = begin(here)[1]["run"]
    assert here.report(run, [ROW] * 3, outcomes=[{"load_ms": 5}])[0] == 200
    assert here.report(run, [ROW] * 3)[0] == 200  # the page got no answer, so it sends them again
    status, answer = here.report(run, [ROW, [*ROW[:6], 99.75, 9, 3]], first=2, status="ok")
    assert status == 200
    (record,) = read_records(here.results)
    assert [json.loads(record.to_line())] == answer["records"]
    assert (record.status, record.frames, record.load_ms, record.backend) == ("ok", 4, 5, "ort-web wasm")
    assert record.model == "tiny.onnx" and record.model_sha256 == parts["models"][0].sha256
    assert record.ms["total"]["p50"] == 21.75 and record.ms["total"]["mean"] == pytest.approx(41.25)
    assert (record.candidates, record.kept, record.curve, record.rounds) == (9, 3, ((9, 0.25),), (4,))
    assert record.machine == {"cpus": 8, "gpu": None, "device": "Phone", "golden": "same boxes"}


def test_every_answer_isolates_the_page_and_lets_nothing_in_from_elsewhere(here):
    for path in ("", "page.js", "runtime/ort.wasm.min.mjs", "nothing"):
        headers = here.get(path)[2]
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin", path
        assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "camera=(self)" in headers["Permissions-Policy"]
        assert "unsafe-inline" not in headers["Content-Security-Policy"]
    assert here.get("runtime/ort.wasm.min.mjs")[1] == b"runtime"


def test_two_pages_know_of_each_other_and_both_measure(here):
    first, second = begin(here)[1], begin(here)[1]
    assert second["others"] == 1 and second["measuring"] == 1
    for run in (first, second):
        assert here.report(run["run"], [ROW], status="ok")[0] == 200
    records = read_records(here.results)
    assert len({record.run for record in records}) == 2
    assert [record.contender[-17:] for record in records] == ["on Phone (page 1)", "on Phone (page 2)"]


def test_a_download_may_take_longer_than_the_timeout(here, tmp_path, monkeypatch):
    monkeypatch.setattr(servers._Handler, "timeout", 1.0)
    content = bytes(range(256)) * (1 << 16)
    (tmp_path / "large").write_bytes(content)
    for name, body in (("file", tmp_path / "large"), ("memory", content)):
        here.server.bodies[name] = ("application/octet-stream", body)
    with ExitStack() as stack:
        both = [stack.enter_context(socket.socket()) for _ in range(2)]
        for connection, name in zip(both, ("file", "memory"), strict=True):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            connection.settimeout(20)
            connection.connect(here.server.server_address[:2])
            connection.sendall(f"GET /{here.server.token}/{name} HTTP/1.0\r\n\r\n".encode())
        got = {connection: bytearray() for connection in both}
        for turn in range(100_000):
            if turn < 40:
                time.sleep(0.05)  # two seconds in all, and never so long that it looks like sleep
            for connection in both:
                got[connection] += connection.recv(1 << 16)
            if all(len(data) > len(content) and data.endswith(content) for data in got.values()):
                break
        else:
            pytest.fail(f"{[len(data) for data in got.values()]} of {len(content)} bytes")


@pytest.mark.parametrize(("numbers", "least"), [("float32", 60), ("float16", 40), ("quantised", 20)])
def test_the_page_is_told_how_close_its_results_have_to_be(parts, numbers, least):
    models = [replace(parts["models"][0], numbers=numbers)]
    bodies = servers.routes(models, parts["photos"], parts["golden"], SETTING, parts["runtime"], 1)
    assert json.loads(bodies["facts.json"][1])["models"][0]["least_db"] == least


def test_numbers_of_a_graph_are_recognised(tmp_path):
    def graph(op: str, kind: int) -> bytes:
        names = [("x", onnx.TensorProto.FLOAT), ("y", onnx.TensorProto.FLOAT)]
        ends = [onnx.helper.make_tensor_value_info(name, of, [1]) for name, of in names]
        weight = onnx.helper.make_tensor("w", kind, [1], [1.0])
        made = onnx.helper.make_graph([onnx.helper.make_node(op, ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight])
        return onnx.helper.make_model(made).SerializeToString()

    cases = (("Add", 1, "float32"), ("Add", 10, "float16"), ("QuantizeLinear", 10, "quantised"))
    assert all(_numbers(graph(op, kind), tmp_path) == numbers for op, kind, numbers in cases)


# --- nothing is lost -------------------------------------------------------------------------------------------------


def test_a_phone_that_falls_silent_leaves_what_it_measured(parts, tmp_path):
    now = [0.0]
    with site(**parts, results=tmp_path / "r.jsonl", clock=lambda: now[0]) as here:
        run = begin(here)[1]["run"]
        here.report(run, [ROW] * 5)
        now[0] = desks.SILENCE_SECONDS + 1
        wait_for(here.written, "record")
        (record,) = read_records(here.results)
        assert (record.status, record.frames, record.reason) == ("stopped", 5, desks.GONE)
        assert any("went away after 5 frames" in line for line in here.lines)
        # It comes back: that run is over, and all of it goes into another one.
        assert here.report(run, [ROW], first=5, status="ok")[0] == 409
        again = begin(here)[1]["run"]
        assert here.report(again, [ROW] * 6, status="ok")[0] == 200
        assert [(one.status, one.frames) for one in read_records(here.results)] == [("stopped", 5), ("ok", 6)]


def test_a_last_report_whose_answer_was_lost_makes_no_second_record(here):
    run = begin(here)[1]["run"]
    answers = [here.report(run, [ROW] * 2, status="ok") for _ in range(2)]
    assert answers[0] == answers[1] and answers[0][0] == 200
    assert here.report(run, [ROW] * 3, status="ok")[0] == 409
    assert len(read_records(here.results)) == 1


def test_records_of_one_server_are_bounded(here, monkeypatch):
    monkeypatch.setattr(desks, "MAX_RECORDS", 1)
    run = begin(here)[1]["run"]
    assert begin(here)[0] == 503
    assert here.report(run, [ROW], status="ok")[0] == 200


@pytest.mark.parametrize("how", ["leave", "start", "close"])
def test_whatever_ends_a_run_keeps_its_frames(here, how):
    page = begin(here)[1]
    here.report(page["run"], [ROW] * 2)
    if how == "close":
        here.desk.close()
    else:
        assert here.post(how, {"session": page["session"], **BEGIN})[0] == 200
    (record,) = read_records(here.results)
    assert (record.status, record.frames) == ("stopped", 2)


def test_a_wrong_golden_result_is_a_failed_record(here):
    run = begin(here)[1]["run"]
    outcomes = [{"golden": "heads within 3 dB", "failed": "golden data"}]
    here.report(run, [], outcomes=outcomes, status="failed", reason="golden data")
    (record,) = read_records(here.results)
    assert (record.status, record.reason, record.frames) == ("failed", "golden data", 0)
    assert record.machine["golden"] == "heads within 3 dB"


# --- what it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"models": [7]}, {"models": ["0"]}, {"models": [-1]}, {"models": []}, {"models": [0, 0]}, {"models": [True]},
        {"models": 0}, {"backend": "cuda"}, {"backend": ["wasm"]}, {"source": "screen"}, {"source": None},
        {"threads": 0}, {"threads": True},
        {"system": "x" * 301}, {"system": None}, {"device": "x" * 61}, {"device": 7},
        {"session": "unknown"}, {"machine": []},
        {"machine": {"a": [1]}}, {"machine": {str(i): i for i in range(99)}}, {"machine": {"a": float("nan")}},
        {"machine": {"a": 10**400}}, {"machine": {"a\nb": 1}},
    ],
)  # fmt: skip
def test_a_start_that_is_not_one_is_refused(here, change):
    status, answer = begin(here, **change)
    assert status in (400, 409) and answer["error"] and "run" not in answer


@pytest.mark.parametrize(
    "report",
    [
        {"frames": [ROW[:-1]]}, {"frames": ["ROW"]}, {"frames": {}}, {"frames": [[*ROW[:-1], float("inf")]]},
        {"frames": [[*ROW[:-1], 10**400]]}, {"outcomes": [{"first_ms": 10**400}]}, {"first": 10**400},
        {"frames": [[*ROW[:-1], "3"]]}, {"frames": [[*ROW[:-1], -1]]}, {"status": "fine"}, {"status": []},
        {"outcomes": [{"load_ms": "fast"}]}, {"outcomes": [{"golden": 7}]}, {"outcomes": [{}, {}]}, {"outcomes": [1]},
        {"outcomes": {}}, {"version": "x" * 301}, {"frames": [[1, *ROW[1:]]]}, {"frames": [[0, 2, *ROW[2:]]]},
        {"frames": [[0, 0.5, *ROW[2:]]]}, {"frames": [[0, 1, *ROW[2:]], ROW]}, {"frames": [[-1, *ROW[1:]]]},
        {"frames": [ROW] * 20_001},
        {"run": "another"}, {"run": None}, {"first": 2, "frames": [ROW]}, {"first": None},
    ],
)  # fmt: skip
def test_a_report_that_is_not_one_is_refused_and_costs_nothing_that_is_there(here, report):
    run = begin(here)[1]["run"]
    assert here.report(run, [ROW])[0] == 200
    status, answer = here.post("report", {"run": run, "first": 1, **report})
    assert 400 <= status < 500 and answer["error"]
    assert not here.results.exists()
    here.report(run, [], first=1, status="ok")
    assert read_records(here.results)[0].frames == 1


def test_an_upload_without_the_secret_too_large_or_malformed_writes_nothing(here):
    base, secret = here.url.rstrip("/").rsplit("/", 1)
    for wrong in ("", "x/", secret[:-1] + "/", secret):
        assert here.ask(f"{base}/{wrong}open" if wrong != secret else f"{base}/{secret}", b"{}")[0] == 404
    for raw in (b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"run": NaN'):
        assert here.post("report", None, raw)[0] == 400, raw[:9]
    assert here.post("report", None, b" " * MAX_UPLOAD)[0] == 400
    assert here.post("nothing", {})[0] == 404
    for length in (str(MAX_UPLOAD + 1), "-1", "1e3", "", "9" * 400):
        assert b" 41" in raw_request(here, f"POST /{secret}/report HTTP/1.0\r\nContent-Length: {length}\r\n\r\n")[:14]
    assert not here.results.exists() and not here.desk.records


@pytest.mark.parametrize(
    "path",
    ["../server.py", "page.js/../../server.py", "%2e%2e/server.py", "/etc/passwd", "runtime/../page.js", "model/00",
     "model/1", "picture/-1", "page", "page.js%00"],
)  # fmt: skip
def test_no_path_leads_anywhere_but_to_fixed_routes(here, path):
    _, secret = here.url.rstrip("/").rsplit("/", 1)
    assert b" 404 " in raw_request(here, f"GET /{secret}/{path} HTTP/1.0\r\n\r\n")[:14]


def test_what_a_phone_says_stays_on_its_line(here):
    run = begin(here)[1]["run"]
    here.report(run, [], status="failed", reason="bad\n#9 Phone: ok\x1b[2J")
    assert read_records(here.results)[0].reason == "bad #9 Phone: ok?[2J"
    assert not any("\n" in line for line in here.lines)


@pytest.mark.parametrize("how", ["again", "another", "close"])
def test_a_record_that_cannot_be_written_is_said_and_written_later(here, how):
    run, other = begin(here)[1]["run"], begin(here)[1]["run"]
    here.results.mkdir()
    status, answer = here.report(run, [ROW], status="ok")
    assert status == 500 and "cannot write the results" in answer["error"]
    assert any("cannot write the results" in line for line in here.lines)
    with pytest.raises(InputError, match="1 of them"):
        _farewell(here.desk, here.results, Log(quiet=True))
    here.results.rmdir()
    if how == "close":
        here.desk.close()
    else:
        assert here.report(run if how == "again" else other, [ROW], status="ok")[0] == 200
    assert [one.run for one in read_records(here.results)] == ([run] if how == "again" else [run, other])
    assert not here.desk.unsaved


# --- who holds a place -----------------------------------------------------------------------------------------------


def test_a_connection_without_a_request_is_ended_however_often_it_sends(here, monkeypatch):
    monkeypatch.setattr(servers, "HEADER_SECONDS", 0.3)
    with ExitStack() as stack:
        one = silent(here, stack)
        one.settimeout(0.1)
        for _ in range(100):
            if ended(one):
                break
            with suppress(ConnectionError):
                one.sendall(b"E")
        else:
            pytest.fail("it still holds its place")
    assert here.get("page.js")[0] == 200


def test_one_address_has_its_share_of_connections(here, monkeypatch):
    monkeypatch.setattr(servers, "MAX_OF_ADDRESS", 2)
    with ExitStack() as stack:
        held = [silent(here, stack) for _ in range(2)]
        assert ended(silent(here, stack))
        held[0].settimeout(0.05)
        assert not ended(held[0])
    deadline = time.monotonic() + 20
    while here.server._open and time.monotonic() < deadline:
        time.sleep(0.02)
    assert here.get("page.js")[0] == 200


# --- the command -----------------------------------------------------------------------------------------------------


def test_bad_input_is_explained(tiny, parts, tmp_path):
    runtime = next(iter(parts["runtime"].values())).parent
    model = runtime / "tiny.onnx"
    (tmp_path / "foreign.onnx").write_bytes(b"no model")
    taken = socket.create_server(("127.0.0.1", 0))
    (tmp_path / "bad.pem").write_text("no certificate")
    cases = {
        "fetch_runtime": (model, "--runtime", tmp_path),
        "cannot load": (tmp_path / "foreign.onnx", "--runtime", runtime),
        "export MODEL": (tiny.cfg, "--runtime", runtime),
        "--key FILE": (model, "--runtime", runtime, "--cert", tmp_path / "bad.pem"),
        "cannot use the certificate": (model, "--runtime", runtime, "--images", tiny.pictures, "--cert",
                                       tmp_path / "bad.pem", "--key", tmp_path / "bad.pem"),
        "--port": (model, "--runtime", runtime, "--images", tiny.pictures, "--host", "127.0.0.1", "--port",
                   taken.getsockname()[1]),
        "cannot write the results": (model, "--runtime", runtime, "--images", tiny.pictures, "--json", tmp_path),
        "no pictures": (model, "--runtime", runtime, "--images", tmp_path),
    }  # fmt: skip
    with taken:
        for text, words in cases.items():
            result = edgeyolo("serve", *words)
            assert result.exit_code == 2 and text in result.output and "Traceback" not in result.output, text


def test_what_is_no_onnx_file_inside_is_refused(parts, tmp_path):
    source = next(iter(parts["runtime"].values())).with_name("tiny.onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "tiny.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    with pytest.raises(InputError, match="no ONNX file"):
        served_models((tmp_path / "tiny.ort").rename(tmp_path / "renamed.onnx"))
    (tmp_path / "bundle").mkdir()
    facts = {"tool": "edgeyolo", "target": "mobile", "source": {}}
    write_manifest(tmp_path / "bundle", facts, parts["models"][0].detector)
    with pytest.raises(InputError, match="no graph"):
        served_models(tmp_path / "bundle")


def test_a_runtime_with_another_hash_is_not_unpacked(tmp_path):
    (tmp_path / "package.tgz").write_bytes(b"something else")
    with pytest.raises(InputError, match="another hash"):
        unpack(tmp_path / "package.tgz", tmp_path / "runtime")
    assert not (tmp_path / "runtime").exists()
