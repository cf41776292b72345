"""What a person reads after an export: the bundle, the layers, the figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.table import Table

from edgeyolo.errors import printable
from edgeyolo.export.fpga import FpgaRequest, FpgaResult
from edgeyolo.export.ledger import Ledger
from edgeyolo.program import Conv
from edgeyolo.progress import Log, peak_memory
from edgeyolo.quant.compare import LayerReport

WORST = 5


def print_result(result: FpgaResult, request: FpgaRequest, log: Log, *, full: bool) -> None:
    """Print the layers (all, or the worst few) and the summary of a finished bundle."""
    print_layers(result.layers, log, full=full)
    log.table(ledger_table(result.ledger))
    log.table(_summary(result, request))
    pictures = "" if request.golden else " --pictures FOLDER"
    peak = peak_memory()
    if peak is not None:
        log.say(f"\npeak memory: {peak / 2**20:,.0f} MiB")
    log.say(f"\nnext: edgeyolo verify {request.output}{pictures}")
    if request.golden:
        log.say(f"      make -C {request.output}/engine test")


def print_layers(layers: Sequence[LayerReport], log: Log, *, full: bool) -> None:
    """Print all layers, or the worst few."""
    shown = list(layers) if full else sorted(layers, key=lambda layer: layer.sqnr_db)[:WORST]
    title = "layers against float" if full else f"the {len(shown)} worst layers against float (--report shows all)"
    log.table(layer_table(shown, title))


def layer_table(layers: list[LayerReport], title: str) -> Table:
    """One row a layer: type, exponent, SQNR, SNR (channel means removed), cosine, clipped and saturated shares."""
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("layer", overflow="fold", min_width=16)
    for column in ("type", "scale", "SQNR dB", "SNR dB", "cosine", "clipped %", "limit %"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in layers:
        table.add_row(
            printable(row.name), row.qtype, f"{row.scale:.3g}" if row.frac is None else f"2^{-row.frac}",
            f"{row.sqnr_db:.1f}", f"{row.snr_db:.1f}", f"{row.cosine:.4f}", f"{row.clipped * 100:.2f}",
            f"{row.saturated * 100:.2f}",
        )  # fmt: skip
    return table


def ledger_table(ledger: Ledger) -> Table:
    """One row a stage: AP50 and AP (with labels); F1, SNR against the source, bytes, MACs, which candidate is kept."""
    where = f"{ledger.pictures} " + ("calibration pictures" if ledger.data is None else f"pictures of {ledger.data}")
    table = Table(title=f"ledger, on {printable(where)}", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("stage", overflow="fold", min_width=16)
    for column in ("AP50", "AP", "F1", "SNR dB", "bytes", "MACs", "kept"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in ledger.rows:
        table.add_row(
            row.stage, _figure(row.ap50), _figure(row.ap), _figure(row.f1),
            "same" if row.snr_db is None else f"{row.snr_db:.1f}", f"{row.nbytes:,}",
            f"{row.macs / 1e6:,.2f} M", "yes" if row.kept else "",
        )  # fmt: skip
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _summary(result: FpgaResult, request: FpgaRequest) -> Table:
    facts, ledger = result.facts["program"], result.ledger
    folders: Counter[str] = Counter()
    for name, size in result.files.items():
        folders[name.split("/")[0] + ("/" if "/" in name else "")] += size
    weights = sum(op.weight.size for op in result.program.ops if isinstance(op, Conv))
    shares = ", ".join(f"{n / weights:.0%} at {bits} bit" for bits, n in result.facts["weight_bits"].items())
    table = Table(title=str(request.output), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "board": f"{request.profile.name}: {request.profile.description}",
        "weights": f"{weights:,}: {shares}",
        "operations": f"{facts['operations']}, of them {facts['convolutions']} convolutions",
        "accumulators": f"{facts['accumulator_bits']} bit worst case, proven from the weights",
        "exact in float32": f"{facts['float32_exact_layers']} of {facts['convolutions']} convolutions for any input",
        "activations": f"{facts['arena_bytes']:,} bytes at the peak",
        **({"accuracy": f"{ledger.ap_text} ({_setting(ledger)})"} if ledger.ap else {}),
        **({"accuracy kept": ledger.ratio_text} if ledger.ratios else {}),
        "head SNR": f"{ledger.snr_db:.1f} dB against float, channel means removed",
        "same detections": ledger.agreement_text,
        "golden": f"{result.compared:,} elements of every layer equal to ONNX Runtime's" if request.golden else "none",
        **{name: f"{size:,} bytes" for name, size in sorted(folders.items())},
    }
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _setting(ledger: Ledger) -> str:
    s = ledger.setting
    return f"{s.convention.upper()}'s AP, score > {s.conf:g}, overlap <= {s.iou:g}, at most {s.max_det} a picture"
