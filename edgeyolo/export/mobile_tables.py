"""What a person reads after an export for phones."""

from __future__ import annotations

from rich.table import Table

from edgeyolo.export.mobile import MobileRequest, MobileResult
from edgeyolo.export.tables import ledger_table, print_layers
from edgeyolo.export.usability import UsabilityRow
from edgeyolo.progress import Log


def print_mobile(result: MobileResult, request: MobileRequest, log: Log, *, full: bool) -> None:
    """Print the layers (all, or the worst few), the ledger and the summary of a finished bundle."""
    print_layers(result.layers, log, full=full)
    log.table(ledger_table(result.ledger))
    log.table(_summary(result, request))
    log.say(f"\nnext: edgeyolo verify {request.output}")
    log.say(f"      edgeyolo benchmark {request.output}")
    log.say(f"      edgeyolo serve {request.output}, and open the page on the phone")


def _summary(result: MobileResult, request: MobileRequest) -> Table:
    ledger, board, choice, layers = result.ledger, request.board, result.choice, result.facts["layers"]
    table = Table(title=str(request.output), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    floats = ", ".join(f"{name} ({reason})" for name, reason in list(layers["float"].items())[:4])
    rows = {
        "board": f"{board.name}: {board.description}; ONNX Runtime {board.onnxruntime} or newer",
        "integers": f"{board.int8_format.upper()}: {board.int8_reason}",
        "int8 layers": f"{len(layers['int8'])}; float: {floats or 'none'}",
        "chosen": f"{choice.variant}: {choice.reason}",
        **({"accuracy": ledger.ap_text} if ledger.ap else {}),
        **({"accuracy kept": ledger.ratio_text} if ledger.ratios else {}),
        "head SNR": f"{ledger.snr_db:.1f} dB against float, channel means removed",
        "same detections": ledger.agreement_text,
        **{f"{row.provider}, {name}": _taken(row) for name, found in result.usable.items() for row in found.rows},
        **{name: f"{n:,} bytes" for name, n in sorted(result.files.items()) if name.endswith((".onnx", ".ort"))},
    }
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _taken(row: UsabilityRow) -> str:
    return f"{row.supported} of {row.nodes} operators in {row.partitions} part(s): {row.verdict}"
