"""``--target onnx``: one simplified float ONNX file, with box decoding and NMS in the graph where asked for."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from edgeyolo.ort import model_bytes, open_session
from edgeyolo.output import write_file
from edgeyolo.passes.decode import add_decode
from edgeyolo.passes.graph import read_detector
from edgeyolo.passes.nms import add_nms
from edgeyolo.progress import Log


def export_onnx(
    model: ir.Model, output: Path, log: Log, *, decode: bool, nms: bool, conf: float, iou: float, force: bool
) -> None:
    """Write ``output``; ``nms`` implies decoding. Raises InputError if it exists or ORT cannot load the result."""
    with log.stage("write") as details:
        if decode or nms:
            model = add_decode(model, read_detector(model))
        if nms:
            model = add_nms(model, iou, conf)
        data = model_bytes(model)
        session = open_session(data)
        write_file(output, data, force=force)
        outputs = ", ".join(f"{o.name} {o.shape}" for o in session.get_outputs())
        details.append(f"{output}: {len(data):,} bytes; outputs {outputs}")
