"""Write the tables of README.md and benchmarks/README.md from the results in benchmarks/results/.

    python benchmarks/readme_table.py [--check]

readme.jsonl is what ``edgeyolo benchmark --json`` writes; latency.jsonl and exports.jsonl are what ``peers.py`` writes,
darknet.jsonl comes from ``darknet.py --json``; of a model that was measured again the latest counts. A table stands
between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``; what is between is replaced. --check changes nothing and ends
with 1 if a document is not up to date.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from click import echo

from edgeyolo.bench.record import RunRecord, read_records
from edgeyolo.bench.stats import TimeRatio, ratio
from edgeyolo.bench.tables import COLUMNS, cells, failure

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
KINDS = {
    "-fpga8": "8 bits, ours for fpga",
    "-trt8": "8 bits, ours for tensorrt",
    "-mobile8/int8": "8 bits, ours for mobile",
    "-static8": "8 bits, ORT's quantize_static",
    "": "float32",
}
"""What a suffix of a file means; the empty one last, since every name ends with it."""
BACKENDS = {
    "ort": "ONNX Runtime", "engine": "our C99 engine", "ncnn": "ncnn", "openvino": "OpenVINO", "opencv": "OpenCV",
    "litert": "LiteRT",
}  # fmt: skip
FIGURES = ("infer p50", "NMS p50", "total p50", "p99", "FPS", "x first", "RSS MiB", "before", "AP50")
HEADINGS = {"x first": "x first row", "before": "candidates"}


def parts(record: RunRecord) -> tuple[str, str]:
    """Name of the model and suffix of what was made of it."""
    name = record.model.removesuffix(".onnx").removesuffix(".tflite")
    suffix = next(suffix for suffix in KINDS if name.endswith(suffix))
    return name.removesuffix(suffix), suffix


def latest(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Of every model those of its last run."""
    runs = {parts(record)[0]: record.run for record in records}
    return [record for record in records if runs[parts(record)[0]] == record.run]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table whose first ``left`` columns are words."""
    rule = [*["---"] * left, *["---:"] * (len(header) - left)]
    lines = [header, rule, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def row(record: RunRecord, shown: Sequence[str]) -> list[str]:
    """One contender with these figures."""
    model, suffix = parts(record)
    figures = dict(zip(COLUMNS, cells(record), strict=True))
    own = [figures[name] for name in shown]
    if not record.ms:
        own = [failure(record)[:70], *["-"] * (len(shown) - 1)]
    return [model, KINDS[suffix], BACKENDS.get(record.backend, record.backend), str(record.threads), *own]


def latency_table(records: Sequence[RunRecord]) -> str:
    """The table of these contenders with its caption."""
    s, m = records[0].setting, records[0].machine
    known = {"AP50": [r.ap50 for r in records], "RSS MiB": [r.rss_bytes for r in records]}
    shown = [name for name in FIGURES if any(value is not None for value in known.get(name, [0]))]
    versions = sorted(
        {
            f"{BACKENDS.get(r.backend, r.backend)} {r.backend_version.split('-')[0].split('(')[0].strip()}"
            for r in records
            if r.ms
        }
    )
    confs = ", ".join(f"{c:g}" for c in sorted({r.setting["conf"] for r in records}))
    dates = ", ".join(sorted({r.started[:10] for r in records}))
    caption = (
        f"Milliseconds a frame, from picture file to boxes; NMS is part of the total. Score > {confs}, overlap <= "
        f"{s['iou']:g}, at most {s['max_det']} boxes, {records[0].pictures} pictures. {m.get('cpu') or 'unknown CPU'}, "
        f"{m.get('cpus')} processors, Python {m.get('python')}; {', '.join(versions)}; {dates}. "
        "The contenders of a model ran interleaved; the interval of a ratio is a 95 % bootstrap over rounds."
    )
    judged = next((r.ap_setting for r in records if r.ap_setting), None)
    if judged:
        caption += f" AP50: {judged['pictures']} pictures, score > {judged['conf']:g}."
    header = ("model", "weights", "runs in", "threads", *(HEADINGS.get(name, name) for name in shown))
    return markdown(header, [row(record, shown) for record in records], 3) + "\n\n" + caption


def losses(records: Sequence[RunRecord]) -> str:
    """Where somebody is surely faster than what we make or run, on one thread; a line a model."""
    said = []
    for model in dict.fromkeys(parts(record)[0] for record in records):
        of_model = [r for r in records if parts(r)[0] == model and r.threads == 1 and r.ms]
        own = [
            r
            for r in of_model
            if parts(r)[1] in ("-fpga8", "-trt8", "-mobile8/int8") and r.backend in ("ort", "engine")
        ]
        first = of_model[0]  # float32 in ONNX Runtime: our export too
        own = [first, *own]
        others = [r for r in of_model if r not in own and r.setting == first.setting]
        said.append(f"- {model}:")
        for r in own:
            lost = [
                f"{label(o)} {found}"
                for o in (*others, *([first] if r is not first else []))
                if (found := versus(r, o)).low > 1
            ]
            said.append(f"    - {label(r)} takes longer than {'; '.join(lost) or 'nobody, for sure'}")
    return "\n".join(said)


def label(record: RunRecord) -> str:
    """A contender in words."""
    return f"{BACKENDS.get(record.backend, record.backend)} ({KINDS[parts(record)[1]]})"


def versus(record: RunRecord, other: RunRecord) -> TimeRatio:
    """Total time of one contender as a multiple of another's of the same run."""
    blocks = [np.split(np.array(r.totals_ms), np.cumsum(r.rounds)[:-1]) for r in (record, other)]
    count = min(map(len, blocks))
    return ratio(blocks[0][:count], blocks[1][:count])


