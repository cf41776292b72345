"""What a person reads after an export for TensorRT."""

from __future__ import annotations

from rich.table import Table

from edgeyolo.export.tables import ledger_table, print_layers
from edgeyolo.export.tensorrt import TensorRTRequest, TensorRTResult
from edgeyolo.progress import Log


def print_tensorrt(result: TensorRTResult, request: TensorRTRequest, log: Log, *, full: bool) -> None:
    """Print the layers (all, or the worst few), the ledger and the summary of a finished bundle."""
    if result.layers:
        print_layers(result.layers, log, full=full)
    log.table(ledger_table(result.ledger))
    log.table(_summary(result, request))
    log.say(f"\nnext: edgeyolo verify {request.output}")
    log.say(f"      on the device: cd {request.output} && ./build.sh")


def _summary(result: TensorRTResult, request: TensorRTRequest) -> Table:
    ledger, board, layers = result.ledger, request.board, result.facts["layers"]
    table = Table(title=str(request.output), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    floats = ", ".join(f"{name} ({reason})" for name, reason in list(layers["float"].items())[:4])
    rows = {
        "board": f"{board.name}: {board.description}; TensorRT {', '.join(board.tensorrt)}",
        "precision": request.precision + (", float16 elsewhere" if request.precision == "int8" else ""),
        **({"int8 layers": f"{len(layers['int8'])}; float: {floats or 'none'}"} if layers["int8"] else {}),
        **({"float32 layers": ", ".join(layers["float32"])} if layers["float32"] else {}),
        **({"accuracy": ledger.ap_text} if ledger.ap else {}),
        **({"accuracy kept": ledger.ratio_text} if ledger.ratios else {}),
        "head SNR": f"{ledger.snr_db:.1f} dB against float, channel means removed",
        "same detections": ledger.agreement_text,
        "TensorRT-RTX": f"{result.accepted.status}: {result.accepted.text}",
        **{name: f"{size:,} bytes" for name, size in sorted(result.files.items()) if name.endswith(".onnx")},
    }
    for name, text in rows.items():
        table.add_row(name, text)
    return table
