"""Two results files: a slowdown is found and noise is not, the latest record counts, and what differs is no ratio."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
from tiny_models import edgeyolo, refusal, succeed

from edgeyolo.bench.compare import SlowdownError, compare_files
from edgeyolo.bench.record import SCHEMA, RunRecord, append_records
from edgeyolo.bench.stats import RESAMPLES, Spread, _drawn_medians, independent_ratio, ratio
from edgeyolo.errors import InputError

SETTING = {"conf": 0.25, "iou": 0.45, "max_det": 300, "nms": "greedynms"}
MACHINE = {
    "system": "Linux-6.1", "machine": "x86_64", "cpu": "Some CPU", "cpus": 4, "cpu_flags": ["avx2", "fma"],
    "governor": "performance", "packages": {"numpy": "2.0"}, "python": "3.11.7", "git": "abc",
}  # fmt: skip
ROUNDS, FRAMES = 30, 4


def totals(seed: int = 0, factor: float = 1.0, noise: float = 0.05) -> np.ndarray:
    """(ROUNDS, FRAMES) milliseconds; what disturbs a machine lasts longer than a frame."""
    rng = np.random.default_rng(seed)
    return 10 * factor * rng.lognormal(0, noise, (ROUNDS, 1)) * rng.lognormal(0, noise / 2, (ROUNDS, FRAMES))


def record(times: np.ndarray | None = None, infer: float = 6.0, nms: float = 1.0, **changes: object) -> RunRecord:
    """A record with these times of frames; the medians of two stages are given."""
    times = totals() if times is None else times
    spread = Spread.of(times.ravel()).to_json()
    ms = {**dict.fromkeys(("pre", "decode", "total"), spread), "infer": {**spread, "p50": infer}}
    ms["nms"] = {**spread, "p50": nms}
    base = RunRecord(
        "r1", "2026-01-01T00:00:00+00:00", "ok", "yf ort x1", "yf.onnx", "0" * 64, "ort", "1.0", 1, 1, SETTING,
        frames=times.size, pictures=3, ms=ms, fps=1000 / float(times.mean()), load_ms=30.0, first_ms=9.0,
        rss_bytes=1 << 26, artefact_bytes=1000, candidates=4.5, kept=2.0, totals_ms=tuple(times.ravel().tolist()),
        rounds=(times.shape[1],) * len(times), states=({"at": 0.1, "load": 1.0},), machine=MACHINE,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def failure(**changes: object) -> RunRecord:
    """A record as the harness makes it of a contender that never loaded: nothing knows its kind of suppression."""
    nothing = {"ms": {}, "frames": 0, "totals_ms": (), "rounds": (), "fps": None, "backend_version": ""}
    base = record(status="failed", reason="it broke\nbadly", setting={**SETTING, "nms": None}, **nothing)
    return dataclasses.replace(base, **changes)


@pytest.fixture
def write(tmp_path):
    """Writes records to a file of that name."""

    def write(name: str, *records: RunRecord) -> Path:
        path = tmp_path / name
        append_records(path, records)
        return path

    return write


@pytest.fixture
def two(write):
    """Compares a record with another, each in its own file."""
    numbers = itertools.count()

    def two(a: RunRecord, b: RunRecord, limit: float | None = None):
        n = next(numbers)
        return compare_files(write(f"a{n}", a), write(f"b{n}", b), limit)

    return two


def test_a_slowdown_is_found_and_noise_is_not(two):
    for seed in range(6):
        before = record(totals(seed))
        slower = two(before, record(totals(seed + 100, 1.25)), 1.1)
        [match] = slower.matches
        assert match.verdict == "slower" and slower.exceeded == [match]
        assert match.interval[0] < 1.25 < match.interval[1] and match.interval[0] <= match.ratio <= match.interval[1]
        same = two(before, record(totals(seed + 200)), 1.1)
        assert not same.exceeded and not same.undecided and same.check() is None
        back = two(record(totals(seed + 100, 1.25)), before, 1.1)
        assert back.matches[0].verdict == "faster" and back.matches[0].ratio == pytest.approx(1 / match.ratio, abs=1e-3)
        assert not back.exceeded


def test_a_ratio_is_b_over_a(two):
    [match] = two(record(totals(0)), record(totals(1, 2), infer=9.0, nms=0.5)).matches
    assert match.ratio == pytest.approx(2, rel=0.05) and (match.infer, match.nms) == (1.5, 0.5)
    parts = two(record(nms=0.0), record()).matches[0]
    assert parts.nms is None and parts.infer == 1


def test_exit_codes_of_the_gate(write):
    a, b = write("a", record()), write("b", record(totals(1, 1.25)))
    result = edgeyolo("compare", a, b, "--max-slowdown", 1.1)
    assert result.exit_code == 4 and "slower than --max-slowdown" in result.stderr and "yf ort x1: 1.2" in result.stderr
    assert "slower" in result.stdout and "Traceback" not in result.output
    for arguments in ((a, b), (a, b, "--max-slowdown", 1.5), (b, a, "--max-slowdown", 1), (a, a, "--max-slowdown", 1)):
        succeed("compare", *arguments)


def test_a_slowdown_below_the_limit_is_told_and_allowed(two):
    found = two(record(np.full((30, 4), 10.0)), record(np.full((30, 4), 10.5)), 1.1)
    assert found.matches[0].verdict == "slower" and found.matches[0].interval == (1.05, 1.05) and not found.exceeded
    assert two(record(np.full((30, 4), 10.0)), record(np.full((30, 4), 10.5)), 1.04).exceeded


def test_what_is_too_noisy_is_said_and_does_not_fail_the_gate(write, two):
    wild = [record(totals(seed, noise=0.8)) for seed in (3, 4)]
    a, b = write("a", wild[0]), write("b", wild[1])
    result = succeed("compare", a, b, "--max-slowdown", 1.1)
    assert "too noisy" in result.stdout and "not decided: yf ort x1" in " ".join(result.stderr.split())
    assert "not decided" not in succeed("compare", a, b).stderr
    assert two(*wild, 3.0).matches[0].verdict == "same within noise"
    assert two(record(totals(0)), record(totals(1))).matches[0].verdict == "same within noise"


def test_either_end_of_an_interval_can_reach_too_far(two):
    """Half of the rounds take as long as in a, the others much longer, or much shorter."""
    calm = record(np.full((30, 4), 10.0))
    for others in (20.0, 5.0):
        mixed = record(np.repeat([10.0, others], 15)[:, None] * np.ones((30, 4)))
        [match] = two(calm, mixed, 1.1).matches
        assert 1 in match.interval and match.verdict == "too noisy to tell"


def test_few_rounds_have_no_interval(two):
    stopped = record(totals(1, 3)[:4], status="stopped")
    found = two(record(), stopped, 1.1)
    [match] = found.matches
    assert match.verdict == "too noisy to tell" and "5 rounds" in match.reason and match.interval is None
    assert match.ratio == pytest.approx(3, rel=0.1) and not found.exceeded
    contradiction = two(record(), record(totals(1, 3), rounds=(1,) * 30), 1.1)
    assert contradiction.matches[0].interval is None and not contradiction.exceeded


def test_both_sides_have_draws_of_their_own():
    rng = np.random.default_rng(0)
    disturbance = rng.lognormal(0, 0.4, 40)
    own, other = ([scale * d * rng.lognormal(0, 0.02, 5) for d in disturbance] for scale in (1.5, 1.0))
    paired, apart = ratio(own, other), independent_ratio(own, other)
    assert apart.value == paired.value and apart.high - apart.low > 2 * (paired.high - paired.low)
    assert independent_ratio(own[:7], other).low < 1.5 and independent_ratio(own, other) == apart
    assert len(_drawn_medians(rng.random(3000), rng)) == RESAMPLES, "drawn in four portions"


DAYS = [f"2026-01-0{day}T00:00:00+00:00" for day in range(1, 6)]


def test_the_latest_record_counts_in_any_order_of_lines(write):
    new = record(totals(1, 2), run="r3", started=DAYS[2])
    lines = [
        record(run="r1", started=DAYS[0]),
        record(totals(2, 5), run="r2", started=DAYS[1]),
        new,
        record(run="r4", started=DAYS[3], status="stopped", frames=0, ms={}, totals_ms=(), rounds=()),
        record(totals(3, 9), contender="other", backend="ncnn", started=DAYS[4]),
    ]
    a = write("a", record(), record(contender="other", backend="ncnn"))
    documents = []
    for order in range(5):
        random.Random(order).shuffle(lines)
        found = compare_files(a, write(f"b{order}", *lines, lines[0]))
        assert [m.contender for m in found.matches] == ["other", "yf ort x1"]
        assert found.matches[1].b == new and found.matches[1].ratio == pytest.approx(2, rel=0.1)
        documents.append({**found.to_json(), "b": None})
    assert all(document == documents[0] for document in documents)


def test_a_contender_that_fails_now_fails_the_gate(write):
    good, bad = write("good", record()), write("bad", record(), failure(started=DAYS[4]))
    for options in ((), ("--max-slowdown", 1.5)):
        result = edgeyolo("compare", good, bad, *options)
        assert result.exit_code == 4 and "failed in b" in result.stdout and "it broke" in result.stderr
    assert "failed in a" in succeed("compare", bad, good).stdout
    assert "failed in both" in refusal("compare", bad, bad)
    both = [write(name, failure(), record(backend="ncnn")) for name in ("x", "y")]
    assert "failed in both" in succeed("compare", *both).stdout
    mended = write("mended", failure(), record(started=DAYS[4]))
    succeed("compare", good, mended)
    elsewhere = write("elsewhere", failure(setting={**SETTING, "conf": 0.5, "nms": None}))
    assert "conf 0.25 / 0.5" in refusal("compare", good, elsewhere)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"setting": {**SETTING, "conf": 0.001}}, "conf 0.25 / 0.001"),
        ({"setting": {**SETTING, "max_det": 10}}, "max_det 300 / 10"),
        ({"setting": {**SETTING, "nms": "diounms"}}, "nms greedynms / diounms"),
        ({"setting": {**SETTING, "qps": 20}}, "qps None / 20"),
        ({"generator": "loadgen 5.1"}, "loadgen"),
        ({"pictures": 4}, "pictures 3 / 4"),
        ({"ms": {k: {**v, "p50": 0.0} for k, v in record().ms.items()}}, "no median total in b"),
    ],
)
def test_what_was_asked_differently_has_no_ratio(change, words, write):
    pair = (record(), record(backend="ncnn")), (record(totals(1, 3), **change), record(backend="ncnn"))
    a, b = write("a", *pair[0]), write("b", *pair[1])
    found = compare_files(a, b, 1.1)
    unlike = found.matches[1]
    assert unlike.verdict == "not comparable" and unlike.ratio is None and words in unlike.reason
    assert found.undecided == [unlike] and not found.exceeded and not found.only_a and not found.only_b
    result = succeed("compare", a, b, "--max-slowdown", 1.1)
    assert words in " ".join(result.stdout.split()) and "not decided" in result.stderr
    lonely = [write(f"lonely-{name}", side[0]) for name, side in zip("ab", pair, strict=True)]
    assert words in refusal("compare", *lonely)


def test_the_same_name_twice_in_a_run_is_no_pair(two, write):
    a, twins = write("a", record()), write("b", record(), record(totals(1, 2), model_sha256="1" * 64))
    with pytest.raises(InputError, match="several contenders of one run"):
        compare_files(a, twins)
    merged = write("merged", record(), record())
    assert compare_files(a, merged).matches[0].ratio == 1


@pytest.mark.parametrize("key", ["model", "backend", "threads", "batch", "scenario"])
def test_who_else_ran_is_listed(key, write):
    other = {"model": "x.onnx", "backend": "ncnn", "threads": 2, "batch": 4, "scenario": "Offline"}[key]
    strangers = record(totals(1, 3), contender="in a"), record(contender="in b", **{key: other})
    base = record(model="base.onnx")
    a, b = write("a", base, strangers[0]), write("b", base, strangers[1])
    found = compare_files(a, b, 1.1)
    assert (found.only_a, found.only_b, len(found.matches)) == (("in a",), ("in b",), 1)
    stdout = succeed("compare", a, b).stdout
    assert "only in a: in a" in stdout and "only in b: in b" in stdout
    message = refusal("compare", write("c", strangers[0]), write("d", strangers[1]))
    assert "no contender in common" in message and "in a" in message and "in b" in message


def test_labels_of_different_runs_that_are_alike_are_told_apart(write):
    loose = {"setting": {**SETTING, "conf": 0.001}, "run": "r2", "started": DAYS[1]}
    paths = write("a", record(), record(**loose)), write("b", record(), record(totals(1, 2), **loose))
    more = write("more", record(contender="yf ort x1 batch 1"))
    assert [compare_files(*pair).matches[0].contender for pair in ((more, paths[0]), (paths[0], more))] == [
        "yf ort x1 batch 1", "yf ort x1 batch 1",
    ]  # fmt: skip
    names = [m.contender for m in compare_files(*paths).matches]
    assert len(set(names)) == 2 and "conf 0.001" in names[0] and "conf 0.25" in names[1]


def query(p99: float) -> dict[str, float]:
    return {**Spread.of([1.0]).to_json(), "p99": p99}


@pytest.mark.parametrize("scenario", ["MultiStream", "Server"])
def test_these_scenarios_compare_the_p99_of_queries(scenario, two):
    """Times of frames say the opposite here."""
    a, b = record(totals(0, 3), scenario=scenario, query_ms=query(40)), record(scenario=scenario, query_ms=query(60))
    [match] = two(a, b).matches
    assert (match.ratio, match.interval, match.verdict) == (1.5, None, "slower")
    assert two(a, b, 1.4).exceeded and not two(a, b, 1.6).exceeded and two(b, a).matches[0].verdict == "faster"
    assert two(a, b, 1.6).matches[0].verdict == two(b, a, 1.6).matches[0].verdict == "same within noise"
    with pytest.raises(InputError, match="no p99 of a query in b"):
        two(a, dataclasses.replace(b, query_ms=None))


def test_offline_compares_throughput(two):
    """A few slow frames in every round cost throughput and do not move the median."""
    calm, jerky = np.full((10, 5), 10.0), np.tile([10.0, 10, 10, 10, 40], (10, 1))
    a, b = (record(times, scenario="Offline", query_ms=query(5)) for times in (calm, jerky))
    [match] = two(a, b, 1.2).matches
    assert match.ratio == pytest.approx(1.6) and match.verdict == "slower" and match.interval == (1.6, 1.6)
    assert match.to_json()["b"]["ms"] == pytest.approx(16)
    assert two(record(calm), record(jerky)).matches[0].ratio == 1


def test_other_machines_and_busy_ones_are_a_warning(write):
    a = write("a", record())
    for key, value in (("cpu", "Other CPU"), ("cpus", 2), ("governor", None), ("system", "x"), ("cpu_flags", ["fma"])):
        result = succeed("compare", a, write(key, record(machine={**MACHINE, key: value})))
        assert "TWO MACHINES" in result.stderr and f"{key} " in result.stderr
    assert "cpu_flags avx2 -> -" in result.stderr
    assert "warning" not in succeed("compare", a, a).stderr
    stderr = succeed("compare", a, write("busy", record(states=({"load": 1.0}, {"load": 7.0}, {"load": 6.5})))).stderr
    assert "busy" in stderr and "b: load 6.5 on 4 processors" in stderr and "TWO MACHINES" not in stderr


def test_what_else_changed_is_listed(two):
    labels = {"data": "x", "pictures": 9}
    a = record(ap=0.5, ap50=0.7, ap_setting=labels)
    b = record(
        ap=0.48, ap50=0.7, ap_setting=labels, model_sha256="f" * 64, backend_version="2.0", artefact_bytes=1001,
        load_ms=44.0, first_ms=2.0, rss_bytes=1 << 27, candidates=0, machine={**MACHINE, "packages": {"numpy": "2.1"}},
    )  # fmt: skip
    found = two(a, b)
    text = ", ".join(map(str, found.matches[0].changes))
    assert text == (
        "model 000000000000 -> ffffffffffff, backend 1.0 -> 2.0, first_ms 9 -> 2, rss_bytes 67,108,864 -> 134,217,728, "
        "candidates 4.5 -> 0, artefact_bytes 1,000 -> 1,001, AP50 0.7000 -> 0.7000 (+0.0000), "
        "AP 0.5000 -> 0.4800 (-0.0200)"
    )
    assert list(map(str, found.software)) == ["numpy 2.0 -> 2.1"] and not found.machines
    assert two(record(), record()).matches[0].changes == ()
    [other] = two(a, dataclasses.replace(a, ap_setting={"data": "y"})).matches[0].changes
    assert "no AP" in str(other) and '"y"' in str(other)
    assert not {c.what for c in two(record(), failure()).matches[0].changes} & {"backend", "ap"}
    joules = [record(joules=j, energy=e) for j, e in ((1.0, "rapl"), (2.0, "rapl"), (2.0, "nvml"))]
    assert [len(two(joules[0], j).matches[0].changes) for j in joules] == [0, 1, 0]


def test_json_is_one_document(write):
    engine = {"contender": "yf engine x1", "backend": "engine"}
    a = write("a", record(), failure(**engine), record(contender="gone", threads=8))
    b = write("b", record(totals(1, 1.5), model_sha256="f" * 64), record(**engine))
    result = edgeyolo("compare", a, b, "--json", "--max-slowdown", 1.2)
    assert result.exit_code == 4
    document = json.loads(result.stdout)
    assert document["max_slowdown"] == 1.2 and document["only_a"] == ["gone"] and document["only_b"] == []
    assert document["exceeded"] == ["yf ort x1"] and document["broken"] == document["undecided"] == []
    engine, slow = document["contenders"]
    assert engine["verdict"] == "failed in a" and engine["ratio"] is engine["interval"] is None
    assert engine["reason"] == "it broke" and engine["a"]["ms"] is None and engine["b"]["status"] == "ok"
    low, high = slow["interval"]
    assert low <= slow["ratio"] <= high and slow["ratio"] == pytest.approx(1.5, rel=0.1)
    assert slow["a"]["ms"] == record().ms["total"]["p50"] < slow["b"]["ms"] and slow["metric"] == "median total"
    asked = {"model": "yf.onnx", "backend": "ort", "threads": 1, "batch": 1, "scenario": "SingleStream"}
    assert asked.items() <= slow.items() and slow["setting"] == {"conf": 0.25, "iou": 0.45, "max_det": 300}
    assert slow["changes"] == [{"what": "model", "a": "0" * 12, "b": "f" * 12}]


def test_markdown_and_the_table(write, tmp_path):
    name = "a rather long name of a model-416 tensorrt x1 batch 4 conf 0.001 MultiStream"
    a, b = write("a", record(contender=name)), write("b", record(totals(1, 2000.0), contender=name))
    target = tmp_path / "table.md"
    stdout = succeed("compare", a, b, "--markdown", target).stdout
    assert max(map(len, stdout.splitlines())) <= 100 and "infer" in stdout
    medians = [f"{np.median(totals(0)):.2f}", f"{np.median(totals(1, 2000.0)):.2f}"]
    lines = target.read_text().splitlines()
    assert {line.count("|") for line in lines[:3]} == {8} and name in lines[2] and " slower |" in lines[2]
    assert [cell.strip() for cell in lines[2].split("|")][2:4] == medians
    assert "exists" in refusal("compare", a, tmp_path / "none", "--markdown", target), "before the files are read"
    succeed("compare", a, b, "--markdown", target, "--force")


def test_hostile_text_is_only_text(write, tmp_path):
    evil = "\x1b[31m[bold]x[/bold]|<b>\n:smile: \u202e" + "y" * 10**5
    states = ({"load": 9.0},)
    a = write("a", record(contender=evil, model=evil, machine={"cpu": evil, "packages": {evil: evil}}, states=states))
    packages = {"cpu": {"a": [evil]}, "packages": [evil], "cpus": 4, evil: 1}
    b = write("b", record(totals(1, 2), contender=evil, model=evil, backend_version=evil, machine=packages))
    result = edgeyolo("compare", a, b, "--markdown", tmp_path / "x.md", "--max-slowdown", 1.1)
    assert result.exit_code == 4 and "Traceback" not in result.output
    text = (tmp_path / "x.md").read_text()
    for shown in (result.output, text):
        assert "\x1b" not in shown and "\u202e" not in shown and len(shown) < 5000
    assert "[bold]" in " ".join(result.stdout.split()) and ":smile:" in result.stdout.replace("\n", "")
    assert {line.replace("\\|", "").count("|") for line in text.splitlines()[:3]} == {8} and "\\<b>" in text
    json.loads(edgeyolo("compare", a, b, "--json").stdout)


@pytest.mark.parametrize("limit", ["0.99", "-1", "nan", "inf", "0"])
def test_a_limit_below_one_is_refused(limit, write):
    a = write("a", record())
    assert "--max-slowdown" in refusal("compare", a, a, f"--max-slowdown={limit}")


def test_files_that_cannot_be_read_are_refused(write, tmp_path):
    good, newer, empty = write("good", record()), tmp_path / "newer", tmp_path / "empty"
    newer.write_text(json.dumps({**json.loads(record().to_line()), "schema": SCHEMA + 1}))
    empty.write_text("")
    for bad, words in ((tmp_path / "none", "cannot read"), (newer, "newer schema"), (empty, "no results")):
        for pair in ((good, bad), (bad, good)):
            message = refusal("compare", *pair, "--markdown", tmp_path / "never.md")
            assert words in message and str(bad) in message
    nothing = write("nothing", record(status="stopped", frames=0, ms={}, totals_ms=(), rounds=()))
    assert "nothing that was measured" in refusal("compare", good, nothing)
    assert not (tmp_path / "never.md").exists()


def test_all_offenders_are_named_at_once(two, write):
    slow = [record(totals(i, 2), contender=f"c{i}", threads=i) for i in (1, 2)]
    quick = [record(totals(9), contender=f"c{i}", threads=i) for i in (1, 2)]
    found = compare_files(
        write("a", *quick, record(batch=2)), write("b", *slow, failure(batch=2, contender="c3")), 1.1
    )  # fmt: skip
    with pytest.raises(SlowdownError) as caught:
        found.check()
    assert all(name in str(caught.value) for name in ("c1: ", "c2: ", "failed, it broke", "up to 1.1"))