def exports_table(records: Sequence[dict[str, Any]]) -> str:
    """Time and memory of every export as a whole process; of one that was repeated the last."""
    last = {(r["model"], r["step"]): r for r in records}
    rows = [
        [
            r["model"],
            r["step"],
            *(
                [
                    f"{r['seconds']:.1f}",
                    f"{r['cpu_seconds']:.1f}",
                    "-" if r["peak_bytes"] is None else f"{r['peak_bytes'] / 2**20:.0f}",
                    f"{r['bytes']:,}",
                ]
                if r["status"] == "ok"
                else [f"failed: {str(r['reason'])[:60]}", "-", "-", "-"]
            ),
            str(r["limit"] or "all"),
        ]
        for r in last.values()
    ]
    return markdown(("model", "export", "seconds", "CPU seconds", "peak MiB", "bytes", "pictures"), rows, 2)


def darknet_lines(records: Sequence[dict[str, Any]]) -> str:
    """What ``darknet.py`` found, one line a model."""
    from darknet import sentence

    return "\n".join(f"- {sentence(r)}." for r in {r["model"]: r for r in records}.values())


def replace(text: str, name: str, table: str) -> str:
    """``text`` with another table between its markers. Raises ValueError if they are not there once each, in order."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed or begin in rest or end in tail:
        raise ValueError(f"there is no {begin} ... {end}, or more than one")
    return f"{head}{begin}\n{table}\n{end}{tail}"


def lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file; none where it is missing."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []


def documents(results: Path, readme: str, own: str) -> tuple[str, str]:
    """README.md and benchmarks/README.md as they have to be. Raises ValueError and InputError."""
    records = latest(read_records(results / "latency.jsonl"))
    readme = replace(readme, "benchmark", latency_table(latest(read_records(results / "readme.jsonl"))))
    for name, text in (
        ("latency", f"{latency_table(records)}\n\nWhere we lose:\n\n{losses(records)}"),
        ("exports", exports_table(lines(results / "exports.jsonl"))),
        ("darknet", darknet_lines(lines(results / "darknet.jsonl"))),
    ):
        own = replace(own, name, text)
    return readme, own


def main() -> None:
    """Write or check both documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    paths = (HERE.parent / "README.md", HERE / "README.md")
    old = [path.read_text("utf-8") for path in paths]
    stale = [(p, new) for p, was, new in zip(paths, old, documents(RESULTS, *old), strict=True) if was != new]
    for path, text in stale:
        echo(f"{path.parent.name}/{path.name} is not what the results say" if check else f"wrote {path.name}")
        if not check:
            path.write_text(text, "utf-8")
    if check and stale:
        parser.exit(1)


if __name__ == "__main__":
    main()
